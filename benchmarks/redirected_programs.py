"""Public programs that want CUDA, run on the CPU as they are: by Python, by `devicekit run`, and put there by hand.

    python benchmarks/redirected_programs.py FOLDER_OF_CLONES [--only NAME] [--keep FOLDER] [--markdown] [--json FILE]

FOLDER_OF_CLONES is as for migrated_programs.py. No line of a program is changed, but what makes it small and its
numbers the same in two runs, in all copies alike. devicekit must be installed in this environment, so that child
processes are redirected too.

Exit code 1 if a program does not end well under `devicekit run`, or comes to other numbers than the one changed by
hand.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from _programs import UNCHANGED, Program
from _running import Run, Told, compare, edit, environment, run
from _table import Sheet

RUN = ("-m", "devicekit", "run")
WAYS = ("devicekit run", "--strict-cuda")


COLUMNS = ("program", "python", *WAYS, *(f"{way}: as by hand" for way in WAYS))


def main() -> int:
    return compare(__doc__, Sheet("Programs run unchanged", COLUMNS), UNCHANGED, _compared)


def _compared(program: Program, clone: Path, folder: Path) -> Told:
    runs = _tried(program, clone, folder)
    hand = runs["by hand"]
    said = [_same(runs[WAYS[0]], hand), _same(runs[WAYS[1]], runs.get("by hand, as on CUDA", hand))]
    row = [str(runs["python"]), *(str(runs[way]) for way in WAYS), *said]
    return Told(row, {name: vars(each) for name, each in runs.items()}, all(one.startswith("yes") for one in said))


def _tried(program: Program, clone: Path, folder: Path) -> dict[str, Run]:
    """One copy for each way."""
    env = environment(folder)
    original = folder / "python"
    shutil.copytree(clone, original, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    program.make(original, env)
    edit(original, program.alike)
    names = ("run", "strict", "by_hand", "on_cuda")
    redirected, strict, by_hand, on_cuda = (shutil.copytree(original, folder / name) for name in names)
    edit(by_hand, program.by_hand)
    edit(on_cuda, program.on_cuda)
    simulated = ("--strict-cuda", f"--count={program.gpus}", "--memory=64GiB")
    runs = {
        "python": run(program, original, env),
        "devicekit run": run(program, redirected, env, launcher=(*RUN, "--device=cpu")),
        "--strict-cuda": run(program, strict, env, launcher=(*RUN, *simulated)),
        "by hand": run(program, by_hand, env, program.by_hand_options),
    }
    if program.on_cuda:
        runs["by hand, as on CUDA"] = run(program, on_cuda, env, program.by_hand_options)
    return runs


def _same(ours: Run, theirs: Run) -> str:
    if ours.outcome is None or theirs.outcome is None:
        return f"no (by hand: {theirs})"
    different = [key for key in theirs.outcome if ours.outcome.get(key) != theirs.outcome[key]]
    return f"no ({', '.join(different)})" if different else f"yes: {', '.join(theirs.outcome)}"


if __name__ == "__main__":
    sys.exit(main())
