"""Runs the programs in tests/simulated_npu, each in a process of its own, as torch demands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PROGRAMS = sorted((HERE / "simulated_npu").glob("*.py"))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_check_of_the_program_holds(program: Path) -> None:
    """A program on the simulated npu runs to its end, and has checked something on the way."""
    path = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(program)],
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if "cannot be installed: torch " in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[-2]) > 0, "it must end with: <number> checks"


def test_the_programs_are_found() -> None:
    """The folder of programs is not empty."""
    assert PROGRAMS
