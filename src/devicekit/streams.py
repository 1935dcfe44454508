"""Streams and events for a runtime with one queue of work, by torch.cuda's names, so that the same code runs there.

What is given to such a device is done in the order in which it was given. So a stream has nothing to wait for but the
device, and which one is current is only remembered: in each thread for itself, as in torch.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from devicekit.errors import DeviceKitError

__all__ = ["NAMES", "OneQueue", "PlainEvent", "PlainStream"]

NAMES = ("Stream", "Event", "stream", "current_stream", "default_stream", "set_stream")
"""What a runtime with streams has, with the meaning that it has in torch.cuda."""


class OneQueue:
    """What torch.cuda has for streams; but one that becomes the current one does not make its device current.

    Args:
        synchronize: waits for a device.
        current_index: tells the current device; None: the first.
    """

    def __init__(self, synchronize: Callable[[int], None], current_index: Callable[[], int | None]) -> None:
        self.synchronize = synchronize
        self._current_index = current_index
        self._default: dict[int, PlainStream] = {}
        self._of_thread = _OfThread()

    def at(self, device: int | None) -> int:
        """The device's number; None: the current one."""
        return (self._current_index() if device is None else device) or 0

    def Stream(self, device: int | None = None, priority: int = 0) -> PlainStream:  # noqa: N802  # torch's name
        """A stream beside the others."""
        return PlainStream(self, self.at(device), priority)

    def Event(self, enable_timing: bool = False, blocking: bool = False) -> PlainEvent:  # noqa: N802  # torch's name
        """An event; waiting for it always blocks."""
        return PlainEvent(self, enable_timing)

    def default_stream(self, device: int | None = None) -> PlainStream:
        """The one that is current where no other was chosen."""
        at = self.at(device)
        return self._default.setdefault(at, PlainStream(self, at, 0))

    def current_stream(self, device: int | None = None) -> PlainStream:
        """The one that this thread has chosen."""
        chosen = self.chosen(self.at(device))
        return chosen[-1] if chosen else self.default_stream(device)

    def set_stream(self, stream: PlainStream | None) -> None:
        """Choose it, for this thread, until the end of the context around."""
        if stream is not None:
            self._checked(stream)
            self.chosen(stream.index)[-1:] = [stream]

    def stream(self, stream: PlainStream | None) -> AbstractContextManager[Any]:
        """A context in which it is chosen, which can be entered again; for None nothing changes."""
        return contextlib.nullcontext() if stream is None else self._checked(stream)

    def chosen(self, at: int) -> list[PlainStream]:
        """The streams that this thread is inside of, the innermost last."""
        return self._of_thread.chosen.setdefault(at, [])

    def _checked(self, stream: object) -> PlainStream:
        if not isinstance(stream, PlainStream) or stream.queue is not self:
            raise DeviceKitError(
                f"{stream!r:.80} is no stream of this device.", try_="what dm.create_stream() returned"
            )
        return stream


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.chosen: dict[int, list[PlainStream]] = {}


class PlainStream:
    """One of several names for the queue; as a context, it is the current one inside."""

    def __init__(self, queue: OneQueue, index: int, priority: int) -> None:
        self.queue = queue
        self.index = index
        self.priority = priority

    def __enter__(self) -> PlainStream:
        self.queue.chosen(self.index).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.chosen(self.index).pop()

    def wait_stream(self, stream: object) -> None:
        """Nothing: what was given before is done before."""

    def wait_event(self, event: object) -> None:
        """Nothing, for the same reason."""

    def record_event(self, event: PlainEvent | None = None) -> PlainEvent:
        """A mark behind all that was given so far, a new one unless one is given."""
        recorded = self.queue.Event() if event is None else event
        recorded.record(self)
        return recorded

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""
        self.queue.synchronize(self.index)

    def query(self) -> bool:
        """True: all is done, because this waits for it."""
        self.synchronize()
        return True


class PlainEvent:
    """A mark in the queue; with timing, the moment of the host's clock at which the device had done what was before."""

    def __init__(self, queue: OneQueue, enable_timing: bool) -> None:
        self._queue = queue
        self._timed = enable_timing
        self._index: int | None = None
        self._moment: float | None = None

    def record(self, stream: PlainStream | None = None) -> None:
        """Put the mark here; with timing this waits for the device."""
        self._index = self._queue.at(None) if stream is None else stream.index
        if self._timed:
            self.synchronize()
            self._moment = time.perf_counter()

    def wait(self, stream: object = None) -> None:
        """Nothing: what comes later is done later."""

    def synchronize(self) -> None:
        """Wait until the device has done what was before the mark; nothing without one, as in torch."""
        if self._index is not None:
            self._queue.synchronize(self._index)

    def query(self) -> bool:
        """True: all before it is done, because this waits for it."""
        self.synchronize()
        return True

    def elapsed_time(self, end_event: PlainEvent) -> float:
        """Milliseconds from this mark to the other.

        Raises:
            ValueError: one is without timing, or was not recorded; with torch's words (c10/core/impl/InlineEvent.h).
        """
        if not (self._timed and end_event._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._moment is None or end_event._moment is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end_event._moment - self._moment) * 1000
