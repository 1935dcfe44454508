"""What a container lets this process use: memory and CPUs, from its cgroup.

/proc/meminfo and os.cpu_count() show the host, so who trusts them in a container is killed
(https://github.com/Comfy-Org/ComfyUI/issues/14938). The facts come from https://docs.kernel.org/:
admin-guide/cgroup-v2, admin-guide/cgroup-v1/memory and scheduler/sched-bwc.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

__all__ = ["Cgroup", "MemoryLimit", "read", "usable_cpus"]

_V2 = ""  # the controller list of the v2 line in /proc/<pid>/cgroup is empty
# files of limits, file of usage, key in memory.stat of the page cache that is reclaimed first
_FILES = {
    "v1": (("memory.limit_in_bytes",), "memory.usage_in_bytes", b"\ntotal_inactive_file "),
    "v2": (("memory.max", "memory.high"), "memory.current", b"\ninactive_file "),
}
# v1 writes "no limit" as 2**63-1 rounded down to a page, whose size varies; v2 writes "max".
_UNLIMITED = 2**60


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A memory limit in bytes, and how much of it is gone.

    Limits are hierarchical: each cgroup from the process's own up to the mount root must have
    room, and an ancestor shared with others can be fuller than a child with a smaller limit.
    """

    limit: int
    """Bytes: the smallest limit on the path."""
    used: int
    """Bytes, 0..limit: ``limit`` less the smallest room on the path. As long as one cgroup has
    both, this is its usage without the page cache that is reclaimed first (inactive_file)."""
    source: str
    """Where it stands: ``cgroup v2 memory.max of /kubepods/pod1``."""

    @property
    def available(self) -> int:
        """Bytes: the smallest room on the path; 0 when a limit is reached."""
        return max(0, self.limit - self.used)


class Cgroup:
    """The cgroup of one process. Finds its files once; every question reads them afresh.

    No method raises: no cgroup (macOS, Windows) and no readable file mean no limit. A process
    that is moved, or a controller that is switched on later, needs a new Cgroup.
    """

    __slots__ = ("_hidden", "_memory", "_quotas", "_version")

    def __init__(self, root: str | os.PathLike[str] = "/", pid: str = "self") -> None:
        """``root`` goes before every path that is read, so that a recorded tree can be asked."""
        base = os.fspath(root).rstrip("/")
        paths = _paths(_read_all(f"{base}/proc/{pid}/cgroup"))
        mounts = _mounts(_read_all(f"{base}/proc/{pid}/mountinfo"))

        def find(controller: str, file: str) -> list[tuple[str, str]]:
            path, places = paths.get(controller), mounts.get(controller, [])
            ways = [_way_up(path, at, base + p, file) for at, p in places if path is not None]
            return max(ways, key=lambda way: (way[0], len(way[1])), default=(False, []))[1]

        # A hybrid host mounts v2 as well, without the files of the controllers that v1 has: so v1
        # is asked first, and a file must be there to count.
        v1 = find("memory", "memory.limit_in_bytes")
        self._version, self._memory = ("v1", v1) if v1 else ("v2", find(_V2, "memory.max"))
        # Only the true root of a v1 hierarchy has cgroup.sane_behavior, and it takes no limit. Else
        # there are cgroups above the mount root: v1 tells their limit in memory.stat, v2 nowhere.
        self._hidden = bool(v1) and not os.path.exists(f"{v1[-1][1]}/cgroup.sane_behavior")
        if v1 and not self._hidden:
            v1.pop()
        self._quotas = [
            [f"{d}/cpu.cfs_quota_us", f"{d}/cpu.cfs_period_us"] for _, d in find("cpu", "cpu.cfs_quota_us")
        ] or [[f"{d}/cpu.max"] for _, d in find(_V2, "cpu.max")]

    def memory_limit(self, physical: int | None = None) -> MemoryLimit | None:
        """The limit and what is used of it, in bytes; None: no limit.

        A limit of ``physical`` bytes or more is none. v2's memory.high is a limit too: above it
        the kernel reclaims and throttles.
        """
        ceiling = _UNLIMITED if physical is None else min(physical, _UNLIMITED)
        limit_files, usage_file, inactive_key = _FILES[self._version]
        smallest = room = ceiling
        tightest = fullest = ""
        for name, directory in self._memory:
            limit, said_by = ceiling, ""
            for file in limit_files:
                value = _number(read(f"{directory}/{file}"))
                if value is not None and value < limit:
                    limit, said_by = value, file
            hidden = self._hidden and name == self._memory[-1][0]
            if not said_by and not hidden:
                continue  # the other two files cost more; most levels have no limit
            stat = b"\n" + read(f"{directory}/memory.stat", 1 << 14)
            value = _entry(stat, b"\nhierarchical_memory_limit ") if hidden else None
            if value is not None and value < limit:
                limit, said_by = value, "hierarchical_memory_limit"
            usage = _number(read(f"{directory}/{usage_file}"))
            if not said_by or usage is None:
                continue
            # No inactive_file in stat (some sandboxes): nothing counts as reclaimable.
            left = max(0, limit - max(0, usage - (_entry(stat, inactive_key) or 0)))
            here = f"{said_by} of {name}"
            if limit < smallest:
                smallest, tightest = limit, here
            if left < room:
                room, fullest = left, here
        if not tightest:
            return None
        source = tightest if fullest == tightest else f"{tightest}, room by {fullest}"
        return MemoryLimit(smallest, smallest - room, f"cgroup {self._version} {source}")

    def cpu_quota(self) -> float | None:
        """CPUs' worth of time, above 0, such as 1.5: the smallest on the path; None: no quota."""
        quotas = []
        for files in self._quotas:
            # No quota is "max 100000" in v2 and "-1" in v1: not two numbers above 0.
            numbers = [n for n in map(_number, b" ".join(map(read, files)).split()) if n]
            if len(numbers) == 2:
                quotas.append(numbers[0] / numbers[1])
        return min(quotas, default=None)


def usable_cpus(cgroup: Cgroup | None = None) -> int:
    """CPUs worth a thread each, at least 1: the affinity mask (cpusets too), cut by the quota."""
    quota = (Cgroup() if cgroup is None else cgroup).cpu_quota()
    # macOS and Windows know no affinity mask; process_cpu_count came with Python 3.13.
    count = getattr(os, "process_cpu_count", os.cpu_count)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count() or 1
    return cpus if quota is None else min(cpus, math.ceil(quota))


def _paths(lines: list[str]) -> dict[str, str]:
    """Controller to cgroup path, from ``4:memory:/docker/ab`` (v1) and ``0::/pod`` (v2)."""
    fields = (line.split(":", 2) for line in lines)  # containerd's paths hold colons
    return {name: f[2] for f in fields if len(f) == 3 for name in f[1].split(",")}


def _mounts(lines: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Controller to (cgroup at the mount's root, mount point); the format is proc(5)'s."""
    mounts: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        left, right = (half.split(" ") for half in line.partition(" - ")[::2])
        if len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        at, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in left[3:5])
        for name in [_V2] if right[0] == "cgroup2" else filter(None, right[2].split(",")):
            mounts.setdefault(name, []).append((at, point))
    return mounts


def _way_up(path: str, at: str, point: str, file: str) -> tuple[bool, list[tuple[str, str]]]:
    """Whether ``path`` lies below the mount, and (cgroup, directory) from it up to the mount root.

    A container may see its own cgroup bind-mounted (``at`` is then its path on the host) or as
    the root of a namespace. A path that does not fit the mount stands for its root.
    """
    parts, above = ([p for p in f.split("/") if p] for f in (path, at))
    fits = parts[: len(above)] == above and ".." not in parts[len(above) :]
    below = parts[len(above) :] if fits else []
    found = fits and os.path.isdir("/".join([point, *below]))
    steps = (below[:depth] for depth in range(len(below), -1, -1))
    levels = (("/" + "/".join(above + step), "/".join([point, *step])) for step in steps)
    return found, [level for level in levels if os.path.exists(f"{level[1]}/{file}")]


def _read_all(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            # not splitlines(): a cgroup's name may hold \x0b or U+2028
            return file.read().decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []


def read(path: str, size: int = 64) -> bytes:
    """The first bytes, b"" when unreadable. This is polled, and open() takes twice as long."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, size)
    except OSError:  # ENODEV: the cgroup was removed after the open
        return b""
    finally:
        os.close(descriptor)


def _number(text: bytes) -> int | None:
    text = text.strip()
    return int(text) if text.isdigit() else None


def _entry(stat: bytes, key: bytes) -> int | None:
    return _number(stat.partition(key)[2].partition(b"\n")[0])
