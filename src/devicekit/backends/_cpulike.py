"""What cpu and numpy share: the host's memory, bounded by the container's limit."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from devicekit.backend import Backend
from devicekit.container import read
from devicekit.values import AllocatorOption, MemoryStats

CLEAR_REFS = Path("/proc/self/clear_refs")
SPARE = 0.05
"""Of the host's memory, for what is not counted: page tables, thread stacks, other processes in the container."""


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

    def manual_seed(self, seed: int) -> None:
        """Nothing: its generator is the framework's own, which ``torch.manual_seed`` and ``numpy.random.seed`` seed."""

    def reset_peak_memory(self, index: int = 0) -> None:
        """On Linux the kernel starts the peak of the resident set anew (proc_pid_clear_refs(5)); elsewhere it stays."""
        if self.host.platform == "linux":
            with contextlib.suppress(OSError), CLEAR_REFS.open("w", encoding="ascii") as reset:
                reset.write("5")

    @contextlib.contextmanager
    def keeping_free(self, part: float, device: Any, index: int = 0) -> Iterator[None]:
        """Inside, an allocation that would come near the host's or the container's limit fails; elsewhere than on Linux
        nothing is kept.

        Who goes over the limit is killed, and that cannot be caught. So the process's own limit for data is lowered to
        what is there (setrlimit(2), RLIMIT_DATA: memory that is asked for counts, not only what was touched).
        """
        memory = self.host.memory() if self.host.platform == "linux" else None
        data = _data_size()
        if memory is None or data is None:
            yield
            return
        import resource  # not on Windows

        total, available, _ = memory
        room = max(0, available - int(total * max(part, SPARE)))
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = data + room
        lowered = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
        resource.setrlimit(resource.RLIMIT_DATA, (lowered, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def expandable_segments(self) -> AllocatorOption:
        """Nothing is cached, so there is nothing to set; the C library reads its own variables before Python runs."""
        reason = "the processor's memory goes back to the C library at once, so there is nothing to switch on"
        if self.host.platform == "linux":
            reason += "; for many threads start the process with MALLOC_ARENA_MAX=2, or with jemalloc in LD_PRELOAD"
        return AllocatorOption(reason=reason)

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


def _data_size() -> int | None:
    """Bytes of this process that its limit for data counts; None where nobody says."""
    found = read("/proc/self/status", 8192).partition(b"VmData:")[2].partition(b"kB")[0].strip()
    return int(found) * 1024 if found.isdigit() else None
