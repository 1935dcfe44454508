"""Simulated GPUs: memory that is counted and runs out, a current device, and nothing that computes by itself."""

from __future__ import annotations

import re
import threading
from typing import Any

from devicekit.allocator import BLOCK, SEGMENT, in_words, round_up
from devicekit.errors import DeviceKitError
from devicekit.redirect.target import Card, Current, Target, invalid_ordinal
from devicekit.streams import OneQueue
from devicekit.values import MemoryStats

__all__ = ["Allocation", "CardMemory", "SimulatedTarget", "in_bytes"]

NAME = "devicekit simulated GPU"
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def in_bytes(size: int | str) -> int:
    """A size as programs write it: a number of bytes, ``"24GiB"``, ``"512 MB"`` (also binary, as for graphics cards).

    Raises:
        DeviceKitError: it is no size, or not more than nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", str(size).lower())
    value = int(float(found[1]) * UNITS[found[2]]) if found and not isinstance(size, bool) else 0
    if value <= 0:
        raise DeviceKitError(f"memory={size!r} is no size.", try_='"24GiB", or a number of bytes')
    return value


class Allocation:
    """Bytes of a simulated device, given back when the storage dies that holds this."""

    __slots__ = ("memory", "nbytes")

    def __init__(self, memory: CardMemory, nbytes: int) -> None:
        self.memory = memory
        self.nbytes = nbytes

    def __del__(self) -> None:
        self.memory.give_back(self.nbytes)


class CardMemory:
    """How much of one simulated device is in use. Every figure is in bytes; fragmentation is not simulated."""

    def __init__(self, torch: Any, index: int, total: int) -> None:
        self.torch = torch
        self.index = index
        self.total = total
        self.fraction = 1.0
        self.allocated = self.peak = self.reserved = 0
        # Re-entrant: a garbage collection inside may free another storage.
        self._lock = threading.RLock()

    def take(self, nbytes: int) -> Allocation:
        """Count these bytes until the allocation dies.

        Raises:
            torch.OutOfMemoryError: they do not fit, in the words of CUDA's allocator.
        """
        size = round_up(nbytes, BLOCK)
        with self._lock:
            self.require(size)
            self.allocated += size
            if self.allocated > self.peak:
                self.peak = self.allocated
            if self.allocated > self.reserved:
                self.reserved = self._segments()
        return Allocation(self, size)

    def require(self, nbytes: int) -> None:
        """Raise torch.OutOfMemoryError if so many more bytes do not fit."""
        if self.allocated + nbytes > self.total * self.fraction:
            raise self.out_of_memory(nbytes)

    def out_of_memory(self, nbytes: int) -> Exception:
        """The error of CUDA's allocator."""
        made: Exception = self.torch.OutOfMemoryError(self._words(nbytes))
        return made

    def give_back(self, nbytes: int) -> None:
        """The storage is gone; its segment stays reserved."""
        with self._lock:
            self.allocated -= nbytes

    def empty_cache(self) -> None:
        """Give back the segments that nothing lies in."""
        with self._lock:
            self.reserved = self._segments()

    def reset_peak(self) -> None:
        """Let the peaks start again from what is there now."""
        self.peak = self.allocated

    def _segments(self) -> int:
        return min(round_up(self.allocated, SEGMENT), self.total)

    def _words(self, nbytes: int) -> str:
        # c10/cuda/CUDACachingAllocator.cpp, malloc(): the same sentences in the same order.
        use, rest = self.reserved, self.reserved - self.allocated
        return (
            f"CUDA out of memory. Tried to allocate {in_words(nbytes)}. GPU {self.index} has a total capacity of "
            f"{in_words(self.total)} of which {in_words(max(0, self.total - use))} is free. Including non-PyTorch "
            f"memory, this process has {in_words(use)} memory in use. Of the allocated memory "
            f"{in_words(self.allocated)} is allocated by PyTorch, and {in_words(max(0, rest))} is reserved by PyTorch "
            "but unallocated. If reserved but unallocated memory is large try setting "
            "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
        )


class SimulatedTarget(Target):
    """So many GPUs of one kind, whose tensors lie on the processor.

    Args:
        torch: the module.
        count: how many.
        memory: of each, in bytes.
        capability: the compute capability that they report.

    Raises:
        DeviceKitError: ``count`` is less than one.
    """

    collective = "gloo"

    def __init__(self, torch: Any, count: int, memory: int, capability: tuple[int, int]) -> None:
        if count < 1:
            raise DeviceKitError(f"count={count} is no number of devices.", try_="1 or more")
        self.torch = torch
        self.count = count
        self.memory = [CardMemory(torch, index, memory) for index in range(count)]
        self._real = torch.device("cpu")
        self._card = Card(NAME, memory, capability, multi_processor_count=1)
        self._thread = Current()
        self._queue = OneQueue(lambda _index: None, lambda: self.current)

    @property
    def current(self) -> int:
        """In this thread; threads start with device 0."""
        return self._thread.index

    def make_current(self, index: int) -> None:
        """Checked, as CUDA does."""
        self.real(index)
        self._thread.index = index

    def real(self, index: int) -> Any:
        """The processor, for a device that exists."""
        if not 0 <= index < self.count:
            raise invalid_ordinal(self.torch)
        return self._real

    def card(self, index: int) -> Card:
        """All are alike."""
        self.real(index)
        return self._card

    def memory_stats(self, index: int) -> MemoryStats:
        """What was counted."""
        self.real(index)
        m = self.memory[index]
        free = max(0, int(m.total * m.fraction) - m.reserved)
        return MemoryStats(m.total, free, m.allocated, m.reserved, m.peak, unified=False, source="simulated")

    def empty_cache(self) -> None:
        """Of all devices, as CUDA does."""
        for memory in self.memory:
            memory.empty_cache()

    def reset_peak_memory(self, index: int) -> None:
        """Of one device."""
        self.real(index)
        self.memory[index].reset_peak()

    def limit_memory(self, index: int, fraction: float) -> None:
        """What is more than this part of it runs out of memory."""
        self.real(index)
        self.memory[index].fraction = fraction

    def synchronize(self, index: int) -> None:
        """All is done already."""
        self.real(index)

    @property
    def streams(self) -> Any:
        """Stand-ins for one queue of work."""
        return self._queue

    @property
    def device_type(self) -> str:
        """Where it really computes."""
        return "cpu"
