"""Streams and events of a simulated runtime, which has finished before it is asked."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["Event", "Stream"]


class Stream:
    """A queue of work that is always empty: work here is done when it was given."""

    def __init__(self, device: Any, *, default: bool = False) -> None:
        self.device = device
        self.device_index: int = device.index
        self._default = default

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stream):
            return False
        return self is other or (self._default and other._default and self.device == other.device)

    def __hash__(self) -> int:
        return hash(self.device)

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Event | None = None) -> Event:
        """A mark, a new one unless one is given."""
        recorded = Event() if event is None else event
        recorded.record(self)
        return recorded

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """All is done."""
        return True


class Event:
    """A moment on the host's clock: work here is done when it was given."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._timed = enable_timing
        self._at: float | None = None

    def record(self, stream: Any = None) -> None:
        """Now."""
        self._at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds until the other event."""
        if not (self._timed and end._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._at is None or end._at is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end._at - self._at) * 1000

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """All is done."""
        return True
