"""Time one piece of work so that the figure means something: warmed up, synchronised, often enough, not for ever."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Measured", "Timing", "timed"]

LEAST = 0.02
"""Seconds of one sample at least: a clock and a synchronisation cost microseconds, and so do short kernels."""

MOST = 1 << 17
"""Runs in a sample; what is over so soon has been measured well enough."""


class Measured(Protocol):
    """What a measurement gives when it is over, as :class:`devicekit.measuring.Measurement`."""

    seconds: float | None
    peak_memory: int | None


@dataclass(frozen=True, slots=True)
class Timing:
    """The samples of one piece of work."""

    samples: tuple[float, ...]
    """Seconds of one run, each the mean of ``repeats`` runs."""
    repeats: int
    """Runs in a sample."""
    peak_memory: int | None
    """Bytes; None: it cannot be told."""
    cold: bool = False
    """The only sample is the first run, because its time was over with it."""

    @property
    def seconds(self) -> float:
        """Of one run: the median of the samples."""
        return statistics.median(self.samples)


class _Block:
    """The work, run some times over as one measured block; adds up what it cost."""

    def __init__(self, run: Callable[[], object], measure: Callable[[], AbstractContextManager[Any]]) -> None:
        self._run = run
        self._measure = measure
        self.spent = 0.0
        self.peak: int | None = None

    def __call__(self, repeats: int) -> float:
        with self._measure() as measured:
            for _ in range(repeats):
                self._run()
        seconds = float(measured.seconds)
        self.spent += seconds
        if measured.peak_memory is not None:
            self.peak = max(self.peak or 0, measured.peak_memory)
        return seconds


def timed(
    run: Callable[[], object],
    measure: Callable[[], AbstractContextManager[Any]],
    *,
    samples: int = 10,
    duration: float = math.inf,
) -> Timing:
    """Measure a piece of work.

    The first run pays for what a runtime sets up once and does not count. Then as many runs make a sample as take
    ``LEAST`` seconds. Nothing is begun that would end after ``duration``, going by what it took before; so a run that
    takes longer by itself is run once, and counts.

    Args:
        run: the work; it may return before a device has done it.
        measure: makes a context that waits for the device and gives a :class:`Measured`.
        samples: how many.
        duration: seconds for all of it.
    """
    block = _Block(run, measure)
    first = block(1)
    if block.spent + first > duration:
        return Timing((first,), 1, block.peak, cold=True)
    repeats, seconds = _enough(block, duration)
    found = [seconds / repeats]
    while len(found) < samples and block.spent + seconds <= duration:
        seconds = block(repeats)
        found.append(seconds / repeats)
    return Timing(tuple(found), repeats, block.peak)


def _enough(block: _Block, duration: float) -> tuple[int, float]:
    """How many runs make a sample, and the seconds of the first sample of so many."""
    repeats = 1
    while True:
        seconds = block(repeats)
        # A tenth more, lest the next sample fall short by a hair; at most tenfold, for the first runs may mislead.
        more = min(10 * repeats, math.ceil(1.1 * repeats * LEAST / max(seconds, 1e-9)))
        if seconds >= LEAST or repeats == MOST or block.spent + seconds / repeats * more > duration:
            return repeats, seconds
        repeats = min(max(more, repeats + 1), MOST)
