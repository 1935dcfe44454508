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

import argparse
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
from _running import Run, edit, environment, folder_for, missing, run
from _table import Sheet, machine_line, save, show

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clones", type=Path, help="a folder of clones")
    parser.add_argument("--only", default="", metavar="NAME", help="programs with this in their name")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the copies and what they print there")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    columns = ("program", "rewritten", "left", "again", "torch.cuda", "compiles", "original", "migrated", "as by hand")
    sheet, results, well = Sheet("Migrated programs", columns), {}, True
    for program in PROGRAMS:
        if options.only.lower() not in program.name.lower():
            continue
        if lacking := missing(program, options.clones):
            print(f"SKIPPED {program.name}: {lacking} is missing", file=sys.stderr)
            sheet.rows.append([program.name, f"skipped: {lacking} is missing", *[""] * (len(columns) - 2)])
            continue
        try:
            with folder_for(options.keep, program) as folder:
                migration, runs = _tried(program, options.clones / program.clone, folder)
        except (ChildProcessError, LookupError) as exc:
            print(f"FAILED {program.name}: {exc}", file=sys.stderr)
            sheet.rows.append([program.name, "could not be prepared", *[""] * (len(columns) - 2)])
            well = False
            continue
        sheet.rows.append(_row(program, migration, runs))
        results[program.name] = {"migration": vars(migration), "runs": {name: vars(run) for name, run in runs.items()}}
        well = well and not migration.broken and not migration.again and _same(runs)
    show([sheet], markdown=options.markdown)
    save(options.json, programs=results)
    return 0 if well else 1


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


def _row(program: Program, migration: Migration, runs: dict[str, Run]) -> list[str]:
    left = ", ".join(f"{number} {kind}" for kind, number in sorted(migration.left.items())) or "0"
    same = f"yes: {', '.join(runs['by hand'].outcome or ())}" if _same(runs) else f"no ({_difference(runs)})"
    return [
        program.name,
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
