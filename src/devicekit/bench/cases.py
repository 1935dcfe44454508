"""The rows of a benchmark before they are measured: what is done, how large it is, what it needs, how it shrinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from devicekit.bench.stage import CHANNELS, FILTER, IMAGE, Run, Stage
from devicekit.bench.transformer import HEAD, Shape
from devicekit.formats import EMULATED, NATIVE

__all__ = ["DTYPES", "KINDS", "Case", "Settings", "attention", "cases", "convolution", "copy", "matmul", "model"]

KINDS = ("bandwidth", "matmul", "attention", "convolution", "model")
"""The words for ``--only``, in the order in which they are measured."""
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "tf32": 4, "float8": 1, "int8": 1}
"""The number formats that can be asked for, and their bytes."""
OF_PRODUCTS = ("tf32", "float8", "int8")
"""Those in which there are only products."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row that is to be."""

    kind: str
    dtype: str
    sizes: dict[str, int]
    """What makes it large, by name."""
    words: str
    """The same for people."""
    nbytes: int
    """Bytes that it needs, about."""
    prepare: Callable[[Stage], Run]
    """Puts what it needs on a device."""
    smaller: Callable[[], Case | None]
    """Makes the next smaller one; None: there is none worth measuring."""
    moved: int = 0
    """Bytes read and written; 0: that is not what it is about."""
    flops: int = 0
    """Floating-point operations, a multiplication and an addition counted as two."""
    tokens: int = 0


def copy(dtype: str, count: int) -> Case:
    """Memory bandwidth: so many numbers from one array into another."""
    nbytes = count * DTYPES[dtype]
    return Case(
        "bandwidth",
        dtype,
        {"bytes": nbytes},
        f"{nbytes >> 20} MiB",
        nbytes=2 * nbytes,
        prepare=lambda stage: stage.copy(dtype, count),
        # Below that a processor's cache is measured.
        smaller=lambda: copy(dtype, count // 2) if nbytes > 32 << 20 else None,
        moved=2 * nbytes,
    )


def matmul(dtype: str, side: int) -> Case:
    """A product of square matrices."""
    return Case(
        "matmul",
        dtype,
        {"side": side},
        f"{side} x {side}",
        nbytes=3 * side**2 * DTYPES[dtype],
        prepare=lambda stage: stage.matmul(dtype, side),
        smaller=lambda: matmul(dtype, side // 2) if side > 128 else None,
        flops=2 * side**3,
    )


def attention(dtype: str, batch: int, seq: int, hidden: int) -> Case:
    """Scaled dot-product attention."""

    def smaller() -> Case | None:
        if batch > 1:
            return attention(dtype, batch // 2, seq, hidden)
        return attention(dtype, 1, seq // 2, hidden) if seq > 16 else None

    scores = batch * (hidden // HEAD) * seq**2
    return Case(
        "attention",
        dtype,
        {"batch": batch, "seq": seq, "hidden": hidden},
        f"batch {batch}, seq {seq}, hidden {hidden}",
        # A kernel that is not fused keeps the scores, twice.
        nbytes=(4 * batch * seq * hidden + 2 * scores) * DTYPES[dtype],
        prepare=lambda stage: stage.attention(dtype, batch, seq, hidden),
        smaller=smaller,
        flops=4 * batch * seq**2 * hidden,
        tokens=batch * seq,
    )


def convolution(dtype: str, batch: int) -> Case:
    """A 3 x 3 convolution of 64 channels on images of 56 x 56."""
    pixels = batch * IMAGE**2
    return Case(
        "convolution",
        dtype,
        {"batch": batch, "channels": CHANNELS, "image": IMAGE, "filter": FILTER},
        f"batch {batch}, {CHANNELS} channels, {IMAGE} x {IMAGE}, filter {FILTER} x {FILTER}",
        # One way to do it is to lay out every window.
        nbytes=(2 + FILTER**2) * pixels * CHANNELS * DTYPES[dtype],
        prepare=lambda stage: stage.convolution(dtype, batch),
        smaller=lambda: convolution(dtype, batch // 2) if batch > 1 else None,
        flops=2 * pixels * CHANNELS**2 * FILTER**2,
    )


def model(dtype: str, batch: int, seq: int, shape: Shape) -> Case:
    """A forward of a transformer."""

    def smaller() -> Case | None:
        if batch > 1:
            return model(dtype, batch // 2, seq, shape)
        return model(dtype, 1, seq, replace(shape, layers=shape.layers // 2)) if shape.layers > 1 else None

    of_a_layer = 12 * batch * seq * shape.hidden + 2 * batch * (shape.hidden // HEAD) * seq**2
    numbers = shape.parameters + of_a_layer + batch * shape.vocabulary
    size = f"hidden {shape.hidden}, {shape.layers} layers, {shape.parameters / 1e6:.0f}M parameters"
    return Case(
        "model",
        dtype,
        {
            "batch": batch,
            "seq": seq,
            "hidden": shape.hidden,
            "layers": shape.layers,
            "parameters": shape.parameters,
        },
        f"batch {batch}, seq {seq}, {size}",
        nbytes=numbers * DTYPES[dtype],
        prepare=lambda stage: stage.model(dtype, batch, seq, shape),
        smaller=smaller,
        flops=shape.flops(batch, seq),
        tokens=batch * seq,
    )


# -- which ones --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for; empty: what suits the device."""

    only: tuple[str, ...] = KINDS
    batch_sizes: tuple[int, ...] = ()
    seq_lengths: tuple[int, ...] = ()
    hidden_sizes: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    iterations: int = 10
    duration: float = 10.0
    """Seconds for one row."""


@dataclass(frozen=True, slots=True)
class _Usual:
    copied: int
    """Bytes."""
    side: int
    attention: int
    """Tokens of a row, as for ``model``."""
    model: int


_ON_ACCELERATORS = _Usual(copied=256 << 20, side=4096, attention=1024, model=128)
_ON_PROCESSORS = _Usual(copied=128 << 20, side=1024, attention=256, model=16)
BATCH, HIDDEN = 32, 1024


def cases(stage: Stage, settings: Settings) -> Iterator[tuple[Case, str]]:
    """What to measure on a device; with the reason why one is left out, where it is."""
    usual = _ON_ACCELERATORS if stage.backend.accelerator else _ON_PROCESSORS
    for kind in settings.only:
        for dtype, reason in _dtypes(stage, kind, settings.dtypes):
            yield from ((case, reason) for case in _of_kind(kind, dtype, settings, usual))


def _of_kind(kind: str, dtype: str, settings: Settings, usual: _Usual) -> Iterator[Case]:
    batches, hiddens = settings.batch_sizes or (BATCH,), settings.hidden_sizes or (HIDDEN,)
    if kind == "bandwidth":
        yield copy(dtype, usual.copied // DTYPES[dtype])
    elif kind == "matmul":
        yield matmul(dtype, usual.side)
    elif kind == "convolution":
        yield from (convolution(dtype, batch) for batch in batches)
    elif kind == "attention":
        for batch, seq, hidden in product(batches, settings.seq_lengths or (usual.attention,), hiddens):
            yield attention(dtype, batch, seq, hidden)
    else:
        for batch, seq, hidden in product(batches, settings.seq_lengths or (usual.model,), hiddens):
            yield model(dtype, batch, seq, Shape(hidden=hidden, positions=max(Shape().positions, seq)))


def _dtypes(stage: Stage, kind: str, asked: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Those that were asked for; else for bandwidth the plainest, for products all, for the rest the preferred one."""
    if asked:
        for dtype in asked:
            only_products = dtype in OF_PRODUCTS and kind != "matmul"
            yield dtype, f"in {dtype} there are only products" if only_products else ""
    elif kind == "bandwidth":
        yield "float32", ""
    elif kind != "matmul":
        yield stage.preferred, ""
    else:
        told = stage.claims()
        for dtype in DTYPES:
            if told.get(dtype) == NATIVE:
                yield dtype, ""
            elif told.get(dtype) == EMULATED:
                yield dtype, f"this device does not compute {dtype} itself; --dtype {dtype} measures it all the same"
