"""A runtime with the names of torch.cuda that works as late as it may, or when it likes.

What is given to a stream is only done when somebody waits for it; with a seed, some of it at random moments as well. So
whoever reads before it was done, writes where it is still to be read, or forgets that one stream does not wait for the
other, gets wrong numbers. Tensors lie on the CPU; those that the runtime made are its own.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NOBODYS = 0xA5
"""What memory holds that somebody else has left."""


class Mark:
    """A place in a stream's work."""

    def __init__(self) -> None:
        self.reached = False


class LateEvent:
    """A mark that can be set again."""

    def __init__(self, runtime: LateRuntime) -> None:
        self.runtime = runtime
        self.at: tuple[LateStream, Mark] | None = None

    def record(self, stream: LateStream) -> None:
        with self.runtime.asked():
            self.at = stream, stream.mark()

    def wait(self, stream: LateStream) -> None:
        with self.runtime.asked():
            if self.at is not None:
                there, mark = self.at
                stream.give(lambda: there.work_until(mark))

    def synchronize(self) -> None:
        with self.runtime.asked():
            if self.at is not None:
                there, mark = self.at
                there.work_until(mark)


class LateStream:
    """Work in order, none of it done yet."""

    def __init__(self, runtime: LateRuntime, device: torch.device) -> None:
        self.runtime = runtime
        self.device = device
        self.waiting: deque[Callable[[], object]] = deque()
        self.zeal = runtime.moods.random() if runtime.moods else 0.0

    def give(self, work: Callable[[], object]) -> None:
        self.waiting.append(work)

    def mark(self) -> Mark:
        made = Mark()
        self.give(lambda: setattr(made, "reached", True))
        return made

    def work(self, most: int | None = None) -> None:
        done = 0
        while self.waiting and done != most:
            self.waiting.popleft()()
            done += 1

    def work_until(self, mark: Mark) -> None:
        while not mark.reached:
            self.waiting.popleft()()

    def record_event(self) -> LateEvent:
        event = LateEvent(self.runtime)
        event.record(self)
        return event

    def wait_stream(self, other: LateStream) -> None:
        other.record_event().wait(self)

    def synchronize(self) -> None:
        with self.runtime.asked():
            self.work()


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, LateStream] = {}


class LateRuntime:
    """Two devices. ``contexts`` are those that were given a context, as CUDA 12 gives one to whatever is current."""

    def __init__(self, seed: int | None = None, *, pinned: int = 1000, room: int = 1000, bfloat16: bool = True) -> None:
        self.moods = None if seed is None else random.Random(seed)
        self.torch = LateTorch(self, pinned)
        self.room = room
        """How many tensors the device has memory for."""
        self.bfloat16 = bfloat16
        self.contexts: set[int] = set()
        self.casts: set[tuple[torch.dtype, torch.dtype]] = set()
        """Kernels that ran on the device."""
        self.made_in: list[LateStream] = []
        """The streams that memory was made in."""
        self._lock = threading.RLock()
        self._of_thread = _OfThread()
        self._default = [LateStream(self, torch.device("cuda", index)) for index in range(2)]
        self._streams = list(self._default)
        self._memory: dict[int, Any] = {}

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around whatever is asked: the current device gets a context, and some work may be done."""
        with self._lock, torch._C.DisableTorchFunction():
            self.contexts.add(self._of_thread.device)
            if self.moods is not None:
                for stream in self.moods.sample(self._streams, len(self._streams)):
                    if self.moods.random() < stream.zeal:
                        stream.work(self.moods.randint(1, 3))
            yield

    def settle(self) -> None:
        """All that is still to be done, in the worst order: what was given first to the default streams comes last."""
        with self._lock, torch._C.DisableTorchFunction():
            for stream in reversed(self._streams):
                stream.work()

    # -- torch.cuda's names --------------------------------------------------------------------------
    def is_bf16_supported(self) -> bool:
        return self.bfloat16

    def Event(self) -> LateEvent:
        return LateEvent(self)

    def Stream(self, device: torch.device) -> LateStream:
        with self.device(device), self.asked():
            self._streams.append(LateStream(self, device))
            return self._streams[-1]

    def current_stream(self, device: torch.device) -> LateStream:
        return self._of_thread.streams.get(device.index) or self._default[device.index]

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self._of_thread.device = self._of_thread.device, device.index
        self.contexts.add(device.index)
        try:
            yield
        finally:
            self._of_thread.device = before

    def _set_stream(self, stream: LateStream) -> None:
        if self._of_thread.device != stream.device.index:
            self._of_thread.device = stream.device.index
            self.contexts.add(stream.device.index)
        self._of_thread.streams[stream.device.index] = stream

    @contextlib.contextmanager
    def stream(self, stream: LateStream) -> Iterator[None]:
        before = self.current_stream(torch.device("cuda", self._of_thread.device))
        there = self.current_stream(stream.device)
        self._set_stream(stream)
        try:
            with _Copies(self, stream):
                yield
        finally:
            self._set_stream(there)
            self._set_stream(before)

    # -- memory ----------------------------------------------------------------------------------
    def allocate(self, count: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Memory of the device, in which the one who had it before still works, in the stream that it was freed in."""
        with self.device(device), self.asked():
            if not self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            self.room -= 1
            made = torch.full((count * dtype.itemsize,), NOBODYS, dtype=torch.uint8)
            stream = self.current_stream(device)
            stream.give(lambda: made.fill_(NOBODYS))
            self.made_in.append(stream)
            self._memory[made.untyped_storage().data_ptr()] = made
            return made.view(dtype)

    def is_mine(self, tensor: Any) -> bool:
        """The tensor lies on a device."""
        return tensor.untyped_storage().data_ptr() in self._memory

    def copy(self, stream: LateStream, target: Any, source: Any, non_blocking: bool = False) -> Any:
        """As torch copies: late between two places of the device, and from the host where that is allowed."""
        with self.asked():
            kernel = self.is_mine(target) and self.is_mine(source)
            on_host = not self.is_mine(target) and not self.is_mine(source)
            if kernel:
                self.casts.add((source.dtype, target.dtype))
            if not on_host and (kernel or (non_blocking and source.dtype is target.dtype)):
                stream.give(lambda: target.copy_(source))
                return target
            if not on_host:
                stream.work()
            return target.copy_(source)


class _Copies(TorchFunctionMode):
    """While it is entered, this thread's copies go to a stream."""

    def __init__(self, runtime: LateRuntime, stream: LateStream) -> None:
        super().__init__()
        self._runtime = runtime
        self._stream = stream

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_:
            return self._runtime.copy(self._stream, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class LateTorch:
    """torch, with so many pinned buffers; ``on_host`` are the bytes that were asked for, pinned and not."""

    def __init__(self, runtime: LateRuntime, pinned: int) -> None:
        self._runtime = runtime
        self._left = pinned
        self.pinned = 0
        self.ordinary = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, size: int, *, pin_memory: bool = False, **options: Any) -> Any:
        made = torch.empty(size, **options)
        if not pin_memory:
            self.ordinary += made.nbytes
            return made
        with self._runtime.asked():
            if not self._left:
                raise RuntimeError("CUDA error: out of memory")
            self._left -= 1
            self.pinned += made.nbytes
        return made
