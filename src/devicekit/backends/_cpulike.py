"""What cpu and numpy share: the host's memory, bounded by the container's limit."""

from __future__ import annotations

import ctypes
import os
from typing import Any, ClassVar

from devicekit.backend import Backend
from devicekit.values import MemoryStats


class CpuLike(Backend):
    """A device that is the host's own processor."""

    accelerator: ClassVar[bool] = False
    quick_probe: ClassVar[bool] = True
    indexed: ClassVar[bool] = False
    device_type: ClassVar[str] = "cpu"

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        self._process: tuple[int, Any] | None = None

    def memory_stats(self, index: int = 0) -> MemoryStats:
        """The host's memory or the container's limit, whichever is tighter; ``allocated`` is the resident set."""
        host = self.host.memory()
        if host is None:
            return MemoryStats(unified=True, source="psutil is not installed: pip install psutil")
        total, available, source = host
        process = self._own_process()
        memory = None if process is None else process.memory_info()
        return MemoryStats(
            total=total,
            available=available,
            allocated=None if memory is None else int(memory.rss),
            reserved=None,
            peak=_peak(memory),
            unified=True,
            source=source,
        )

    def _own_process(self) -> Any | None:
        """Kept, because making it costs more than asking it; made anew after a fork. None without psutil."""
        psutil, pid = self.host.module("psutil"), os.getpid()
        if psutil is None:
            return None
        if self._process is None or self._process[0] != pid:
            self._process = (pid, psutil.Process())
        return self._process[1]

    def empty_cache(self, index: int = 0) -> None:
        """Have the C library give freed pages back where it can (glibc's malloc_trim).

        Garbage is not collected, as on no other device: on a large heap that takes 0.2 s, and this is called in loops.
        """
        if self.host.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
            if trim is not None:
                trim(0)


def _peak(memory: Any | None) -> int | None:
    """The highest resident set of this process in bytes; Windows tells it in the same call."""
    windows = getattr(memory, "peak_wset", None)
    if windows is not None:
        return int(windows)
    import resource  # not on Windows
    import sys

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = highest if sys.platform == "darwin" else highest * 1024  # bytes there, KiB elsewhere (getrusage(2))
    if memory is None:
        return peak
    return max(peak, int(memory.rss))  # the kernel adds up its counters less often than it hands out pages
