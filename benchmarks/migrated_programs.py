"""Public programs that want CUDA, run on the CPU: as they are, after `devicekit migrate`, and put there by hand.

    python benchmarks/migrated_programs.py FOLDER_OF_CLONES [--only NAME] [--keep FOLDER] [--markdown] [--json FILE]

FOLDER_OF_CLONES holds karpathy/nanoGPT, karpathy/minGPT, HiDream-ai/HiDream-E1, shiyu-coder/Kronos and pytorch/examples
under these names; they are copied, never written. A program that imports what is missing here is skipped with a word.
HiDream-E1 was tried with diffusers 0.36 and transformers 4.57, and with 0.42 and 5.23. Models are tiny and random, and
nothing is downloaded. Only CUDA is hidden: on a machine with another accelerator, set DEVICEKIT_DEVICE=cpu.

rewritten, left: places in the whole repository. again: what a second run would rewrite. torch.cuda: how often its code
says that, before and after.

Exit code 1 if a migrated program does not end well, comes to other numbers than the one changed by hand, does not
compile, or would be rewritten again.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _programs import PROGRAMS, Program
from _running import Run, Told, compare, edit, environment, run
from _table import Sheet

import devicekit


@dataclass(frozen=True)
class Migration:
    """What migrate did to one copy."""

    rewritten: int
    left: Counter[str]
    again: int
    broken: Sequence[str]
    """Files that do not compile any more."""
    cuda: tuple[int, int]
    """How often the code says torch.cuda, before and after."""


COLUMNS = ("program", "rewritten", "left", "again", "torch.cuda", "compiles", "original", "migrated", "as by hand")


def main() -> int:
    return compare(__doc__, Sheet("Migrated programs", COLUMNS), PROGRAMS, _compared)


def _compared(program: Program, clone: Path, folder: Path) -> Told:
    migration, runs = _tried(program, clone, folder)
    results = {"migration": vars(migration), "runs": {name: vars(run) for name, run in runs.items()}}
    return Told(_row(migration, runs), results, not migration.broken and not migration.again and _same(runs))


def _tried(program: Program, clone: Path, folder: Path) -> tuple[Migration, dict[str, Run]]:
    """Three copies of the same: as it is, migrated, and changed by hand."""
    env = environment(folder)
    original, migrated, by_hand = (folder / name for name in ("original", "migrated", "by_hand"))
    shutil.copytree(clone, original, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    program.make(original, env)
    edit(original, program.alike)
    shutil.copytree(original, migrated)
    shutil.copytree(original, by_hand)
    migration = _migrated(migrated)
    edit(by_hand, program.by_hand)
    return migration, {
        "original": run(program, original, env),
        "migrated": run(program, migrated, env),
        "by hand": run(program, by_hand, env, program.by_hand_options),
    }


def _row(migration: Migration, runs: dict[str, Run]) -> list[str]:
    left = ", ".join(f"{number} {kind}" for kind, number in sorted(migration.left.items())) or "0"
    same = f"yes: {', '.join(runs['by hand'].outcome or ())}" if _same(runs) else f"no ({_difference(runs)})"
    return [
        str(migration.rewritten),
        left,
        str(migration.again),
        f"{migration.cuda[0]} -> {migration.cuda[1]}",
        f"no: {', '.join(migration.broken)}" if migration.broken else "yes",
        str(runs["original"]),
        str(runs["migrated"]),
        same,
    ]


def _same(runs: dict[str, Run]) -> bool:
    return runs["migrated"].outcome is not None and runs["migrated"].outcome == runs["by hand"].outcome


def _difference(runs: dict[str, Run]) -> str:
    ours, theirs = runs["migrated"].outcome, runs["by hand"].outcome
    if ours is None or theirs is None:
        return f"by hand: {runs['by hand']}"
    return ", ".join(key for key in theirs if ours.get(key) != theirs[key])


# -- migrating ---------------------------------------------------------------------------------------
def _migrated(folder: Path) -> Migration:
    """Migrate what is in the folder, as the command does."""
    before = _mentions(folder)
    told = _devicekit("migrate", "--write", "--json", str(folder))
    again = _devicekit("migrate", "--json", str(folder))
    files = [Path(each["file"]) for each in told["files"]]
    rewritten = sum(len(each["rewrites"]) for each in told["files"])
    left = Counter(str(finding["class"]) for finding in told["left"])
    broken = [file.name for file in files if file.suffix == ".py" and not _compiles(file)]
    return Migration(
        rewritten, left, sum(len(f["rewrites"]) for f in again["files"]), broken, (before, _mentions(folder))
    )


def _devicekit(*arguments: str) -> Any:
    env = {**os.environ, "PYTHONPATH": str(Path(devicekit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "devicekit", *arguments], env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    if not done.stdout:
        raise ChildProcessError(f"devicekit {' '.join(arguments)} told nothing")
    return json.loads(done.stdout)


def _compiles(file: Path) -> bool:
    try:
        compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _mentions(folder: Path) -> int:
    """How often the code, not its comments and strings, says torch.cuda."""
    found = 0
    for file in folder.rglob("*.py"):
        with contextlib.suppress(SyntaxError):
            nodes = ast.walk(ast.parse(file.read_bytes()))
            found += sum(isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda" for node in nodes)
    return found


if __name__ == "__main__":
    sys.exit(main())
