"""How the tests call the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import devicekit
from devicekit.cli.main import main
from devicekit.testing import MACHINES, Machine, simulated_machine

SRC = Path(devicekit.__file__).parents[1]


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def run(*words: str) -> Ran:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Ran(code, out.getvalue(), err.getvalue())


@functools.cache
def _run_on(machine: str, words: tuple[str, ...]) -> Ran:
    with simulated_machine(Machine.from_json(machine)):
        return run(*words)


def run_on(machine: str | Machine, *words: str) -> Ran:
    """A command on a simulated machine; the same question is asked once, for each starts child processes."""
    simulated = MACHINES[machine] if isinstance(machine, str) else machine
    return _run_on(simulated.to_json(), words)


def run_process(*words: str, env: dict[str, str] | None = None, timeout: float = 120, **options: object) -> Ran:
    """A command in a process of its own, with nobody's pins and no folder of choices but the one given."""
    full = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONWARNINGS": "", **(env or {})}
    command = [sys.executable, "-m", "devicekit", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=full, timeout=timeout, **options)  # type: ignore[call-overload]
    return Ran(done.returncode, done.stdout, done.stderr)
