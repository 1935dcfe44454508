"""Which number formats a device computes: what its backend claims, and what a kernel says to the claim.

A claim is about matrix products, for they are what a format is chosen for:

* ``native``: they run on the device's own units for the format.
* ``emulated``: they run through another format, or, though narrower than float32, far slower than it.
* ``no``: they raise, the values cannot be stored, or nobody says that they can.

tf32 is a way to compute float32, so there ``no`` means that allowing it changes nothing. int4 is for weights only.
"""

from __future__ import annotations

import functools
import logging
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devicekit.backend import Backend
from devicekit.errors import DeviceKitError, first_line

__all__ = ["EMULATED", "FORMATS", "NATIVE", "NO", "Trial", "attempt", "claims", "supports"]

log = logging.getLogger("devicekit")

FORMATS = ("float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8", "int4")
"""The words, widest first."""
NATIVE, EMULATED, NO = "native", "emulated", "no"

FLOAT8 = ("float8", "float8_e4m3fn", "float8_e5m2")
"""What the row float8 is about: the types of the Open Compute Project. A backend with others names them one by one."""
WHOLE = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64", "complex32", "complex64", "complex128",
)  # fmt: skip
"""Dtypes that are no question of speed, and so are there wherever they can be stored."""


# -- what is claimed -------------------------------------------------------------------------------
def claims(backend: Backend, index: int) -> dict[str, str]:
    """Format, or the name of a dtype, to its word; what is missing the backend cannot tell."""
    told = backend.precisions(index)
    return {str(name): word for name, word in told.items() if word in (NATIVE, EMULATED, NO)}


def supports(backend: Backend, index: int, dtype: object) -> str:
    """The word for a format or a dtype.

    Raises:
        DeviceKitError: it is neither.
    """
    if isinstance(dtype, str) and dtype in FORMATS:
        return claims(backend, index).get(dtype, NO)
    made = _dtype(backend, dtype)
    name = str(getattr(made, "name", made)).removeprefix("torch.")
    told = claims(backend, index)
    if name in told:
        return told[name]
    if name in FLOAT8:
        return told.get("float8", NO)
    return NATIVE if name in WHOLE and backend.storable(made) is made else NO


def _dtype(backend: Backend, given: object) -> Any:
    try:
        made = backend.as_dtype(given)
    except Exception as exc:
        raise _no_format(given) from exc
    if made is None:
        raise _no_format(given)
    return made


def _no_format(given: object) -> DeviceKitError:
    return DeviceKitError(f"{given!r} is no number format.", try_=f"a dtype, or one of {', '.join(FORMATS)}")


# -- what a kernel says ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Trial:
    """A product that was tried on a device."""

    ran: bool
    """It ran and was right; for tf32 also: it was tf32."""
    reason: str = ""
    """Why not: the runtime's first line, or what was wrong."""
    speed: float | None = None
    """Times as fast as float32; None: not measured."""


SMALL, LARGE = 256, 2048
"""Rows of the smallest and the largest matrix."""
ENOUGH = 1e-3
"""Seconds: what takes that long is not the starting of a kernel. Slow formats are slower by 200 (measured), no more."""
TIMED = 0.05
"""Seconds for a measurement of at least five rounds; slow formats get ten times as many for fewer."""

# Largest error, as a part of the largest number. Accumulating and rounding of the result; the operands are exact.
TOLERANCE = {
    "float64": 1e-12, "float32": 1e-2, "tf32": 1e-2, "bfloat16": 3e-2, "float16": 1e-2,
    "float8": 3e-2, "int8": 0.0, "int4": 3e-2,
}  # fmt: skip


def attempt(backend: Backend, index: int, form: str, *, timed: bool = True) -> Trial:
    """Run a product in this format, compare its result and time it; whatever is raised is the reason why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental kernels and old switches
        try:
            wrong = _what_is_wrong(backend, index, form)
        except Exception as exc:
            return Trial(False, _in_words(exc))
        if wrong or form == "float32" or not timed:
            return Trial(not wrong, wrong)
        try:
            return Trial(True, speed=_speed(backend, index, form))
        except Exception:  # it ran once; that it could not be timed is no contradiction
            log.debug("%s could not be timed on %s", form, backend.device(index), exc_info=True)
            return Trial(True)


def _in_words(exc: BaseException) -> str:
    """The first line of what was raised, cut: torch lists all that it has been built with."""
    return textwrap.shorten(f"{type(exc).__name__}: {first_line(exc)}", 200, placeholder=" ...")


def _what_is_wrong(backend: Backend, index: int, form: str) -> str:
    dtype = getattr(backend.torch, form, None)
    if dtype is not None and backend.storable(dtype) is not dtype:  # a runtime may compute it on the CPU, unasked
        return f"values of it are kept as {backend.storable(dtype)}"
    error = _error(backend, index, form)
    if not error <= TOLERANCE[form]:  # so that NaN is wrong, too
        return f"it computes wrong numbers, off by {error:.2g} of the largest"
    if form == "tf32" and error < 8 * _error(backend, index, "float32"):  # 10 bits against 23 make it a thousand
        return "allowing it changes nothing: the product is as exact as float32's"
    return ""


def _error(backend: Backend, index: int, form: str) -> float:
    """The largest error of a product, as a part of the largest number in it."""
    a, b = _operands(backend, index, form, SMALL)
    run = _on_device(backend, index, form, a, b)
    exact = a.double() @ (b.double() - 8 if form == "int4" else b.double()).t()
    off = run().cpu().double() - exact
    return float(off.abs().max() / exact.abs().max())


def _operands(backend: Backend, index: int, form: str, size: int) -> tuple[Any, Any]:
    """Two matrices on the CPU, in what the product of this format takes (:mod:`devicekit.products`)."""
    torch = backend.torch
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (size, size)
    if form == "int8":
        a, b = (torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator) for _ in range(2))
        return a, b
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    if form == "int4":
        return drawn.to(torch.bfloat16), torch.randint(0, 16, shape, dtype=torch.int32, generator=generator)
    dtype = _float8(backend, index) if form == "float8" else {"tf32": "float32"}.get(form, form)
    other = torch.randn(shape, dtype=torch.float64, generator=generator)
    return drawn.to(getattr(torch, dtype)), other.to(getattr(torch, dtype))


def _float8(backend: Backend, index: int) -> str:
    """The type that the backend names as there, else the common one."""
    told = claims(backend, index)
    named = (name for name, word in told.items() if name.startswith("float8_e4m3") and word != NO)
    return next(named, "float8_e4m3fn")


def _on_device(backend: Backend, index: int, form: str, a: Any, b: Any) -> Callable[[], Any]:
    device = backend.device(index)
    left, right = (backend.move(x, device, x.dtype) for x in (a, b))
    return backend.product(form, left, right, index)


def _speed(backend: Backend, index: int, form: str) -> float:
    """How many times as fast as float32, with matrices for which that one needs long enough to be compared."""

    def ready(form: str, size: int) -> Callable[[], float]:
        run = _on_device(backend, index, form, *_operands(backend, index, form, size))
        timed = functools.partial(_seconds, backend, index, run)
        timed()  # the first is slower than the others
        return timed

    size = SMALL
    while min((float32 := ready("float32", size))() for _ in range(3)) < ENOUGH and size < LARGE:
        size *= 2
    timed = ready(form, size)
    taken: list[tuple[float, float]] = []  # one after the other, so that both meet the same neighbours
    while sum(map(sum, taken)) < (TIMED if len(taken) >= 5 else 10 * TIMED) and len(taken) < 20:
        taken.append((float32(), timed()))
    return min(one for one, _ in taken) / min(other for _, other in taken)


def _seconds(backend: Backend, index: int, run: Callable[[], Any]) -> float:
    backend.synchronize(index)
    start = time.perf_counter()
    run()
    backend.synchronize(index)
    return time.perf_counter() - start
