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
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _programs import HERE, PROGRAMS, Edit, Outcome, Program
from _table import Sheet, machine_line, save, show

import devicekit

LIMIT = 900
"""Seconds for one step of a program."""


@dataclass(frozen=True)
class Run:
    """How one copy of a program ended."""

    outcome: Outcome | None
    why: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return "yes" if self.outcome is not None else f"no: {self.why}"


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
        if missing := _missing(program, options.clones):
            print(f"SKIPPED {program.name}: {missing} is missing", file=sys.stderr)
            sheet.rows.append([program.name, f"skipped: {missing} is missing", *[""] * (len(columns) - 2)])
            continue
        try:
            with _folder(options.keep, program) as folder:
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


def _missing(program: Program, clones: Path) -> str:
    if not (clones / program.clone).is_dir():
        return str(clones / program.clone)
    return ", ".join(name for name in program.needs if importlib.util.find_spec(name) is None)


@contextlib.contextmanager
def _folder(keep: Path | None, program: Program) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() if keep is None else contextlib.nullcontext(str(keep)) as folder:
        place = Path(folder, "".join(c if c.isalnum() else "-" for c in program.name))
        shutil.rmtree(place, ignore_errors=True)
        yield place


def _tried(program: Program, clone: Path, folder: Path) -> tuple[Migration, dict[str, Run]]:
    """Three copies of the same: as it is, migrated, and changed by hand."""
    env = _environment(folder)
    original, migrated, by_hand = (folder / name for name in ("original", "migrated", "by_hand"))
    shutil.copytree(clone, original, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    program.make(original, env)
    _edit(original, program.alike)
    shutil.copytree(original, migrated)
    shutil.copytree(original, by_hand)
    migration = _migrated(migrated)
    _edit(by_hand, program.by_hand)
    return migration, {
        "original": _run(program, original, env),
        "migrated": _run(program, migrated, env),
        "by hand": _run(program, by_hand, env, program.by_hand_options),
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


def _edit(folder: Path, edits: Sequence[Edit]) -> None:
    for name, before, after in edits:
        text = (folder / name).read_text(encoding="utf-8")
        if before not in text:
            raise LookupError(f"{name} of this clone has no {before!r}: it is another version")
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")


# -- running -----------------------------------------------------------------------------------------
def _environment(folder: Path) -> dict[str, str]:
    """CUDA hidden, so that a machine with a GPU asks the same question; nothing loads from a hub or opens a window."""
    path = [str(Path(devicekit.__file__).parents[1]), "."]
    if importlib.util.find_spec("torchvision") and not _imports("torchvision"):
        path.append(str(HERE / "_operators"))
    quiet = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(folder / "matplotlib")}
    return {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)}


@functools.cache
def _imports(module: str) -> bool:
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(program: Program, folder: Path, env: dict[str, str], options: Sequence[str] = ()) -> Run:
    """Run all steps, and take what came of it."""
    printed, start = "", time.perf_counter()
    for step in program.steps:
        port = str(_free_port())
        commands = [[word.replace("{port}", port) for word in (*command, *options)] for command in step.commands]
        codes, texts = _together(commands, folder / step.folder, env)
        printed += "".join(texts)
        (folder.parent / f"{folder.name}.log").write_text(printed, encoding="utf-8")
        for code, text in zip(codes, texts, strict=True):
            if code:
                return Run(None, _error(text) or f"exit code {code}")
    try:
        return Run(program.outcome(folder, printed), seconds=round(time.perf_counter() - start, 1))
    except (OSError, ValueError) as exc:
        return Run(None, str(exc))


def _together(commands: Sequence[Sequence[str]], folder: Path, env: dict[str, str]) -> tuple[list[int], list[str]]:
    """Run commands at the same time, each in a group of its own; when one fails, the others end as well."""
    with contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")) for _ in commands
        ]
        running = []
        for command, output in zip(commands, outputs, strict=True):
            running.append(
                subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
            )
            stack.callback(_end, running[-1])
        end = time.monotonic() + LIMIT
        while any(one.poll() is None for one in running) and time.monotonic() < end:
            if any(one.poll() for one in running):
                time.sleep(5)  # so that the others can say why
                break
            time.sleep(0.1)
        codes = [_end(one) for one in running]
        for output in outputs:
            output.seek(0)
        return codes, [output.read() for output in outputs]


def _end(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _error(text: str) -> str:
    """The first error that was printed, which is the cause of the others; else the last line."""
    errors = re.findall(r"(?m)^(?:\[rank\d+\]: )?((?:\w+\.)*\w*Error: .*)", text)
    return str((errors or text.strip().splitlines() or [""])[0 if errors else -1])[:120]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
