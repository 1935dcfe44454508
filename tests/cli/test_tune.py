"""tune: the fastest choice that computes the same is kept for this machine; no other file gets in, nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit import host as hosts
from devicekit import tuning
from devicekit.bench.allocation import Figures, Question, ask_child
from devicekit.bench.choosing import QUESTIONS, Trial, Tuner, best, thread_counts
from devicekit.bench.sizes import Size, tuning_size
from devicekit.bench.stage import TorchStage
from devicekit.bench.transformer import Shape
from devicekit.resolve import resolver
from devicekit.testing import MACHINES, FakeHost, simulated_machine
from devicekit.tuning import reading
from devicekit.tuning.value import DTYPES, Tuning, fingerprint_of
from tests.cli.calling import run, run_process
from tests.users import without_a_home

SMALL = Size(Shape(hidden=64, layers=1, vocabulary=32, positions=16), batch=2, seq=8)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One, and afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine() -> Iterator[FakeHost]:
    """A processor with native bfloat16, where nothing is saved."""
    with simulated_machine(cpu=("avx2", "avx512_f", "avx512_bf16")) as host:
        yield host


# -- choosing ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((1.0, 2.0), "0"),
        ((2.0, 1.0), "1"),
        ((1.04, 1.0), "0"),
        ((1.06, 1.0), "1"),
        ((None, 3.0), "1"),
        ((3.0, 1.02, 1.0), "1"),
        ((None, None), None),
        ((), None),
    ],
)
def test_the_first_of_the_fastest_wins(seconds: tuple[float | None, ...], chosen: str | None) -> None:
    """What is not faster by a twentieth does not win over what stands before it."""
    assert best(Trial(str(i), each) for i, each in enumerate(seconds)) == chosen


@pytest.mark.parametrize(
    ("cpus", "own", "counts"),
    [(1, 1, [1]), (1, 64, [1]), (2, 2, [1, 2]), (6, 3, [1, 2, 3, 4, 6]), (8, 64, [1, 2, 4, 8]), (3, 0, [1, 2, 3])],
)
def test_threads_stay_within_the_quota(cpus: int, own: int, counts: list[int]) -> None:
    """torch's own number is tried where the container gives as many CPUs, and never more than that."""
    assert thread_counts(cpus, own) == counts


Table = Mapping[tuple[str, str], float]


class Scripted:
    """A clock that says what the table says, and 1 for what is not in it; the work is really run."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.asked: list[tuple[str, str]] = []
        self.threads: list[int] = []

    def __call__(self, question: str, choice: str, run: Callable[[], object]) -> float:
        run()
        self.asked.append((question, choice))
        self.threads.append(torch.get_num_threads())
        return self.table.get((question, choice), 1.0)


def child(table: Mapping[str, Figures] | None = None) -> Callable[[Question, Mapping[str, str]], Figures]:
    """Figures by the first variable's name; the same for all that are not in the table."""
    return lambda question, settings: (table or {}).get(next(iter(settings), ""), Figures(1.0, 100))


def tuner(clock: Scripted | None = None, name: str = "cpu", **options: Any) -> Tuner:
    decision = resolver().decide(name)
    stage = TorchStage(decision.backend, decision.device, decision.index or 0)
    return Tuner(stage, name, **{"size": SMALL, "clock": clock or Scripted({}), "child": child(), **options})


def test_without_a_difference_nothing_is_changed(machine: FakeHost) -> None:
    """All is left to torch and to the backend where nothing is faster, and with as few threads."""
    found = tuner().tune()
    assert (found.dtype, found.attention, found.channels_last, found.allocator) == ("bfloat16", None, False, {})
    assert (found.threads, found.own_threads) == (1, 1)
    assert found.fingerprint == fingerprint_of(resolver().decide("cpu").backend, 0)


def test_what_is_faster_is_chosen(machine: FakeHost) -> None:
    """Each question has its own answer, and what was measured is kept with it."""
    table = {("dtype", "float32"): 0.5, ("attention", "math"): 0.5, ("convolution", "channels_last"): 0.5}
    found = tuner(Scripted(table), child=child({"THP_MEM_ALLOC_ENABLE": Figures(0.5, None)})).tune()
    assert (found.dtype, found.attention, found.channels_last) == ("float32", "math", True)
    assert found.allocator == {"THP_MEM_ALLOC_ENABLE": "1"}
    assert found.seconds["dtype"] == {"bfloat16": 1.0, "float32": 0.5}
    assert set(found.seconds) == set(QUESTIONS)
    tuning.check(found, found.fingerprint, resolver().decide("cpu").backend)


def test_every_choice_is_measured_in_turn(machine: FakeHost) -> None:
    """Two rounds, so that a machine that gets slower meanwhile favours nobody; the faster of the two counts."""
    times = iter([9.0, 1.0, 0.5, 1.0])
    clock = Scripted({})
    asking = tuner(lambda question, choice, run: next(times) if question == "dtype" else clock(question, choice, run))
    assert asking.tune().dtype == "bfloat16"
    assert asking.trials["dtype"] == [Trial("bfloat16", 0.5), Trial("float32", 1.0)]
    assert [choice for question, choice in clock.asked if question == "convolution"] == [
        "contiguous", "channels_last", "contiguous", "channels_last",
    ]  # fmt: skip


def test_threads_are_tried_used_and_put_back(machine: FakeHost) -> None:
    """Each trial runs with its number, later questions with the best one, and afterwards all is as before."""
    torch.set_num_threads(2)
    clock = Scripted({("threads", "1"): 0.1})
    found = tuner(clock).tune()
    assert (found.threads, found.own_threads) == (1, 2)
    for (question, choice), count in zip(clock.asked, clock.threads, strict=True):
        assert count == (int(choice) if question == "threads" else 1)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", tuning.THREAD_PINS)
def test_threads_that_a_variable_sets_are_not_tuned(machine: FakeHost, name: str) -> None:
    """It would win anyway, and what torch chooses by itself cannot be seen."""
    machine.env[name] = "1"
    asking = tuner()
    assert asking.tune().threads is None
    assert asking.trials["threads"][0].note == f"{name} is set, and decides"


def test_threads_of_an_accelerator_are_not_tuned() -> None:
    """The work is not the processor's."""
    with simulated_machine("cuda-laptop"):
        found = tuner(name="cuda").tune()
    assert (found.threads, found.own_threads) == (None, None)
    assert found.dtype == "bfloat16"


def test_a_dtype_that_computes_something_else_is_out(machine: FakeHost) -> None:
    """However fast: its answers must have a cosine above 0.999 to float32's."""
    asking = tuner(Scripted({("dtype", "bfloat16"): 0.01}))
    cast = SMALL.transformer

    class Wrong:
        """A size whose model answers noise in any other dtype than float32."""

        shape, batch, seq = SMALL.shape, SMALL.batch, SMALL.seq

        def transformer(self, stage: TorchStage, dtype: str) -> Any:
            made = cast(stage, dtype)
            exact = made.cast

            def noisy(into: torch.dtype) -> Callable[[Any], Any]:
                right = exact(into)
                if into is torch.float32:
                    return right
                return lambda tokens: right(tokens) + torch.randn(1)

            made.cast = noisy  # type: ignore[method-assign,assignment]
            return made

    asking.size = Wrong()  # type: ignore[assignment]
    assert asking.tune().dtype == "float32"
    out = next(trial for trial in asking.trials["dtype"] if trial.choice == "bfloat16")
    assert out.seconds is None
    assert "to float32's answers, not above 0.999" in out.note


def test_a_choice_that_cannot_run_is_out(machine: FakeHost) -> None:
    """What torch raises is the note, memory that ran out is called so, and the other choices are asked."""

    def clock(question: str, choice: str, run: Callable[[], object]) -> float:
        if choice == "bfloat16":
            raise RuntimeError('"gelu" not implemented for\nit')
        if choice == "channels_last":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0

    asking = tuner(clock)  # type: ignore[arg-type]
    found = asking.tune()
    assert (found.dtype, found.channels_last) == ("float32", False)
    notes = {trial.choice: trial.note for trials in asking.trials.values() for trial in trials if trial.note}
    assert notes["bfloat16"] == '"gelu" not implemented for'
    assert notes["channels_last"] == "out of memory"


def test_where_nothing_runs_nothing_is_claimed(machine: FakeHost) -> None:
    """The layout is unknown then, and the rest is left as it is."""

    def clock(question: str, choice: str, run: Callable[[], object]) -> float:
        raise RuntimeError("no")

    found = tuner(clock).tune()  # type: ignore[arg-type]
    assert (found.dtype, found.threads, found.attention, found.channels_last) == ("float32", None, None, None)


def test_a_device_without_room_is_our_error() -> None:
    """Not even float32 runs: what, why, try."""
    with (
        simulated_machine(cuda=1, faults={"oom_at": "1KiB"}),
        pytest.raises(dk.DeviceKitError, match="cuda cannot be tuned") as caught,
    ):
        tuner(name="cuda").tune()
    assert "out of memory" in caught.value.why


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        (Figures(0.9, 100), True),
        (Figures(0.97, 100), False),
        (Figures(1.04, 80), True),
        (Figures(1.06, 10), False),
        (Figures(1.0, None), False),
    ],
)
def test_an_allocator_is_better_if_faster_or_smaller(figures: Figures, chosen: bool) -> None:
    """By a twentieth of the time, or a tenth of the memory at the same speed."""
    with simulated_machine("cuda-laptop"):
        settings = resolver().decide("cuda").backend.allocator_settings()[0]
        found = tuner(name="cuda", child=child({next(iter(settings)): figures})).tune()
    assert found.allocator == (settings if chosen else {})


def test_an_allocator_that_cannot_be_measured_stays(machine: FakeHost) -> None:
    """Without a figure for how it is, no other one can be better."""

    def failing(question: Question, settings: Mapping[str, str]) -> Figures:
        if settings:
            return Figures(0.1, None)
        raise dk.DeviceKitError("no.", why="the child died")

    asking = tuner(child=failing)
    assert asking.tune().allocator == {}
    assert asking.trials["allocator"][0] == Trial("as it is", None, "the child died")


def test_an_allocator_that_the_user_has_set_stays(machine: FakeHost) -> None:
    """What is in the environment was somebody's decision."""
    machine.env["MALLOC_TRIM_THRESHOLD_"] = "1"
    asking = tuner()
    assert asking.tune().allocator == {}
    assert asking.trials["allocator"][0].note == "MALLOC_TRIM_THRESHOLD_ is set, and decides"


def test_a_simulated_machine_has_no_allocator_to_measure(machine: FakeHost) -> None:
    """A child would measure the real one."""
    with pytest.raises(dk.DeviceKitError, match="cannot be measured"):
        ask_child(machine, Question("cpu", "float32", 1, 0.1), {})


@pytest.mark.slow
def test_a_child_measures_under_the_variables_that_it_is_given(tmp_path: Path) -> None:
    """The real processor gives a time; a device that is not there gives the reason."""
    host = hosts.Host(env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)})
    found = ask_child(host, Question("cpu", "float32", 1, 0.05), {"THP_MEM_ALLOC_ENABLE": "1"})
    assert found.seconds > 0
    with pytest.raises(dk.DeviceKitError, match="cannot be measured") as caught:
        ask_child(host, Question("npu:7", "float32", 1, 0.05), {})
    assert caught.value.why


def test_the_work_suits_the_device() -> None:
    """An accelerator gets more of it than a processor."""
    with simulated_machine("cuda-laptop"):
        sizes = [tuning_size(tuner(name=name).stage) for name in ("cuda", "cpu")]
    flops = [size.shape.flops(size.batch, size.seq) for size in sizes]
    assert flops[0] > 10 * flops[1]


# -- the command -------------------------------------------------------------------------------------
def made(host: FakeHost, name: str = "cpu", **changes: Any) -> Tuning:
    with hosts.use(host):
        here = fingerprint_of(resolver(host).decide(name).backend, 0)
    return dataclasses.replace(Tuning(here, "2026-01-31T12:00:00+00:00", "bfloat16"), **changes)


def written(folder: Path, value: Tuning) -> str:
    file = folder / "other.json"
    file.write_bytes(tuning.as_text(value))
    return str(file)


def kept(host: FakeHost) -> list[Path]:
    folder = host.config_file(tuning.FOLDER)
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.slow
def test_it_measures_and_keeps(machine: FakeHost, tmp_path: Path) -> None:
    """After `tune` the manager goes by it, the copy holds the same, and nothing else lies in the folder."""
    copy = tmp_path / "copy.json"
    code, out, err = run("tune", "--duration", "0.01", "--output", str(copy), "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert list(told) == ["tuning", "file", "in_force", "trials"]
    assert told["in_force"] is True
    assert [Path(told["file"])] == kept(machine)
    assert json.loads(copy.read_text()) == json.loads(Path(told["file"]).read_text()) == told["tuning"]
    assert list(told["trials"]) == list(QUESTIONS)
    assert dk.DeviceManager().tuning == reading.load(copy)
    shown = run("tune", "--show")
    assert shown.code == 0
    assert f"dtype        {told['tuning']['dtype']}" in shown.out
    assert told["file"] in shown.out


@pytest.mark.slow
def test_the_text_has_every_trial(machine: FakeHost) -> None:
    """The answers, and under them each choice with its time or why it is out."""
    code, out, err = run("tune", "--duration", "0.01")
    assert (code, err) == (0, "")
    for said in ("which is flash", "channels_last", "this machine is simulated", "Saved in "):
        assert said in out


def test_show_without_anything_saved(machine: FakeHost) -> None:
    """It says so, and what to do; --output has nothing to write then, and ends with 2."""
    assert "Nothing is saved for cpu" in run("tune", "--show").out
    assert json.loads(run("tune", "--show", "--json").out)["tuning"] is None
    code, _, err = run("tune", "--show", "--output", str(machine.root / "x.json"))
    assert code == 2
    assert "nothing is saved" in err
    assert not (machine.root / "x.json").exists()


def test_load_show_and_reset(machine: FakeHost, tmp_path: Path) -> None:
    """A file of a machine like this is kept, can be shown and written again, and can be forgotten twice."""
    value = made(machine, channels_last=True, threads=1, own_threads=1)
    file = written(tmp_path, value)
    code, out, err = run("tune", "--load", file)
    assert (code, err) == (0, "")
    assert "bfloat16" in out
    assert dk.DeviceManager().tuning == value
    assert run("tune", "--show", "--output", str(tmp_path / "again.json")).code == 0
    assert reading.load(tmp_path / "again.json") == value
    assert "Nothing is saved" in run("tune", "--reset").out
    assert dk.DeviceManager().tuning is None
    assert run("tune", "--reset").code == 0
    assert kept(machine) == []


def test_an_allocators_settings_are_said_as_one_types_them(machine: FakeHost, tmp_path: Path) -> None:
    """They count only before a process starts, so they are a line for the shell."""
    value = made(machine, allocator={"THP_MEM_ALLOC_ENABLE": "1"})
    assert (
        "export THP_MEM_ALLOC_ENABLE=1, before the program starts"
        in run("tune", "--load", written(tmp_path, value)).out
    )


def test_switched_off_is_said(machine: FakeHost, tmp_path: Path) -> None:
    """What is saved and does not count is no surprise."""
    run("tune", "--load", written(tmp_path, made(machine)))
    machine.env[tuning.SWITCH] = "off"
    assert "DEVICEKIT_TUNING='off' is set, so it does not count" in run("tune", "--show").out
    assert json.loads(run("tune", "--show", "--json").out)["in_force"] is False


def elsewhere(value: Tuning, **changes: Any) -> Tuning:
    return dataclasses.replace(value, fingerprint=dataclasses.replace(value.fingerprint, **changes))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"processor": "Acme 9000"}, "the processor 'Acme 9000'"),
        ({"torch": "2.6.0"}, "torch '2.6.0'"),
        ({"cpus": 1000}, "a number of usable CPUs of 1000"),
        ({"devicekit": "9"}, "devicekit '9'"),
    ],
)
def test_a_file_from_elsewhere_is_refused(machine: FakeHost, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    """Three lines say what differs, and what was saved stays."""
    value = made(machine)
    run("tune", "--load", written(tmp_path, value))
    code, out, err = run("tune", "--load", written(tmp_path, elsewhere(value, **change)))
    assert (code, out) == (2, "")
    assert err.startswith("devicekit: this tuning does not count here.\n  why: it was measured with ")
    assert why in err
    assert dk.DeviceManager().tuning == value


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 20_000, b"x" * (reading.LARGEST + 1), b'{"format": 1}'])
def test_a_broken_file_is_refused(machine: FakeHost, tmp_path: Path, content: bytes) -> None:
    """With the reason, and what was saved stays."""
    value = made(machine)
    run("tune", "--load", written(tmp_path, value))
    (tmp_path / "broken.json").write_bytes(content)
    code, out, err = run("tune", "--load", str(tmp_path / "broken.json"))
    assert (code, out) == (2, "")
    assert "broken.json" in err
    assert "  why: " in err
    assert dk.DeviceManager().tuning == value


def test_a_saved_file_that_broke_is_told_and_can_be_replaced(machine: FakeHost, tmp_path: Path) -> None:
    """`--show` says what is wrong with it; `--load` and `--reset` get rid of it."""
    value = made(machine)
    file = tuning.file_of(machine, value.fingerprint)
    file.parent.mkdir(parents=True)
    for repair in (("--load", written(tmp_path, value)), ("--reset",)):
        file.write_bytes(b"{}")
        code, _, err = run("tune", "--show")
        assert code == 2
        assert "is no tuning" in err
        assert run("tune", *repair).code == 0
        assert run("tune", "--show").code == 0


def test_a_file_may_not_name_variables_of_its_own(machine: FakeHost, tmp_path: Path) -> None:
    """Nobody is told to export what the backend does not know."""
    code, out, err = run("tune", "--load", written(tmp_path, made(machine, allocator={"LD_PRELOAD": "/tmp/x.so"})))
    assert (code, out) == (2, "")
    assert "LD_PRELOAD" in err
    assert kept(machine) == []


@pytest.mark.parametrize("words", [("--duration", "0.01"), ("--load", "FILE")])
def test_a_folder_that_cannot_be_written_fails_first(machine: FakeHost, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Before anything is measured, with the path and the system's reason."""
    folder = machine.config_file(tuning.FOLDER)
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    file = written(tmp_path, made(machine))
    code, out, err = run("tune", *[file if word == "FILE" else word for word in words])
    assert (code, out) == (2, "")
    assert err.startswith("devicekit: the tuning cannot be kept.\n  why: ")
    assert str(folder) in err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--show", "--reset"), "does one thing"),
        (("--load", "x", "--show"), "does one thing"),
        (("--reset", "--output", "x"), "does one thing"),
        (("--load", "x", "--output", "y"), "does one thing"),
        (("--duration", "0"), "--duration 0 is no time"),
        (("--device", "cuda"), "'cuda' was asked for, but it cannot be used here"),
        (("--device", "cuad"), "is no device"),
        (("--device", "numpy"), "nothing to tune on the numpy backend"),
        (("--output", "/no/such/folder/x"), "--output /no/such/folder/x cannot be written"),
        (("--load", "/no/such/file"), "/no/such/file cannot be read"),
        (("--load", "/dev/zero"), "/dev/zero cannot be read"),
    ],
)
def test_wrong_words_are_refused(machine: FakeHost, words: tuple[str, ...], what: str) -> None:
    """With 2 and a way out, and nothing is saved."""
    code, out, err = run("tune", *words)
    assert (code, out) == (2, "")
    assert what in err
    assert "  try: " in err
    assert kept(machine) == []


def test_a_user_without_a_home_folder_is_told() -> None:
    """There is no place to keep it."""
    with without_a_home():
        code, out, err = run("tune", "--show")
    assert (code, out) == (2, "")
    assert "the tuning cannot be kept" in err
    assert "Could not determine home directory" in err


# -- info --------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_info_says_when_a_tuning_is_in_force(tmp_path: Path) -> None:
    """In words and as data, whether it counts and why not; without one nothing is said."""
    with simulated_machine(MACHINES["cpu"]) as host:
        assert "tuning" not in run("info").out.partition("Machine")[0]
        assert json.loads(run("info", "--json").out)["tuning"] is None
        value = made(host, threads=2 if made(host).fingerprint.cpus > 1 else 1, own_threads=1)
        run("tune", "--load", written(tmp_path, value))
        assert "in force: bfloat16" in run("info").out
        told = json.loads(run("info", "--json").out)["tuning"]
        assert (told["in_force"], told["tuning"]) == (True, value.to_dict())
        tuning.file_of(host, value.fingerprint).write_text("{}")
        assert "not in force" in run("info").out


@pytest.mark.slow
def test_a_real_process_tunes_and_the_next_one_knows(tmp_path: Path) -> None:
    """`devicekit tune` measures on this machine; what it saved is in force in the next process."""
    env = {"XDG_CONFIG_HOME": str(tmp_path), tuning.SWITCH: "on"}
    code, out, err = run_process("tune", "--device", "cpu", "--duration", "0.01", "--json", env=env, timeout=400)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["tuning"]["dtype"] in DTYPES
    assert all(trial["seconds"] or trial["note"] for trials in told["trials"].values() for trial in trials)
    shown = json.loads(run_process("tune", "--device", "cpu", "--show", "--json", env=env).out)
    assert (shown["tuning"], shown["in_force"]) == (told["tuning"], True)
