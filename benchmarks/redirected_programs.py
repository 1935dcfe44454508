"""Public programs that want CUDA, run on the CPU as they are: by Python, by `devicekit run`, and put there by hand.

    python benchmarks/redirected_programs.py FOLDER_OF_CLONES [--only NAME] [--keep FOLDER] [--markdown] [--json FILE]

FOLDER_OF_CLONES is as for migrated_programs.py. No line of a program is changed, but what makes it small and its
numbers the same in two runs, in all copies alike. devicekit must be installed in this environment, so that child
processes are redirected too.

Exit code 1 if a program does not end well under `devicekit run`, or comes to other numbers than the one changed by
hand.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from _programs import UNCHANGED, Program
from _running import Run, edit, environment, folder_for, missing, run
from _table import Sheet, machine_line, save, show

RUN = ("-m", "devicekit", "run")
WAYS = ("devicekit run", "--strict-cuda")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clones", type=Path, help="a folder of clones")
    parser.add_argument("--only", default="", metavar="NAME", help="programs with this in their name")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the copies and what they print there")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    columns = ("program", "python", *WAYS, *(f"{way}: as by hand" for way in WAYS))
    sheet, results, well = Sheet("Programs run unchanged", columns), {}, True
    for program in UNCHANGED:
        if options.only.lower() not in program.name.lower():
            continue
        if lacking := missing(program, options.clones):
            print(f"SKIPPED {program.name}: {lacking} is missing", file=sys.stderr)
            sheet.rows.append([program.name, f"skipped: {lacking} is missing", *[""] * (len(columns) - 2)])
            continue
        try:
            with folder_for(options.keep, program) as folder:
                runs = _tried(program, options.clones / program.clone, folder)
        except (ChildProcessError, LookupError) as exc:
            print(f"FAILED {program.name}: {exc}", file=sys.stderr)
            sheet.rows.append([program.name, "could not be prepared", *[""] * (len(columns) - 2)])
            well = False
            continue
        hand = runs["by hand"]
        said = [_compared(runs[WAYS[0]], hand), _compared(runs[WAYS[1]], runs.get("by hand, as on CUDA", hand))]
        sheet.rows.append([program.name, str(runs["python"]), *(str(runs[way]) for way in WAYS), *said])
        results[program.name] = {name: vars(each) for name, each in runs.items()}
        well = well and all(one.startswith("yes") for one in said)
    show([sheet], markdown=options.markdown)
    save(options.json, programs=results)
    return 0 if well else 1


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


def _compared(ours: Run, theirs: Run) -> str:
    if ours.outcome is None or theirs.outcome is None:
        return f"no (by hand: {theirs})"
    different = [key for key in theirs.outcome if ours.outcome.get(key) != theirs.outcome[key]]
    return f"no ({', '.join(different)})" if different else f"yes: {', '.join(theirs.outcome)}"


if __name__ == "__main__":
    sys.exit(main())
