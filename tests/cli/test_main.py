"""The door: what it costs to open, what it says to a wrong word, and what becomes of failures."""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import subprocess
import sys

import pytest

from devicekit import __version__
from devicekit.cli.main import COMMANDS, Command, main
from devicekit.errors import DeviceKitError
from tests.cli.calling import SRC, run, run_process

# -- this file is also a command, which fails as it is told ----------------------------------------
FAILURES = {
    "ours": DeviceKitError("it broke.", why="of age", try_="a new one"),
    "foreign": RuntimeError("two\nlines"),
    "silent": ValueError(),
    "ctrl-c": KeyboardInterrupt(),
    "pipe": BrokenPipeError(),
    "memory": MemoryError(),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("how", choices=FAILURES)


def run_command(options: argparse.Namespace) -> int:
    raise FAILURES[options.how]


FAILING = (Command("fail", f"{__name__}_fail", "fails"),)


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> object:
    """Runs the failing command and gives its code and its stderr."""
    module = type(sys)(f"{__name__}_fail")
    vars(module).update(add_arguments=add_arguments, run=run_command)
    sys.modules[module.__name__] = module

    def call(how: str) -> tuple[int, str]:
        code = main(["fail", how], FAILING)
        return code, capsys.readouterr().err

    yield call
    del sys.modules[module.__name__]


# -- help ----------------------------------------------------------------------------------------
def test_help_lists_every_command() -> None:
    """`devicekit --help` names each command with what it does, and ends with 0."""
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert f"  {command.name}" in out
        assert command.help in out


def test_help_costs_nothing() -> None:
    """`devicekit --help` takes under 150 ms of processor time and loads no torch, numpy or rich."""
    code = (
        "import sys; from devicekit.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'psutil', 'platformdirs', 'subprocess'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.150


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_its_own_help(command: Command) -> None:
    """A row of the table leads to a module that opens with its reason and prints its own help."""
    code, out, _ = run(command.name, "--help")
    assert code == 0
    assert out.startswith(f"usage: devicekit {command.name}")
    assert str(importlib.import_module(command.module).__doc__).splitlines()[0] in out
    assert "--json" in out or "--report-json" in out  # where stdout is a program's own


def test_version() -> None:
    """`--version` prints the version on stdout."""
    assert run("--version") == (0, f"devicekit {__version__}\n", "")


def test_the_module_is_the_command() -> None:
    """`python -m devicekit` is `devicekit`."""
    assert run_process("--version") == (0, f"devicekit {__version__}\n", "")


# -- wrong words ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        ([], "needs a command", "info, doctor"),
        (["doctr"], "'doctr' is no command", "did you mean 'doctor'?"),
        (["Doctor"], "'Doctor' is no command", "did you mean 'doctor'?"),
        (["wxyz"], "'wxyz' is no command", "info, doctor"),
        (["--verson"], "no option '--verson'", "did you mean '--version'?"),
        (["info", "--jsn"], "no option '--jsn'", "did you mean '--json'?"),
        (["info", "--jsn=1"], "no option '--jsn'", "did you mean '--json'?"),
        (["info", "--js"], "no option '--js'", "did you mean '--json'?"),
        (["info", "more"], "no argument 'more'", "devicekit info --help"),
        (["doctor", "--timeout", "soon"], "invalid float value: 'soon'", "devicekit doctor --help"),
        (["doctor", "--timeout", "-1"], "--timeout -1 is no time limit", "above 0"),
        (["doctor", "--timeout", "nan"], "--timeout nan is no time limit", "above 0"),
        (["doctor", "--simulate", "mca"], "'mca' is no simulated machine", "did you mean 'mac'?"),
        (["demo", "--top", "0"], "--top 0 prints nothing", "1 or more"),
    ],
)
def test_a_wrong_word_is_answered_with_a_way_out(words: list[str], what: str, hint: str) -> None:
    """A word that is not understood ends with 2, nothing on stdout, and on stderr what is wrong and what to try."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    first, *_, last = err.splitlines()
    assert first.startswith("devicekit: ")
    assert what in first
    assert last.startswith("  try: ")
    assert hint in last


# -- failures ------------------------------------------------------------------------------------
def test_our_error_is_three_lines(fail) -> None:  # type: ignore[no-untyped-def]
    """A DeviceKitError becomes what, why, try on stderr and 2."""
    assert fail("ours") == (2, "devicekit: it broke.\n  why: of age\n  try: a new one\n")


@pytest.mark.parametrize(
    ("how", "told"), [("foreign", "RuntimeError: two lines"), ("silent", "ValueError"), ("memory", "MemoryError")]
)
def test_a_foreign_error_is_one_line(fail, how: str, told: str) -> None:  # type: ignore[no-untyped-def]
    """Any other exception becomes one line with its type, and where to find the traceback."""
    assert fail(how) == (2, f"devicekit: {told} (DEVICEKIT_LOG_LEVEL=debug shows the traceback)\n")


def test_an_interruption_is_quiet(fail) -> None:  # type: ignore[no-untyped-def]
    """Ctrl-C ends with 130 and says nothing."""
    assert fail("ctrl-c") == (130, "")


def test_debug_shows_the_traceback() -> None:
    """With DEVICEKIT_LOG_LEVEL=debug the traceback of an error is on stderr."""
    code, _, err = run_process("doctr", env={"DEVICEKIT_LOG_LEVEL": "debug"})
    assert code == 2
    assert "Traceback" in err
    assert "DEBUG" in err


@pytest.mark.parametrize(("level", "code"), [("", 0), (" Info ", 0), ("loud", 2)])
def test_the_log_level_is_checked(level: str, code: int) -> None:
    """A level that logging does not have is our error, and names those that it has."""
    ran = run_process("--version", env={"DEVICEKIT_LOG_LEVEL": level})
    assert ran.code == code
    assert ("one of debug, info, warning" in ran.err) == (code == 2)


def test_a_reader_who_leaves_is_no_error() -> None:
    """When stdout is closed by its reader, the command ends without a word and without a traceback."""
    command = [sys.executable, "-c", "from devicekit.cli.main import main; raise SystemExit(main())", "use", "--show"]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
