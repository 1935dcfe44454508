"""No text in any option makes anything but a message of three lines and an exit code."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from devicekit import host as _host
from devicekit.testing import MACHINES, FakeHost
from tests.cli.calling import Ran, run

# A machine of its own, so that what is saved is saved nowhere.
HOST = FakeHost("cpu")

WORDS = ("use", "info", "doctor", "bench", "tune", "demo")
texts = st.one_of(
    st.text(max_size=20),
    st.builds("{}{}".format, st.sampled_from(["--", "-", "cuda:", "", "npu"]), st.text(max_size=8)),
)


def _answer(*words: str) -> Ran:
    with _host.use(HOST), contextlib.redirect_stdout(None):
        return run(*words)


def _is_a_message(ran: Ran) -> None:
    assert ran.code in (0, 1, 2)
    assert "Traceback" not in ran.err
    assert ran.code == 0 or ran.err.startswith(("devicekit: ", "usage: "))
    if ran.code == 0:
        assert ran.out


@given(text=texts)
def test_a_command(text: str) -> None:
    """Any first word is a command, an option of the door, or a mistake in words."""
    assume(text not in WORDS)
    _is_a_message(_answer(text))


@given(text=texts)
@example(text="\0")
@example(text="-")
def test_a_device_to_use(text: str) -> None:
    """Any name can be saved, or is refused with a reason."""
    _is_a_message(_answer("use", text))


@pytest.mark.parametrize("command", ["info", "doctor"])
@given(text=texts)
@example(text="\0")
def test_a_machine_to_simulate(command: str, text: str) -> None:
    """A name that is no machine is a mistake in words."""
    assume(text not in MACHINES and not text.startswith("-"))
    _is_a_message(_answer(command, "--simulate", text))


@given(text=texts)
@example(text="nan")
@example(text="-1")
@example(text="1e999")
def test_a_time_limit(text: str) -> None:
    """What is no number of seconds above 0 is a mistake in words."""
    with contextlib.suppress(ValueError):
        assume(not 0 < float(text) < float("inf"))
    _is_a_message(_answer("doctor", f"--timeout={text}"))


@pytest.mark.parametrize("option", ["--dtype", "--input", "--top", "--device"])
@given(text=texts)
@example(text="\0")
@example(text="/")
@example(text="0")
@example(text="-3")
def test_an_option_of_the_demo(option: str, text: str) -> None:
    """A format, a file, a number or a device that is none is a mistake in words."""
    with contextlib.suppress(ValueError):
        assume(option != "--top" or int(text) < 1)
    assume(option != "--device" or text.strip().lower() not in {"", "auto", "gpu", "cpu", "numpy"})
    _is_a_message(_answer("demo", f"{option}={text}", *([] if option == "--input" else ["--input=/no/such/file"])))


@pytest.mark.parametrize(
    "option",
    ["--only", "--dtype", "--batch-sizes", "--hidden-sizes", "--iterations", "--duration", "--plot", "--output"],
)
@given(text=texts)
@example(text="\0")
@example(text="1,,x")
@example(text="/no/such/folder/x.png")
def test_an_option_of_the_bench(option: str, text: str) -> None:
    """Words, numbers and files that are none are mistakes in words, and so is the device that is asked for here."""
    ran = _answer("bench", "--device=none", f"{option}={text}")
    _is_a_message(ran)
    assert ran.code == 2


@pytest.mark.parametrize("option", ["--load", "--duration", "--device"])
@given(text=texts)
@example(text="\0")
@example(text="/dev/null")
def test_an_option_of_the_tuning(option: str, text: str) -> None:
    """A file, a time or a device that is none is a mistake in words, and with --show nothing is measured."""
    assume(option != "--load" or text == "/dev/null" or not Path(text.replace("\0", "")).exists())
    _is_a_message(_answer("tune", f"{option}={text}", *([] if option == "--load" else ["--show"])))
