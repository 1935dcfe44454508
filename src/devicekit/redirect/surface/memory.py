"""Memory figures of ``torch.cuda``: bytes, always whole numbers, in both of torch's forms."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from devicekit.allocator import checked_fraction, flat
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import Answers, answer
from devicekit.values import MemoryStats

__all__ = ["install"]

POOLED = (
    "active", "active_bytes", "allocated_bytes", "allocation", "inactive_split", "inactive_split_bytes",
    "requested_bytes", "reserved_bytes", "segment",
)  # fmt: skip
POOLS = ("all", "large_pool", "small_pool")
PLAIN = ("oversize_allocations", "oversize_segments")
COUNTERS = ("max_split_size", "num_alloc_retries", "num_device_alloc", "num_device_free", "num_ooms",
            "num_sync_all_streams")  # fmt: skip
"""The keys of ``torch.cuda.memory_stats``, as its documentation lists them."""


def install(redirect: Redirect) -> None:
    """Answer what is asked about memory."""
    answer(redirect, redirect.torch.cuda, Memory(redirect)._all())


class Memory(Answers):
    """What the target knows. On a processor ``allocated`` is the resident set of the process.

    A figure that nobody knows is 0; what is reserved is at least what is allocated, and a peak at least what is there.
    """

    def __init__(self, redirect: Redirect) -> None:
        super().__init__(redirect)
        self._fractions: dict[int, float] = {}

    # -- figures -----------------------------------------------------------------------------------
    def memory_allocated(self, device: Any = None) -> int:
        """Live tensors."""
        return self._figures(device).allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        """The highest of it since the last reset."""
        return self._figures(device).peak

    def memory_reserved(self, device: Any = None) -> int:
        """Held by the allocator, live tensors included."""
        return self._figures(device).reserved

    def max_memory_reserved(self, device: Any = None) -> int:
        """The highest that is known of it."""
        figures = self._figures(device)
        return max(figures.reserved, figures.peak)

    memory_cached, max_memory_cached = memory_reserved, max_memory_reserved

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """What is free, and the total."""
        figures = self._figures(device)
        return figures.free, figures.total

    def device_memory_used(self, device: Any = None) -> int:
        """The total less what is free."""
        figures = self._figures(device)
        return max(0, figures.total - figures.free)

    def memory_stats_as_nested_dict(self, device: Any = None) -> dict[str, Any]:
        """All of torch's keys; the pools are not told apart, and what was allocated over time is not counted."""
        figures = self._figures(device)
        told: dict[str, Any] = {name: {pool: _figure() for pool in POOLS} for name in POOLED}
        for names, now, peak in (
            (("active_bytes", "allocated_bytes", "requested_bytes"), figures.allocated, figures.peak),
            (("reserved_bytes",), figures.reserved, max(figures.reserved, figures.peak)),
        ):
            for name in names:
                told[name]["all"] = _figure(now, peak)
        return {**told, **{name: _figure() for name in PLAIN}, **dict.fromkeys(COUNTERS, 0)}

    def memory_stats(self, device: Any = None) -> OrderedDict[str, int]:
        """The same with keys such as ``allocated_bytes.all.peak``."""
        return OrderedDict(sorted(flat("", self.memory_stats_as_nested_dict(device))))

    def memory_summary(self, device: Any = None, abbreviated: bool = False) -> str:
        """A table for people. It says which device it is really about."""
        index = self._at(device)
        figures, name = self._figures(device), self._target.card(index).name
        head = f"memory of device {index}, {name} ({self._target.device_type})"
        rows = [("Allocated", figures.allocated), ("Peak", figures.peak), ("Reserved", figures.reserved)]
        rows += [] if abbreviated else [("Free", figures.free), ("Total", figures.total)]
        width = max(len(head), 34)
        lines = [head.ljust(width), "-" * width]
        lines += [f"{name:<12}{size / (1 << 20):>18.1f} MiB".ljust(width) for name, size in rows]
        return "".join(f"| {line} |\n" for line in lines)

    def memory_snapshot(self, *_: Any, **__: Any) -> list[Any]:
        """Empty: no segments of CUDA's allocator."""
        return []

    def list_gpu_processes(self, device: Any = None) -> str:
        """Only this one is known."""
        index = self._at(device)
        return f"GPU:{index}\nthis process uses {self._figures(device).allocated / (1 << 20):.3f} MB"

    def host_memory_stats(self) -> OrderedDict[str, int]:
        """Empty, as before anything is pinned."""
        return OrderedDict()

    def host_memory_stats_as_nested_dict(self) -> dict[str, Any]:
        """The same."""
        return {}

    # -- what is done ------------------------------------------------------------------------------
    def empty_cache(self) -> None:
        """Give back what the target caches."""
        self._target.empty_cache()

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Start the peak anew, where the target keeps one."""
        self._target.reset_peak_memory(self._at(device))

    reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

    def reset_accumulated_memory_stats(self, device: Any = None) -> None:
        """Nothing: they are 0."""
        self._at(device)

    def reset_accumulated_host_memory_stats(self) -> None:
        """Nothing."""

    reset_peak_host_memory_stats = reset_accumulated_host_memory_stats

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        """A limit where the target can hold one; a processor cannot."""
        checked_fraction(fraction)
        index = self._at(device)
        self._target.limit_memory(index, fraction)
        self._fractions[index] = fraction

    def get_per_process_memory_fraction(self, device: Any = None) -> float:
        """What was set."""
        return self._fractions.get(self._at(device), 1.0)

    def get_allocator_backend(self) -> str:
        """``native``, which is torch's word for what nobody has replaced."""
        return "native"

    def caching_allocator_enable(self, value: bool = True) -> None:
        """Nothing: the target's allocator has no such switch."""

    @contextlib.contextmanager
    def caching_allocator_disabled(self) -> Iterator[None]:
        """Nothing, for the same reason."""
        yield

    def _figures(self, device: Any) -> _Figures:
        return _Figures(self._target.memory_stats(self._at(device)))


class _Figures:
    """Bytes, without gaps."""

    def __init__(self, stats: MemoryStats) -> None:
        self.total = stats.total or 0
        self.free = stats.available or 0
        self.allocated = stats.allocated or 0
        self.peak = max(stats.peak or 0, self.allocated)
        self.reserved = max(stats.reserved or 0, self.allocated)


def _figure(current: int = 0, peak: int = 0) -> dict[str, int]:
    return {"current": current, "peak": peak, "allocated": 0, "freed": 0}
