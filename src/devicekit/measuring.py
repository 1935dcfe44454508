"""Time a block that gives work to a device: the clock starts and stops when the device has nothing to do.

A runtime's events would leave out what starts the work, but they see one stream only, and say 0 for a block that works
in another; so the wall clock is read between two synchronisations of the whole device.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from devicekit.backend import Backend

__all__ = ["Measurement"]

_running: list[Measurement] = []
"""A device has one peak, and each of them starts it anew."""


class Measurement:
    """A context; its figures are there when it is over."""

    __slots__ = ("_backend", "_highest", "_index", "_start", "name", "peak_memory", "seconds")

    name: str
    seconds: float | None
    """Of the wall clock, from an idle device to an idle device; None: not over yet."""
    peak_memory: int | None
    """Bytes allocated at most, what was there before included; on the CPU the resident set. None: it cannot be told."""

    def __init__(self, backend: Backend, index: int, name: str | None) -> None:
        self._backend = backend
        self._index = index
        self._highest: list[int] = []
        self.name = name or "block"
        self.seconds = self.peak_memory = None

    def __enter__(self) -> Measurement:
        self._backend.synchronize(self._index)
        self._note_for_all()
        self._highest.clear()
        self.seconds = self.peak_memory = None
        _running.append(self)
        with contextlib.suppress(Exception):  # a figure that is missing is no reason to fall
            self._backend.reset_peak_memory(self._index)
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self._backend.synchronize(self._index)
        except Exception:
            if kind is None:
                raise  # what went wrong on the device went wrong in the block
        finally:
            self.seconds = time.perf_counter() - self._start
            self._note_for_all()
            _running.remove(self)
            self.peak_memory = max(self._highest, default=None)

    def _note_for_all(self) -> None:
        """Whoever measures on this device learns how high it went so far."""
        with contextlib.suppress(Exception):
            peak = self._backend.memory_stats(self._index).peak
            for each in _running:
                if peak is not None and (each._backend, each._index) == (self._backend, self._index):
                    each._highest.append(peak)

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.name}: not over"
        memory = "" if self.peak_memory is None else f", {self.peak_memory / 2**20:,.0f} MiB at most"
        return f"{self.name}: {self.seconds:.6g} s{memory}"
