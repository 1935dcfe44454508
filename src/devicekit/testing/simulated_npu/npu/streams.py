"""``torch.npu.streams``: streams and events of a device that has finished before it is asked."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from devicekit.testing.simulated_npu.machine import NAME, device_index, machine

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "set_stream",
    "stream",
]

Device = torch.device | str | int | None

_DEVICE_TYPE = 20  # PrivateUse1 in c10/core/DeviceType.h


class Event(torch.Event):
    """A point in time; ``elapsed_time`` measures the host's clock."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, *_: Any, **__: Any) -> Event:
        """Make an event; the arguments are those of torch_npu."""
        return super().__new__(cls, NAME, enable_timing=enable_timing, blocking=blocking)

    def __init__(self, enable_timing: bool = False, *_: Any, **__: Any) -> None:
        self._timed = enable_timing
        self._at: float | None = None

    def record(self, stream: Any = None) -> None:
        """Remember now."""
        self._at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """All work before this event is done."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds between two recorded events that were made with ``enable_timing=True``."""
        if not (self._timed and end_event._timed):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if self._at is None or end_event._at is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        milliseconds: float = (end_event._at - self._at) * 1e3
        return milliseconds


class Stream(torch.Stream):
    """A queue of work that is always empty. Number 0 is the default stream."""

    _numbers = itertools.count(1)

    def __new__(cls, device: Device = None, priority: int = 0, *, stream_id: int | None = None) -> Stream:
        """Make a stream, a new one unless ``stream_id`` is given; initialises the device."""
        machine().start()
        number = next(cls._numbers) if stream_id is None else stream_id
        return super().__new__(cls, number, device_index(device), _DEVICE_TYPE, priority=priority)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take the arguments in; all is done by ``__new__``."""

    def query(self) -> bool:
        """All work of this stream is done."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Event:
        """Record an event, a new one unless one is given."""
        recorded: Event = event if event is not None else Event()
        recorded.record(self)
        return recorded


class _OfThread(threading.local):
    current: Any = None


_of_thread = _OfThread()


def default_stream(device: Device = None) -> Stream:
    """The stream that work goes to unless told otherwise."""
    return Stream(device, stream_id=0)


def current_stream(device: Device = None) -> Any:
    """The stream that was set last, in this thread."""
    return _of_thread.current or default_stream(device)


def set_stream(stream: Any) -> None:
    """Make this the current stream, in this thread."""
    _of_thread.current = stream


@contextlib.contextmanager
def stream(stream: Any) -> Iterator[None]:
    """Make a stream the current one for a block; None changes nothing."""
    before = current_stream()
    set_stream(before if stream is None else stream)
    try:
        yield
    finally:
        set_stream(before)


StreamContext = stream
