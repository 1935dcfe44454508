"""What importing devicekit costs, beside its peers: a library that everybody imports must not be felt.

Every sample is a fresh process. The cases take turns, forwards and backwards, after one round that only warms the
caches, so that a slow minute of the machine hits all of them alike. Targets are held against the median of the CPU
time, which other jobs lengthen less; the time by the wall clock stands beside it, and on an idle machine they are the
same. devicekit is measured as pip installs it: a copy with compiled bytecode. Not for Windows (getrusage).
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _table import Sheet, machine_line, median, save, show, verdict

HERE = Path(__file__).resolve().parent
UNWANTED = ("torch", "numpy", "psutil", "torch._dynamo", "torch._inductor", "sympy", "yaml", "torch.distributed.fsdp")


@dataclass
class Case:
    """One statement, timed after another that is not."""

    code: str
    before: str = "pass"
    needs: str = "devicekit"
    target: float | None = None
    """Milliseconds."""
    samples: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    said: str = ""
    problem: str = ""


@dataclass
class Command:
    """One process, timed from outside."""

    title: str
    argv: list[str]
    target: float | None = None
    samples: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    problem: str = ""


NOTHING = "after nothing"
TORCH = "after import torch"
FIRST = "after import torch, until a device is known"
RESOLVE = "import devicekit; devicekit.resolve_device({})"
CASES = {
    NOTHING: [
        Case("import devicekit", target=10),
        Case("from devicekit import resolve_device"),
        Case("from devicekit import DeviceManager"),
        Case("import typing", needs="the standard library"),
        Case("import dataclasses, logging, pathlib", needs="the standard library"),
    ],
    TORCH: [
        Case("import devicekit", "import torch", target=5),
        Case("from devicekit import resolve_device", "import torch"),
        Case("import accelerate", "import torch", "accelerate"),
        Case("import lightning_fabric", "import torch", "lightning_fabric"),
        Case("import deepspeed.accelerator", "import torch", "deepspeed"),
        Case("import diffusers.utils.torch_utils", "import torch", "diffusers"),
    ],
    FIRST: [
        Case(RESOLVE.format("'cpu'"), "import torch"),
        Case(RESOLVE.format(""), "import torch"),
        Case("import accelerate; accelerate.PartialState().device", "import torch", "accelerate"),
        Case(
            "import deepspeed.accelerator as a; a.get_accelerator().current_device_name()", "import torch", "deepspeed"
        ),
        Case(
            "from lightning_fabric import Fabric; Fabric(accelerator='auto').device", "import torch", "lightning_fabric"
        ),
        Case("from diffusers.utils.torch_utils import get_device; get_device()", "import torch", "diffusers"),
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="fresh processes for each case (default 9)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="devicekit-import-") as folder:
        environment = _install(Path(folder))
        commands = _commands(Path(folder))
        _measure(options.rounds, environment, Path(folder), commands)
    sheets = [*(_sheet(title, cases) for title, cases in CASES.items()), _command_sheet(commands)]
    print(machine_line(), file=sys.stderr)
    show(sheets, markdown=options.markdown)
    imports = {title: [vars(case) for case in cases] for title, cases in CASES.items()}
    save(options.json, imports=imports, commands=[vars(command) for command in commands])
    return 0


def _install(folder: Path) -> dict[str, str]:
    """A compiled copy of devicekit, and the environment that finds it."""
    found = importlib.util.find_spec("devicekit")
    package = Path(found.origin).parent if found and found.origin else HERE.parent / "src" / "devicekit"
    shutil.copytree(package, folder / "devicekit", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder / "devicekit", quiet=2)
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(folder)}


def _commands(folder: Path) -> list[Command]:
    scripts = Path(sysconfig.get_path("scripts"))
    made = [Command("python -c pass", [sys.executable, "-c", "pass"])]
    if (folder / "devicekit" / "cli" / "main.py").exists():
        # What pip writes into the console script.
        start = "import sys; from devicekit.cli.main import main; sys.argv[0] = 'devicekit'; sys.exit(main())"
        made.append(Command("devicekit --help", [sys.executable, "-c", start, "--help"], target=150))
    else:
        made.append(Command("devicekit --help", [], target=150, problem="not written yet"))
    for title in ("accelerate --help", "diffusers-cli --help", "ds_report"):
        name, *arguments = title.split()
        problem = "" if (scripts / name).exists() else "not installed"
        made.append(Command(title, [sys.executable, str(scripts / name), *arguments], problem=problem))
    return made


def _measure(rounds: int, environment: dict[str, str], folder: Path, commands: list[Command]) -> None:
    cases: list[Case | Command] = [case for group in CASES.values() for case in group]
    everything = [*cases, *commands]
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}" if number else "warm-up", file=sys.stderr, flush=True)
        for one in everything if number % 2 else reversed(everything):
            if not one.problem:
                _sample(one, environment, folder, keep=number > 0)


def _sample(one: Case | Command, environment: dict[str, str], folder: Path, *, keep: bool) -> None:
    if isinstance(one, Command):
        return _run_command(one, environment, folder, keep=keep)
    report = folder / "report.json"
    argv = [sys.executable, str(HERE / "_import_child.py"), one.before, one.code, str(report)]
    done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it died without a word"])[-1]
        missing = f"No module named '{one.needs}'" in last
        one.problem = "not installed" if missing else last
        return None
    told: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    one.modules, one.environment, one.said = told["modules"], told["environment"], done.stdout + done.stderr
    if keep:
        one.samples.append(told["ms"])
        one.cpu.append(told["cpu_ms"])
    return None


def _run_command(one: Command, environment: dict[str, str], folder: Path, *, keep: bool) -> None:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(one.argv, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    spent, after = (time.perf_counter() - start) * 1e3, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        one.problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    elif keep:
        one.samples.append(spent)
        one.cpu.append(busy * 1e3)


def _times(one: Case | Command, digits: int) -> list[str]:
    return [f"{value:.{digits}f}" for value in (median(one.cpu), median(one.samples), min(one.samples))]


def _goal(one: Case | Command) -> tuple[str, str]:
    return ("", "") if one.target is None else (f"< {one.target:g}", verdict(median(one.cpu), one.target))


def _sheet(title: str, cases: list[Case]) -> Sheet:
    times, effects = ("CPU ms", "wall ms", "wall min"), ("modules", "drags in", "environment", "output")
    columns = ("statement", *times, *effects, "target", "met")
    sheet = Sheet(f"Import cost {title}", columns)
    for case in cases:
        if case.problem:
            sheet.rows.append((case.code, f"skipped: {case.problem}", *[""] * 8))
            continue
        heavy = [name for name in UNWANTED if name in case.modules]
        changed = ", ".join(case.environment) or "unchanged"
        said = f"{len(case.said)} characters" if case.said else "none"
        found = (str(len(case.modules)), ", ".join(heavy) or "nothing", changed, said)
        sheet.rows.append((case.code, *_times(case, 1), *found, *_goal(case)))
    return sheet


def _command_sheet(commands: list[Command]) -> Sheet:
    sheet = Sheet("A whole process", ("command", "CPU ms", "wall ms", "wall min", "over bare python", "target", "met"))
    for one in commands:
        if one.problem:
            sheet.rows.append((one.title, f"skipped: {one.problem}", *[""] * 5))
            continue
        over = f"{median(one.cpu) - median(commands[0].cpu):+.0f}"
        sheet.rows.append((one.title, *_times(one, 0), over, *_goal(one)))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
