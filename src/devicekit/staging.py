"""The way of bytes from the host onto a device: through small buffers, so that no second copy of all of it exists.

A runtime with pinned memory and streams copies out of one buffer while the other is being filled; any other copies when
it is told to. Buffers are bounded, whatever is loaded.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["Staging", "StreamStaging"]

log = logging.getLogger("devicekit")


class Staging:
    """One buffer in ordinary memory; ``send`` returns when the copy is made."""

    def __init__(self, torch: Any, nbytes: int) -> None:
        self.torch = torch
        self.nbytes = nbytes
        self._buffer: Any = None

    def buffer(self) -> Any:
        """A flat uint8 tensor on the host, free to be written to until ``sent``."""
        if self._buffer is None:
            self._buffer = self.torch.empty(self.nbytes, dtype=self.torch.uint8, device="cpu")
        return self._buffer

    def send(self, target: Any, staged: Any) -> None:
        """Copy a flat part of the buffer, seen in the file's dtype, into a flat tensor on the device of any dtype."""
        target.copy_(staged)

    def sent(self) -> None:
        """All that the buffer holds has been given to ``send``."""

    def finish(self) -> None:
        """Wait until everything has arrived."""


class _Slot:
    """A pinned buffer, a place on the device for what is cast there, and the mark behind the last copy out of it."""

    def __init__(self, memory: Any, arrived: Any) -> None:
        self.memory = memory
        self.arrived = arrived
        self.uncast: Any = None


class StreamStaging(Staging):
    """Two pinned buffers and a side stream, for a runtime that answers like torch.cuda.

    Made and finished by the thread for whose tensors it works: the copies wait for what its current stream does with
    their memory before, and ``finish`` has the host wait for the copies, so no tensor needs ``record_stream``.

    What is narrower or rarer than the three dtypes that every such device computes is cast on the host.
    """

    def __init__(self, torch: Any, nbytes: int, runtime: Any, device: Any) -> None:
        super().__init__(torch, nbytes)
        self._runtime = runtime
        self._device = device
        self._cast_there = {torch.float32, torch.float16, torch.bfloat16}
        self._stream = runtime.Stream(device)
        self._stream.wait_stream(runtime.current_stream(device))
        self._slots: list[_Slot] = []
        self._turn = 0

    def buffer(self) -> Any:
        """The buffer whose copies have arrived, or have to be waited for the shortest time."""
        if len(self._slots) < 2:
            self._slots.append(_Slot(self._pinned(), self._runtime.Event()))
            self._turn = len(self._slots) - 1
        else:
            self._turn = 1 - self._turn
            self._slot.arrived.synchronize()
        return self._slot.memory

    @property
    def _slot(self) -> _Slot:
        return self._slots[self._turn]

    def _pinned(self) -> Any:
        empty, uint8 = self.torch.empty, self.torch.uint8
        try:
            with self._runtime.stream(self._stream):  # the device is current, so no other one gets a context
                return empty(self.nbytes, dtype=uint8, device="cpu", pin_memory=True)
        except (RuntimeError, NotImplementedError):  # locked memory is limited, and not every runtime has it
            log.debug("no pinned memory for %s", self._device, exc_info=True)
            return empty(self.nbytes, dtype=uint8, device="cpu")

    def send(self, target: Any, staged: Any) -> None:
        """Queue the copy; the buffer is read until ``arrived``."""
        cast = staged.dtype is not target.dtype
        with self._runtime.stream(self._stream):
            if cast and staged.dtype not in self._cast_there:
                target.copy_(staged.to(target.dtype))
            elif not self._slot.memory.is_pinned(self._device.type):
                target.copy_(staged)  # only pinned memory may be read later
            elif cast:
                self._through_the_device(target, staged)
            else:
                target.copy_(staged, non_blocking=True)

    def _through_the_device(self, target: Any, staged: Any) -> None:
        # torch itself casts a copy between devices on the host first, and then waits for it.
        slot = self._slot
        if slot.uncast is None:
            slot.uncast = self.torch.empty(self.nbytes, dtype=self.torch.uint8, device=self._device)
        uncast = slot.uncast[: staged.nbytes].view(staged.dtype)
        uncast.copy_(staged, non_blocking=True)
        target.copy_(uncast)

    def sent(self) -> None:
        """Mark the end of this buffer's copies in the stream."""
        self._slot.arrived.record(self._stream)

    def finish(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()
