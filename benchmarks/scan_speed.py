"""How many files a second are read: devicekit scan, torchfix, and rewriting passes over LibCST trees, on the same tree.

    python benchmarks/scan_speed.py FOLDER [--torchfix PYTHON] [--rounds 3]

Each tool is a process of its own that is started anew, so that imports count; they take turns, and who goes first
changes every round; medians. The LibCST passes are what the vendors' own codemods are made of (parse, resolve qualified
names, rename and replace strings, print), written here as plainly as that can be; they need ``libcst``. ``--torchfix``
names a Python with torchfix installed, which wants other versions of libcst.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from _table import Sheet, machine_line, median, show

PASSES = """
import sys, pathlib
import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider, QualifiedNameProvider

class ToOther(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (QualifiedNameProvider, PositionProvider)
    def __init__(self): super().__init__(); self.found = 0
    def leave_SimpleString(self, old, new):
        if old.raw_value == "cuda" or old.raw_value.startswith("cuda:"):
            self.found += 1
            return new.with_changes(value=old.value.replace("cuda", "npu"))
        return new
    def leave_Call(self, old, new):
        names = {n.name for n in self.get_metadata(QualifiedNameProvider, old.func, ())}
        if any(n.startswith("torch.cuda.") for n in names) or (
            isinstance(old.func, cst.Attribute) and old.func.attr.value == "cuda"):
            self.get_metadata(PositionProvider, old)
            self.found += 1
        return new

found = files = 0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    try:
        visitor = ToOther()
        MetadataWrapper(cst.parse_module(path.read_bytes())).visit(visitor).code
        found += visitor.found
    except Exception:
        pass
    files += 1
print(files, found)
"""


def commands(folder: Path, torchfix: str | None) -> dict[str, list[str]]:
    """What is run, by name."""
    devicekit = [sys.executable, "-m", "devicekit"]
    made = {
        "devicekit scan": [*devicekit, "scan", str(folder)],
        "devicekit scan --jobs 1": [*devicekit, "scan", "--jobs", "1", str(folder)],
        "devicekit migrate": [*devicekit, "migrate", str(folder)],
        "LibCST passes": [sys.executable, "-c", PASSES, str(folder)],
    }
    if torchfix:
        made["torchfix"] = [torchfix, "-m", "torchfix", "--select=ALL", str(folder)]
    return made


def seconds(command: list[str]) -> float:
    """How long it takes; its findings are thrown away."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    taken = time.perf_counter() - started
    if done.returncode not in (0, 1):
        sys.exit(f"{command[:4]} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torchfix", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files = sum(1 for _ in options.folder.rglob("*.py"))
    every = commands(options.folder, options.torchfix)
    taken: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(options.rounds):
        for name in list(every)[:: -1 if turn % 2 else 1]:
            taken[name].append(seconds(every[name]))
    ours = median(taken["devicekit scan"])
    rows = [
        [name, f"{median(t):.2f}", f"{files / median(t):.0f}", f"{median(t) / ours:.1f}"] for name, t in taken.items()
    ]
    columns = ("tool", "seconds", "files a second", "times the time of devicekit scan")
    print(machine_line(), f"{len(os.sched_getaffinity(0))} CPUs; {files} Python files")
    show([Sheet("Reading a tree", columns, rows)], markdown=True)


if __name__ == "__main__":
    main()
