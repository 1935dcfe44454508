"""What memory_stats() calls available in a container, beside what can really be had there: until the kernel kills.

Makes a memory cgroup (needs root on Linux, cgroup v1 or v2), puts a process into it that says how much is available and
then touches memory, a MiB at a time, until it is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _table import Sheet, machine_line, save, show

MIB = 2**20
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on
NEAR = 0.05
"""Target: as far as this may be from the truth."""
ROOTS = {
    Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.swappiness"),
    Path("/sys/fs/cgroup"): ("memory.max", "memory.swap.max"),
}


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A memory cgroup with this limit and without swap.

    Raises:
        OSError: none can be made here.
    """
    root = next((root for root in ROOTS if (root / "cgroup.procs").exists()), None)
    if root is None:
        raise OSError("there is no cgroup file system")
    made = root / f"devicekit-{os.getpid()}"
    made.mkdir()
    try:
        file, swap = ROOTS[root]
        (made / file).write_text(str(limit))
        with contextlib.suppress(OSError):
            (made / swap).write_text("0")
        yield made
    finally:
        made.rmdir()


def ask_and_fill(cached: int, folder: str) -> None:
    """Of the process inside: its answers, then a line for each MiB that it got."""
    import psutil

    import devicekit as dk

    dm = dk.DeviceManager("numpy")
    with tempfile.TemporaryFile(dir=folder) as file:  # pages of files count for the cgroup, and can be had back
        file.write(os.urandom(MIB) * cached)
        file.flush()
        os.fsync(file.fileno())
        stats = dm.memory_stats()
        print(stats.available, psutil.virtual_memory().available, stats.source, sep="\t", flush=True)
        held = mmap.mmap(-1, 2**40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        for at in range(0, 2**40, MIB):
            for page in range(at, at + MIB, mmap.PAGESIZE):
                held[page] = 1
            os.write(1, b".")


def case(limit: int, cached: int) -> tuple[str, ...]:
    """One row: the limit, what was told, what was had."""
    with limited(limit) as group:
        command = [sys.executable, __file__, "--inside", str(cached), str(Path(__file__).parent)]
        join = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731  # in the child, before it runs
        done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=join, check=False)
    told, _, had = done.stdout.partition(b"\n")
    ours, host, source = told.decode().split("\t")
    truth = had.count(b".") * MIB
    off = int(ours) / truth - 1
    ended = "killed" if done.returncode == -9 else f"ended with {done.returncode}"
    figures = (f"{int(ours) / MIB:,.0f}", f"{int(host) / MIB:,.0f}", f"{truth / MIB:,.0f} ({ended})", f"{off:+.1%}")
    judged = f"within {NEAR:.0%}", "yes" if abs(off) <= NEAR else "no"
    return f"{limit // MIB} MiB", f"{cached} MiB", *figures, *judged, source.partition(" of ")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    if options.inside is not None:
        cached, folder = options.inside
        ask_and_fill(int(cached), folder)
        return 0
    columns = ("limit", "page cache", "available, MiB", "psutil, MiB", "had, MiB", "off", "target", "met", "source")
    sheet = Sheet("Available memory in a container", columns)
    try:
        sheet.rows += [case(limit * MIB, cached) for limit in (512, 1024, 2048) for cached in (0, 200)]
    except OSError as exc:
        print(f"skipped: no memory cgroup can be made here ({exc})", file=sys.stderr)
        return 2
    print(machine_line(), file=sys.stderr)
    show([sheet], markdown=options.markdown)
    save(options.json, rows=sheet.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
