"""A training run that is taken up and goes on for some steps: through the facade, and with NumPy alone.

Model, gradients and optimiser are the same code in both. By hand the dtype, the generator, the file, the clock and the
memory's peak are written out for a processor. The file is read by safetensors' own reader there.
"""

from __future__ import annotations

import ctypes
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import devicekit as dk
from _systems import Pair

STEPS = 24
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


class ByHand:
    """What the model asks of its device, for a processor."""

    dtype = np.dtype("float32")

    def create_generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)


class Told(NamedTuple):
    """What both come to."""

    losses: list[float]
    parameters: dict[str, np.ndarray]
    seconds: float | None
    peak: int | None


def pair() -> Pair:
    """The pair; docs/examples is on the path."""
    from safetensors import safe_open

    from numpy_gpt import checkpoint, corpus
    from numpy_gpt.model import Shape
    from numpy_gpt.tokenizer import Tokenizer
    from numpy_gpt.training import Corpus, Run, Settings

    _keep_the_heap()
    dm = dk.DeviceManager("numpy")
    text = corpus.read(corpus.BUILT_IN, dm)
    tokenizer = Tokenizer.of(text)
    shape = Shape(len(tokenizer.characters))
    begun = Run(dm, shape, Settings(), Corpus(text, tokenizer, shape.context))
    begun.advance()
    kept = tempfile.TemporaryDirectory()  # as long as the functions that read from it
    folder = Path(kept.name)
    checkpoint.save(folder, dm, begun, tokenizer)

    def facade() -> Told:
        run, _ = checkpoint.resume(folder, dm, text)
        with dm.measure() as training:
            losses = [run.advance() for _ in range(STEPS)]
        return Told(losses, _arrays(run), training.seconds, training.peak_memory)

    def by_hand() -> Told:
        with safe_open(folder / "model.safetensors", "np") as file:
            told = json.loads(file.metadata()["numpy_gpt"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        tokenizer, shape = Tokenizer(told["characters"]), Shape(**told["shape"])
        learnt = {name.removeprefix("model."): array for name, array in stored.items() if name.startswith("model.")}
        run: Any = Run(ByHand(), shape, Settings(**told["settings"]), Corpus(text, tokenizer, shape.context), learnt)
        run.generator.bit_generator.state = told["generator"]
        optimizer = run.optimizer
        optimizer.means = {name: stored[f"mean.{name}"] for name in learnt}
        optimizer.squares = {name: stored[f"square.{name}"] for name in learnt}
        optimizer.steps = told["step"]
        start = time.perf_counter()
        losses = [run.advance() for _ in range(STEPS)]
        seconds = time.perf_counter() - start
        return Told(losses, _arrays(run), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def same(ours: Told, theirs: Told) -> bool:
        assert kept.name
        arrays = ours.parameters
        return ours.losses == theirs.losses and all(np.array_equal(arrays[n], theirs.parameters[n]) for n in arrays)

    what = f"{STEPS} training steps of a GPT with {sum(p.size for p in _arrays(begun).values()):,} parameters, resumed"
    return Pair(what, facade, by_hand, same)


def _keep_the_heap() -> None:
    """Have glibc keep what is freed, for both ways alike and until the process ends; elsewhere nothing.

    Whether glibc gives freed memory back to the system between two steps depends on what happens to lie at the end of
    the heap. It was 17,500 page faults a turn or 35,000, a tenth of its time, and either way could be the one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, size in ((M_MMAP_THRESHOLD, 1 << 25), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 1 << 28)):
            mallopt(option, size)


def _arrays(run: Any) -> dict[str, np.ndarray]:
    return {name: parameter.data for name, parameter in run.model.parameters.items()}
