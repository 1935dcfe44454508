"""The way of bytes from the host onto a device: through small buffers, so that no second copy of all of it exists.

A runtime with pinned memory and streams copies out of one buffer while the other is being filled; any other copies when
it is told to. Buffers are bounded, whatever is loaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Staging", "StreamStaging", "copy_alone"]

log = logging.getLogger("devicekit")

ALONE = 32_704
"""Elements that torch casts on the calling thread: from at::internal::GRAIN_SIZE (32768) on it starts others."""


def copy_alone(torch: Any, target: Any, source: Any) -> None:
    """Copy or cast a flat tensor on the host on this thread alone, in pieces that torch does not spread over others.

    OpenMP would start as many for each of our threads as there are processors; ``torch.set_num_threads`` would keep it
    from that, but it also sets the default of every thread that starts later in this process. All pieces go in one
    call, for after each one the threads would fight over Python's lock: that was a quarter of the time of a cast.
    """
    if target.numel() <= ALONE:
        target.copy_(source)
    else:
        torch._foreach_copy_(target.split(ALONE), source.split(ALONE))


class Staging:
    """One buffer in ordinary memory; ``send`` returns when the copy is made.

    It takes at most twice ``nbytes`` on the host, the second half where something is cast.
    """

    # Two threads that use torch.mps at once end the process (pytorch/pytorch#197805); reading and casting may overlap.
    _one_at_a_time = threading.Lock()

    def __init__(self, torch: Any, nbytes: int) -> None:
        self.torch = torch
        self.nbytes = nbytes
        self._buffer: Any = None
        self._cast: Any = None

    def buffer(self) -> Any:
        """A flat uint8 tensor on the host, free to be written to until ``sent``."""
        if self._buffer is None:
            self._buffer = self._ordinary()
        return self._buffer

    def _ordinary(self) -> Any:
        return self.torch.empty(self.nbytes, dtype=self.torch.uint8, device="cpu")

    def send(self, target: Any, staged: Any) -> None:
        """Copy a flat part of the buffer, seen in the file's dtype, into a flat tensor on the device of any dtype."""
        if staged.dtype is target.dtype:
            self._copy(target, staged)
            return
        step = self.nbytes // target.dtype.itemsize
        for into, part in zip(target.split(step), staged.split(step), strict=True):
            self._copy(into, self._cast_here(part, target.dtype))

    def _copy(self, target: Any, source: Any) -> None:
        with self._one_at_a_time:
            target.copy_(source)

    def _cast_here(self, part: Any, dtype: Any) -> Any:
        if self._cast is None:
            self._cast = self._ordinary()
        cast = self._cast[: part.numel() * dtype.itemsize].view(dtype)
        copy_alone(self.torch, cast, part)
        return cast

    def sent(self) -> None:
        """All that the buffer holds has been given to ``send``."""

    def finish(self) -> None:
        """Wait until everything has arrived."""


class _Slot(NamedTuple):
    """A pinned buffer, and the mark behind the last copy out of it."""

    memory: Any
    arrived: Any


class StreamStaging(Staging):
    """Two pinned buffers and a side stream, for a runtime that answers like torch.cuda.

    Made by the thread in whose current stream the tensors were made, for their memory may still be in use there; it
    may be used and finished by another. ``finish`` has the host wait, so no tensor needs ``record_stream``.

    The device is the current one in everything that is asked of the runtime: a new thread starts with device 0, which
    would be given a context of half a GB by events, pinned memory, and by the end of ``stream()`` (set_stream goes
    back to device 0 with cudaSetDevice; the end of ``device()`` does not).
    """

    def __init__(
        self, torch: Any, nbytes: int, runtime: Any, device: Any, allocate: Callable[[int, Any, Any], Any]
    ) -> None:
        super().__init__(torch, nbytes)
        self._runtime = runtime
        self._device = device
        self._allocate = allocate
        self._slots: list[_Slot] = []
        """The one in use is the last, the one that was sent first is the first."""
        self._most = 2
        self._uncast: Any = None
        self._castable: frozenset[Any] | None = None
        with runtime.device(device):
            self._stream = runtime.Stream(device)
            self._stream.wait_stream(runtime.current_stream(device))

    # -- on the host -------------------------------------------------------------------------------
    def buffer(self) -> Any:
        """The pinned one that was sent first, after its copies have arrived; without any, ordinary memory."""
        with self._runtime.device(self._device):
            if not self._pinned_another() and self._slots:
                self._slots.append(self._slots.pop(0))
                self._slots[-1].arrived.synchronize()
        return self._slots[-1].memory if self._slots else super().buffer()

    def _pinned_another(self) -> bool:
        if len(self._slots) == self._most:
            return False
        empty, uint8 = self.torch.empty, self.torch.uint8
        try:
            memory = empty(self.nbytes, dtype=uint8, device="cpu", pin_memory=True)
        except RuntimeError:  # locked memory is limited, and not every runtime has it
            log.debug("no pinned memory for %s", self._device, exc_info=True)
            self._most = len(self._slots)
            return False
        self._slots.append(_Slot(memory, self._runtime.Event()))
        return True

    # -- to the device -----------------------------------------------------------------------------
    def send(self, target: Any, staged: Any) -> None:
        """Queue the copy, where the buffer is pinned: it is read until ``arrived``."""
        later = bool(self._slots)
        with self._runtime.device(self._device):
            if staged.dtype is target.dtype:
                with self._runtime.stream(self._stream):
                    target.copy_(staged, non_blocking=later)
                return
            # torch casts a copy between devices on the host first, and then waits for it.
            uncast = self._room_for(staged, target)
            with self._runtime.stream(self._stream):
                if uncast is None:
                    super().send(target, staged)
                else:
                    uncast.copy_(staged, non_blocking=later)
                    target.copy_(uncast)

    def _room_for(self, staged: Any, target: Any) -> Any:
        """A place on the device to cast from; None: it cannot cast this, or is full.

        Not made in the side stream: torch keeps what is freed for the stream that it was made in, in segments of 20
        MiB, and a device has 32 streams.
        """
        if self._castable is None:
            self._castable = self._what_it_casts()
        if not {staged.dtype, target.dtype} <= self._castable:
            return None
        if self._uncast is None:
            try:
                self._uncast = self._allocate(self.nbytes, self.torch.uint8, self._device)
            except RuntimeError:
                log.debug("%s has no room for a cast", self._device, exc_info=True)
                self._castable = frozenset()
                return None
            self._stream.wait_stream(self._runtime.current_stream(self._device))
        return self._uncast[: staged.nbytes].view(staged.dtype)

    def _what_it_casts(self) -> frozenset[Any]:
        torch = self.torch
        always = frozenset({torch.float32, torch.float16})
        return always | {torch.bfloat16} if self._runtime.is_bf16_supported() else always

    def sent(self) -> None:
        """Mark the end of this buffer's copies in the stream."""
        if self._slots:
            with self._runtime.device(self._device):
                self._slots[-1].arrived.record(self._stream)

    def finish(self) -> None:
        """Wait for the stream, and let the buffers go."""
        with self._runtime.device(self._device):
            self._stream.synchronize()
        self._slots.clear()
        self._uncast = None
