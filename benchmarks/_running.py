"""Run programs as a user does: in a copy of their clone, with CUDA hidden, and with what they printed kept."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _programs import HERE, Edit, Outcome, Program
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
class Told:
    """What a comparison says of one program."""

    row: Sequence[str]
    """Behind the program's name."""
    results: dict[str, Any]
    well: bool


def compare(
    description: str, sheet: Sheet, programs: Sequence[Program], compared: Callable[[Program, Path, Path], Told]
) -> int:
    """The command of a benchmark: compare the copies of every program in a folder of clones, and show what was told.

    ``compared`` takes a program, its clone and a new folder for the copies. The exit code is 1 if one did not go well.
    """
    options = _arguments(description)
    print(machine_line(), file=sys.stderr)
    results, well = {}, True
    for program in programs:
        if options.only.lower() not in program.name.lower():
            continue
        if lacking := missing(program, options.clones):
            print(f"SKIPPED {program.name}: {lacking} is missing", file=sys.stderr)
            sheet.rows.append(_short(sheet, program, f"skipped: {lacking} is missing"))
            continue
        try:
            with folder_for(options.keep, program) as folder:
                told = compared(program, options.clones / program.clone, folder)
        except (ChildProcessError, LookupError) as exc:
            print(f"FAILED {program.name}: {exc}", file=sys.stderr)
            sheet.rows.append(_short(sheet, program, "could not be prepared"))
            well = False
            continue
        sheet.rows.append([program.name, *told.row])
        results[program.name] = told.results
        well = well and told.well
    show([sheet], markdown=options.markdown)
    save(options.json, programs=results)
    return 0 if well else 1


def _arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("clones", type=Path, help="a folder of clones")
    parser.add_argument("--only", default="", metavar="NAME", help="programs with this in their name")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the copies and what they print there")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _short(sheet: Sheet, program: Program, why: str) -> list[str]:
    return [program.name, why, *[""] * (len(sheet.columns) - 2)]


# -- copies ------------------------------------------------------------------------------------------
def missing(program: Program, clones: Path) -> str:
    if not (clones / program.clone).is_dir():
        return str(clones / program.clone)
    return ", ".join(name for name in program.needs if importlib.util.find_spec(name) is None)


@contextlib.contextmanager
def folder_for(keep: Path | None, program: Program) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() if keep is None else contextlib.nullcontext(str(keep)) as folder:
        place = Path(folder, "".join(c if c.isalnum() else "-" for c in program.name))
        shutil.rmtree(place, ignore_errors=True)
        yield place


def edit(folder: Path, edits: Sequence[Edit]) -> None:
    for name, before, after in edits:
        text = (folder / name).read_text(encoding="utf-8")
        if before not in text:
            raise LookupError(f"{name} of this clone has no {before!r}: it is another version")
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")


# -- running -----------------------------------------------------------------------------------------
def environment(folder: Path) -> dict[str, str]:
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


def run(
    program: Program, folder: Path, env: dict[str, str], options: Sequence[str] = (), launcher: Sequence[str] = ()
) -> Run:
    """Run all steps, and take what came of it.

    ``options`` are the program's own, behind those that it has; ``launcher`` runs it in place of Python itself, as
    ``-m devicekit run``.
    """
    printed, start = "", time.perf_counter()
    for step in program.steps:
        port = str(_free_port())
        commands = [
            [word.replace("{port}", port) for word in (command[0], *launcher, *command[1:], *options)]
            for command in step.commands
        ]
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
