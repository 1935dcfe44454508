"""use: a choice is kept whole or not at all, is a device that works here, and says what would win over it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import devicekit
from devicekit.request import CHOICE_FILE
from devicekit.testing import FakeHost, simulated_machine
from tests.cli.calling import run, run_process

pytestmark = pytest.mark.slow


@pytest.fixture
def laptop() -> Iterator[FakeHost]:
    """A simulated laptop with a CUDA GPU, whose choice file is its own."""
    with simulated_machine("cuda-laptop") as host:
        yield host


def saved(host: FakeHost) -> str | None:
    file = host.config_file(CHOICE_FILE)
    return file.read_text() if file.exists() else None


def test_a_choice_is_saved_and_then_counts(laptop: FakeHost) -> None:
    """After `use cpu`, a program that asks for nothing gets the CPU."""
    code, out, err = run("use", "cpu")
    assert (code, err) == (0, "")
    assert "Saved: cpu" in out
    assert saved(laptop) == "cpu\n"
    with simulated_machine("cuda-laptop") as fresh:
        file = fresh.config_file(CHOICE_FILE)
        file.parent.mkdir(parents=True)
        file.write_text(str(saved(laptop)))
        assert devicekit.explain().source == "saved choice"
        assert str(devicekit.resolve_device()) == "cpu"


@pytest.mark.parametrize(("name", "kept"), [(" CUDA:0 ", "cuda:0"), ("auto", "auto"), ("AUTO", "auto"), ("gpu", "gpu")])
def test_a_choice_is_kept_as_one_spells_it(laptop: FakeHost, name: str, kept: str) -> None:
    """Case and blanks do not matter; `auto` and `gpu` are choices too."""
    assert run("use", name).code == 0
    assert saved(laptop) == f"{kept}\n"


@pytest.mark.parametrize("name", ["npu", "cuda:3", "mps"])
def test_a_device_that_cannot_be_used_is_refused(laptop: FakeHost, name: str) -> None:
    """It ends with 1 and three lines that name `--force`; nothing is saved."""
    code, out, err = run("use", name)
    assert (code, out) == (1, "")
    assert err.startswith(f"devicekit: '{name}' was asked for, but it cannot be used here.\n  why: ")
    assert f"devicekit use {name} --force" in err
    assert saved(laptop) is None


def test_force_saves_a_device_that_cannot_be_used(laptop: FakeHost) -> None:
    """`--force` saves it, for instance before the driver is installed."""
    assert run("use", "npu", "--force").code == 0
    assert saved(laptop) == "npu\n"


@pytest.mark.parametrize("words", [("cuad",), ("cuad", "--force"), ("",), ("cuda:x",), ("nvidia",)])
def test_a_word_that_is_no_device_is_refused_even_by_force(laptop: FakeHost, words: tuple[str, ...]) -> None:
    """It ends with 2 and a way out; nothing is saved."""
    code, out, err = run("use", *words)
    assert (code, out) == (2, "")
    assert "is no device" in err
    assert "  try: " in err
    assert saved(laptop) is None


def test_show_and_reset(laptop: FakeHost) -> None:
    """`--show` tells what is saved, `--reset` forgets it, and both may be said twice."""
    assert "Nothing is saved" in run("use", "--show").out
    run("use", "cpu")
    assert "Saved: cpu" in run("use", "--show").out
    assert "Nothing is saved" in run("use", "--reset").out
    assert run("use", "--reset").code == 0
    assert saved(laptop) is None


def test_what_wins_over_the_choice_is_told(laptop: FakeHost) -> None:
    """A pin that is set is named when a choice is saved, and stands in the JSON."""
    laptop.env["KRONOS_DEVICE"] = "cuda"
    assert "KRONOS_DEVICE='cuda' is set, and wins" in run("use", "cpu").out
    told = json.loads(run("use", "--show", "--json").out)
    assert told == {
        "saved": "cpu",
        "file": str(laptop.config_file(CHOICE_FILE)),
        "overridden_by": {"KRONOS_DEVICE": "cuda"},
    }


@pytest.mark.parametrize("words", [(), ("cpu", "--show"), ("--show", "--reset"), ("cpu", "npu")])
def test_it_does_one_thing(laptop: FakeHost, words: tuple[str, ...]) -> None:
    """None or two of NAME, --show and --reset is an error, and nothing is saved."""
    assert run("use", *words).code == 2
    assert saved(laptop) is None


def test_nothing_is_left_beside_the_file(laptop: FakeHost) -> None:
    """The draft that is moved into place does not stay behind."""
    run("use", "cpu")
    run("use", "cuda")
    file = laptop.config_file(CHOICE_FILE)
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_our_error(laptop: FakeHost) -> None:
    """Where the folder cannot be made, the error says why and which variable does instead."""
    folder = laptop.config_file(CHOICE_FILE).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where the folder should be")
    code, out, err = run("use", "cpu")
    assert (code, out) == (2, "")
    assert err.startswith("devicekit: your choice cannot be kept.\n  why: ")
    assert "export DEVICEKIT_DEVICE=NAME" in err


def test_a_choice_in_the_way_stays_whole_when_saving_fails(laptop: FakeHost) -> None:
    """When the new choice cannot be put in place, no draft stays behind."""
    file = laptop.config_file(CHOICE_FILE)
    file.mkdir(parents=True)
    assert run("use", "cpu").code == 2
    assert list(file.parent.iterdir()) == [file]


def test_a_real_process_uses_the_users_folder(tmp_path: Path) -> None:
    """`devicekit use` in one process is seen by the next one, in the folder that XDG names."""
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert run_process("use", "numpy", env=env).code == 0
    assert (tmp_path / "devicekit" / CHOICE_FILE).read_text() == "numpy\n"
    assert json.loads(run_process("use", "--show", "--json", env=env).out)["saved"] == "numpy"
