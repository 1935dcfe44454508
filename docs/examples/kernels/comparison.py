"""The same graph on every backend that can be used here, timed, and held against NumPy in float64."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import devicekit as dk
from kernels.arrays import reference
from kernels.graph import Graph
from kernels.plan import Plan, plan
from kernels.program import Program
from kernels.steps import schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALLOWED", "Row", "Settings", "compare"]

ALLOWED = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""The largest difference that rounding explains, as a part of the reference's largest number."""


@dataclass(frozen=True)
class Settings:
    """How to run."""

    dtype: str | None = None
    """A key of ``ALLOWED``; None: what each device computes fastest."""
    repeat: int = 5
    fuse: bool = True


@dataclass(frozen=True)
class Row:
    """What became of one backend."""

    backend: str
    status: str
    """``ran``, ``wrong`` (it ran, and the difference is too large), ``failed`` or ``not usable``."""
    reason: str = ""
    """Why it did not run, or ran plainly; empty where all of it is compiled."""
    device: str = ""
    dtype: str = ""
    compiled: bool = False
    first: float | None = None
    """Seconds of the first run, with what is set up and compiled in it."""
    seconds: float | None = None
    """Of a run, the median."""
    peak_memory: int | None = None
    """Bytes; on a processor the resident set of the whole process. None: it cannot be told."""
    difference: float | None = None
    """The largest to the reference, as a part of the reference's largest number."""
    plan: Plan | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return asdict(self)


def compare(
    graph: Graph, inputs: Mapping[str, NDArray[Any]], settings: Settings, only: Sequence[str] = ()
) -> list[Row]:
    """A row for each backend, in devicekit's order of preference, or for those of ``only``.

    Raises:
        devicekit.UnknownDeviceError: a word of ``only`` is no device.
    """
    expected = reference(graph, inputs)
    machine = dk.info()
    usable = dk.available_backends()
    if only:
        return [_run(name, graph, inputs, expected, settings, machine) for name in dict.fromkeys(only)]
    return [
        _run(verdict.backend, graph, inputs, expected, settings, machine)
        if verdict.backend in usable
        else Row(verdict.backend, "not usable", _with_a_way_out(verdict.reason, verdict.fix))
        for verdict in dk.explain().verdicts
    ]


def _run(
    name: str,
    graph: Graph,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    settings: Settings,
    machine: Mapping[str, Any],
) -> Row:
    try:
        dm = _manager(name, settings.dtype)
    except dk.UnknownDeviceError:
        raise
    except dk.DeviceKitError as error:
        return Row(name, "not usable", _with_a_way_out(error.why or error.what, error.try_))
    row = Row(dm.backend, "failed", device=str(dm.device), dtype=_name(dm.dtype))
    numbers = schedule(graph, fuse=settings.fuse).most_numbers
    made = plan(dm, machine, numbers * dm.dtype.itemsize)
    row = replace(row, plan=made)
    if made.runs.value == 0:
        return replace(row, reason=f"it does not fit: {made.runs.reason}")
    try:
        with Program(graph, dm, workers=made.workers.value, fuse=settings.fuse) as program:
            return _measured(row, program, inputs, expected, settings.repeat)
    except (RuntimeError, MemoryError) as error:
        return replace(row, reason="out of memory" if dk.is_out_of_memory(error) else _first_line(error))
    finally:
        dm.empty_cache()


def _manager(name: str, dtype: str | None) -> dk.DeviceManager:
    dm = dk.DeviceManager(name, strict=True)
    if dtype is None or _name(dm.dtype) == dtype:
        return dm
    return dk.DeviceManager(name, dtype=dtype, strict=True)


def _measured(
    row: Row,
    program: Program,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    repeat: int,
) -> Row:
    dm, placed = program.dm, program.place(inputs)
    with dm.measure("first run") as first:
        outputs = program(placed)
    runs = []
    for _ in range(repeat):
        with dm.measure("run") as run:
            outputs = program(placed)
        runs.append(run)
    compilation = program.compilation  # asked now, for the compiler may have failed at the first run
    difference = _difference(outputs, expected)
    right = difference <= ALLOWED[row.dtype] if row.dtype in ALLOWED else True
    return replace(
        row,
        status="ran" if right else "wrong",
        reason=compilation.reason,
        compiled=compilation.compiled,
        first=first.seconds,
        seconds=statistics.median(run.seconds for run in runs if run.seconds is not None),
        peak_memory=max((run.peak_memory for run in runs if run.peak_memory is not None), default=None),
        difference=difference,
    )


def _difference(outputs: Mapping[str, Any], expected: Mapping[str, NDArray[Any]]) -> float:
    """Over all outputs; not a number anywhere counts as infinite."""
    worst = 0.0
    host = dk.DeviceManager("numpy")
    for name, wanted in expected.items():
        got = np.asarray(host.to(outputs[name]), dtype=np.float64)
        if not np.isfinite(got).all():
            return float("inf")
        worst = max(worst, float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    return worst


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _with_a_way_out(reason: str, fix: str) -> str:
    return f"{reason}; try: {fix}" if fix else reason


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
