"""The memory of a simulated device: it counts the storages that are really alive.

Every figure is in bytes. Sizes are rounded up to 512 bytes and reserved in segments of 2 MiB, as
the caching allocators of CUDA and NPU do; fragmentation is not simulated.
"""

from __future__ import annotations

import re
import threading
import weakref
from typing import Any

import torch

from devicekit.allocator import BLOCK, SEGMENT, in_words, round_up

__all__ = ["DeviceMemory", "Figure"]


class Figure:
    """One statistic: what it is now, what it was at most, and what came and went."""

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.freed = 0

    def move(self, difference: int) -> None:
        """Add or, when negative, take away."""
        self.current += difference
        self.peak = max(self.peak, self.current)
        if difference > 0:
            self.allocated += difference
        else:
            self.freed -= difference

    def as_dict(self) -> dict[str, int]:
        """The four values under the names that ``memory_stats()`` uses."""
        return {
            "current": self.current,
            "peak": self.peak,
            "allocated": self.allocated,
            "freed": self.freed,
        }


class DeviceMemory:
    """Which storages are on the device, and how many bytes they take."""

    def __init__(self, total: int, device_name: str) -> None:
        self.total = total
        self.fraction = 1.0
        self.tensors = Figure()
        self.allocated = Figure()
        self.reserved = Figure()
        self.ooms = 0
        self._device_name = device_name
        self._sizes: dict[int, int] = {}
        # Re-entrant: a garbage collection inside `take` may free another storage.
        self._lock = threading.RLock()

    @property
    def free(self) -> int:
        """Bytes that the allocator has not reserved."""
        return self.total - self.reserved.current

    def holds(self, storage: torch.UntypedStorage) -> bool:
        """Whether this storage lies on the device."""
        return storage._cdata in self._sizes

    def take(self, storage: torch.UntypedStorage) -> None:
        """Count this storage until it dies; count the difference when it has grown since.

        Raises torch.OutOfMemoryError when it does not fit.
        """
        key = storage._cdata
        size = round_up(storage.nbytes(), BLOCK)
        with self._lock:
            before = self._sizes.get(key)
            if before == size:
                return
            self.require(size - (before or 0))
            self._sizes[key] = size
            self._count(size - (before or 0))
            if before is None:
                self.tensors.move(1)
                # torch keeps one Python object for a storage as long as the storage lives.
                weakref.finalize(storage, self._drop, key).atexit = False

    def require(self, size: int) -> None:
        """Raise torch.OutOfMemoryError when ``size`` more bytes do not fit."""
        size = round_up(size, BLOCK)
        if self.allocated.current + size > self._limit:
            self.ooms += 1
            raise torch.OutOfMemoryError(self._out_of_memory(size))

    def explain(self, error: RuntimeError) -> RuntimeError:
        """Turn the host's own out-of-memory error into the device's; leave others as they are."""
        match = re.search(r"DefaultCPUAllocator.*tried to allocate (\d+) bytes", str(error))
        if match is None:
            return error
        self.ooms += 1
        return torch.OutOfMemoryError(self._out_of_memory(int(match[1])))

    def empty_cache(self) -> None:
        """Give back the segments that nothing lies in."""
        with self._lock:
            self.reserved.move(self._segments() - self.reserved.current)

    def reset_peak(self) -> None:
        """Let the peaks start again from what is there now."""
        for figure in (self.tensors, self.allocated, self.reserved):
            figure.peak = figure.current

    def reset_accumulated(self) -> None:
        """Let the sums of what came and went start again from zero."""
        for figure in (self.tensors, self.allocated, self.reserved):
            figure.allocated = figure.freed = 0
        self.ooms = 0

    def as_dict(self) -> dict[str, Any]:
        """The nested form of ``memory_stats()``, with the keys that this simulation can fill."""
        return {
            "allocation": {"all": self.tensors.as_dict()},
            "allocated_bytes": {"all": self.allocated.as_dict()},
            "active_bytes": {"all": self.allocated.as_dict()},
            "reserved_bytes": {"all": self.reserved.as_dict()},
            "num_alloc_retries": self.ooms,
            "num_ooms": self.ooms,
        }

    @property
    def _limit(self) -> int:
        return int(self.total * self.fraction)

    def _segments(self) -> int:
        return min(round_up(self.allocated.current, SEGMENT), self.total)

    def _count(self, difference: int) -> None:
        self.allocated.move(difference)
        self.reserved.move(max(0, self._segments() - self.reserved.current))

    def _drop(self, key: int) -> None:
        with self._lock:
            self.tensors.move(-1)
            self.allocated.move(-self._sizes.pop(key))

    def _out_of_memory(self, size: int) -> str:
        # Word by word as in NPUCachingAllocator.cpp at 9e73e708 (no blank before "If").
        allocated = in_words(self.allocated.current)
        return (
            f"NPU out of memory. Tried to allocate {in_words(size)} ({self._device_name}; "
            f"{in_words(self.total)} total capacity; {allocated} already allocated; "
            f"{allocated} current active; {in_words(self.free)} free; "
            f"{in_words(self.reserved.current)} reserved in total by PyTorch).If reserved memory "
            "is >> allocated memory try setting max_split_size_mb to avoid fragmentation."
        )
