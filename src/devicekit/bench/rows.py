"""Measure row after row on a device. What cannot be measured is a row with the reason, and not the end."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from devicekit.bench.cases import Case, Settings, cases
from devicekit.bench.reasons import in_one_line
from devicekit.bench.stage import Stage
from devicekit.bench.timing import Timing, timed
from devicekit.errors import DeviceKitError
from devicekit.memory import is_out_of_memory

__all__ = ["FAILED", "LEFT_OUT", "MEASURED", "OUT_OF_MEMORY", "Row", "Timer", "measured", "rows"]

MEASURED, OUT_OF_MEMORY, FAILED, LEFT_OUT = "measured", "out_of_memory", "failed", "left_out"

PART = 0.5
"""Of the free memory, for a row whose sizes nobody asked for."""

Timer = Callable[..., Timing]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the results."""

    device: str
    kind: str
    dtype: str
    sizes: dict[str, int]
    words: str
    """The sizes for people."""
    status: str
    """``measured``, ``out_of_memory``, ``failed`` or ``left_out``."""
    reason: str = ""
    """Why it was not measured."""
    notes: tuple[str, ...] = ()
    """What to know about the figures."""
    seconds: float | None = None
    """Of one run: the median of the samples."""
    fastest: float | None = None
    slowest: float | None = None
    samples: int = 0
    repeats: int = 0
    """Runs in a sample."""
    peak_memory: int | None = None
    """Bytes, what was there before included; on a processor the resident set. None: it cannot be told."""
    rates: dict[str, float] = field(default_factory=dict)
    """``gigabytes_per_second`` (10**9 bytes, read and written), ``teraflops_per_second``, ``tokens_per_second``."""

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return asdict(self)


def rows(label: str, stage: Stage, settings: Settings, timer: Timer = timed) -> Iterator[tuple[str, Callable[[], Row]]]:
    """For each row what it is, in words, and a function that measures it."""
    for case, reason in cases(stage, settings):
        row = Row(label, case.kind, case.dtype, case.sizes, case.words, LEFT_OUT, reason)
        measure = functools.partial(measured, label, stage, case, settings, timer)
        yield f"{label} {case.kind} {case.dtype}", functools.partial(_left_out, row) if reason else measure


def _left_out(row: Row) -> Row:
    return row


def measured(label: str, stage: Stage, case: Case, settings: Settings, timer: Timer = timed) -> Row:
    """The row of a case, smaller than it was where memory is short and nobody asked for its size."""
    case, notes = _fitting(case, stage, settings)
    row = functools.partial(Row, label, case.kind, case.dtype, case.sizes, case.words)
    try:
        with stage.backend.keeping_free(0.0, stage.device, stage.index), stage.quiet():
            timing = timer(case.prepare(stage), stage.measure, samples=settings.iterations, duration=settings.duration)
    except (RuntimeError, TypeError, ValueError, MemoryError, OSError, DeviceKitError) as exc:
        status = OUT_OF_MEMORY if is_out_of_memory(exc) else FAILED
        return row(status, in_one_line(exc), notes)
    finally:
        _clean(stage)
    if timing.cold:
        notes += (f"one run took all of its {settings.duration:g} s, so it is the first one and not warmed up",)
    return row(
        MEASURED,
        notes=notes,
        seconds=timing.seconds,
        fastest=min(timing.samples),
        slowest=max(timing.samples),
        samples=len(timing.samples),
        repeats=timing.repeats,
        peak_memory=timing.peak_memory,
        rates=_rates(case, timing.seconds),
    )


def _fitting(case: Case, stage: Stage, settings: Settings) -> tuple[Case, tuple[str, ...]]:
    """The largest of the smaller ones that should fit, and in words what was made smaller and why."""
    given = {"batch": settings.batch_sizes, "seq": settings.seq_lengths, "hidden": settings.hidden_sizes}
    asked = any(sizes and name in case.sizes for name, sizes in given.items())
    available = None if asked else _available(stage)
    if available is None:
        return case, ()
    found = case
    while found.nbytes > PART * available:
        smaller = found.smaller()
        if smaller is None:
            break
        found = smaller
    if found is case:
        return case, ()
    need, free = (f"{count / 2**30:.1f} GiB" for count in (case.nbytes, available))
    return found, (f"made smaller: {case.words} needs about {need}, and {free} are free",)


def _available(stage: Stage) -> int | None:
    with contextlib.suppress(Exception):  # a figure that is missing is no reason to fall
        return stage.backend.memory_stats(stage.index).available
    return None


def _clean(stage: Stage) -> None:
    """So that every row starts from the same memory."""
    gc.collect()  # what lies in circles is freed by nothing else
    with contextlib.suppress(RuntimeError):  # a device that a row has broken says so in the next one
        stage.backend.empty_cache(stage.index)


def _rates(case: Case, seconds: float) -> dict[str, float]:
    amounts = {
        "gigabytes_per_second": case.moved / 1e9,
        "teraflops_per_second": case.flops / 1e12,
        "tokens_per_second": float(case.tokens),
    }
    return {name: amount / max(seconds, 1e-12) for name, amount in amounts.items() if amount}
