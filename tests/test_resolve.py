"""Deciding: every spelling, pin, precedence, fallback and error of the tables."""

from __future__ import annotations

import itertools
import json
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import devicekit as dk
from devicekit.host import Host
from devicekit.host import use as use_host
from devicekit.request import PINS
from devicekit.testing import simulated_machine

TWO_GPUS = {"cuda": 2, "memory": "24GiB", "architecture": "sm_86"}


@pytest.fixture(autouse=True)
def _cpu_machine() -> Iterator[None]:
    """A machine without an accelerator, wherever these tests run."""
    with simulated_machine("cpu"):
        yield


# -- spellings -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "device"),
    [
        (None, "cuda:0"),
        ("auto", "cuda:0"),
        ("gpu", "cuda:0"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        (" CUDA:1\n", "cuda:1"),
        ("gpu:1", "cuda:1"),
        (0, "cuda:0"),
        (1, "cuda:1"),
        (np.int64(1), "cuda:1"),
        (torch.device("cuda:1"), "cuda:1"),
        (torch.device("cuda"), "cuda:0"),
        (torch.device("cpu"), "cpu"),
        ("cpu", "cpu"),
        ("cpu:0", "cpu"),
    ],
)
def test_every_spelling_means_its_device(asked: object, device: str) -> None:
    """Words, indices, whole numbers and torch devices are read, whatever their case and blanks."""
    with simulated_machine(**TWO_GPUS), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(dk.resolve_device(asked)) == device
        assert str(dk.resolve_device(asked, strict=True)) == device
        assert str(dk.DeviceManager(asked).device) == device


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("cuad", "'cuda'"),
        ("", "one of auto"),
        ("  ", "one of auto"),
        ("cuda:-1", "'cuda'"),
        ("cuda:1.5", "'cuda'"),
        ("cuda:", "'cuda'"),
        ("cuda:0:1", "'cuda'"),
        ("cuda 0", "'cuda'"),
        ("auto:1", "'auto'"),
        ("nvidia", "'cuda'"),
        ("ascend", "'npu'"),
        ("metal:0", "'mps'"),
        ("cuda:٣", "'cuda'"),
        (-1, '"auto"'),
        (True, '"auto"'),
        (1.0, '"auto"'),
        (b"cuda", '"auto"'),
        (["cuda"], '"auto"'),
        (torch.device("meta"), "'"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_word_that_is_no_device_is_an_error(asked: object, near: str, strict: bool) -> None:
    """A typo never silently becomes the CPU; the message repeats it and says what was probably meant."""
    with pytest.raises(dk.UnknownDeviceError) as caught:
        dk.resolve_device(asked, strict=strict)
    assert str(asked) in str(caught.value) or repr(asked) in str(caught.value)
    assert near in caught.value.try_
    assert isinstance(caught.value, ValueError)


# -- fallbacks -------------------------------------------------------------------------------------
def test_a_backend_that_is_not_usable_falls_back_with_its_reason() -> None:
    """The next usable device is taken; the warning, at the caller's line, and `dm.warning` say why."""
    with pytest.warns(dk.DeviceFallbackWarning, match="built without CUDA") as caught:
        dm = dk.DeviceManager("cuda")
    assert str(dm.device) == "cpu"
    assert dm.warning is not None
    assert "'cuda' was asked for" in dm.warning
    assert "cpu is used instead" in dm.warning
    assert caught[0].filename == __file__


def test_strict_raises_what_why_and_try() -> None:
    """With strict the same is an error with a reason and a way out, and it is a RuntimeError as well."""
    with pytest.raises(dk.DeviceUnavailableError) as caught:
        dk.resolve_device("cuda", strict=True)
    assert caught.value.what == "'cuda' was asked for, but it cannot be used here."
    assert "built without CUDA" in caught.value.why
    assert "requirements-cuda.txt" in caught.value.try_
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("asked", ["cuda:2", 2, "gpu:7", "cuda:99999999999999999999"])
def test_an_index_that_does_not_exist_is_the_default_device(asked: object) -> None:
    """The backend is kept, the valid range is named; with strict it is an error."""
    with simulated_machine(**TWO_GPUS):
        with pytest.warns(dk.DeviceFallbackWarning, match="valid are 0 to 1"):
            assert str(dk.resolve_device(asked)) == "cuda:0"
        with pytest.raises(dk.DeviceUnavailableError, match="valid are 0 to 1"):
            dk.resolve_device(asked, strict=True)


def test_a_fallback_is_told_again_each_time() -> None:
    """A decision with a warning is not kept quietly: who asks again is told again."""
    for _ in range(2):
        with pytest.warns(dk.DeviceFallbackWarning):
            dk.resolve_device("cuda:0")


@pytest.mark.parametrize("asked", ["gpu", 0])
def test_no_accelerator_at_all(asked: object) -> None:
    """Asking for the best accelerator where there is none falls back, and says that each was asked."""
    with pytest.warns(dk.DeviceFallbackWarning, match="no accelerator is usable here"):
        assert str(dk.resolve_device(asked)) == "cpu"


def test_cpu_on_a_machine_without_torch_is_numpys() -> None:
    """ "cpu" is not a fallback there: it is what NumPy calls its device."""
    with simulated_machine("no-torch"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dk.resolve_device("cpu", strict=True) == "cpu"  # type: ignore[comparison-overlap]
        assert dk.DeviceManager().backend == "numpy"


def test_without_torch_the_reason_is_torch() -> None:
    """Who asks for a GPU on a host without torch is told about torch, not about the GPU."""
    with simulated_machine("no-torch"), pytest.raises(dk.DeviceUnavailableError, match="torch is not installed"):
        dk.resolve_device("cuda", strict=True)


# -- which device of a backend -----------------------------------------------------------------------
def test_local_rank_gives_the_index() -> None:
    """Under torchrun a device without an index is this rank's; one with an index stays."""
    with simulated_machine(**TWO_GPUS, env={"LOCAL_RANK": "1"}):
        assert str(dk.resolve_device()) == "cuda:1"
        assert str(dk.resolve_device("cuda")) == "cuda:1"
        assert str(dk.resolve_device("cuda:0")) == "cuda:0"


def test_a_rank_without_a_device_is_told() -> None:
    """More processes than devices: the default device, with a warning that names both numbers."""
    with simulated_machine(**TWO_GPUS, env={"LOCAL_RANK": "5"}):
        with pytest.warns(dk.DeviceFallbackWarning, match="LOCAL_RANK=5, but valid are 0 to 1"):
            assert str(dk.resolve_device("cuda")) == "cuda:0"


def test_one_visible_device_is_every_ranks() -> None:
    """Launchers that mask one GPU for each process leave LOCAL_RANK as it is; that is no mistake."""
    with simulated_machine(cuda=1, memory="24GiB", architecture="sm_86", env={"LOCAL_RANK": "3"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert str(dk.resolve_device()) == "cuda:0"


@pytest.mark.parametrize("rank", ["", "x", "-1", "1.0", " "])
def test_a_rank_that_is_no_number_is_ignored(rank: str) -> None:
    """Garbage in LOCAL_RANK is nobody's index."""
    with simulated_machine(**TWO_GPUS, env={"LOCAL_RANK": rank}):
        assert str(dk.resolve_device()) == "cuda:0"


# -- pins ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pin", PINS)
def test_each_pin_pins(pin: str) -> None:
    """Each of the four variables decides where no argument does, and the explanation names it."""
    with simulated_machine(**TWO_GPUS, env={pin: "cuda:1"}):
        assert str(dk.resolve_device()) == "cuda:1"
        assert str(dk.resolve_device("auto")) == "cuda:1"
        assert dk.explain().source == pin


def test_an_argument_beats_a_pin() -> None:
    """What the code asks for by name is what it gets."""
    with simulated_machine(**TWO_GPUS, env={"KRONOS_DEVICE": "cuda:1"}):
        assert str(dk.resolve_device("cpu")) == "cpu"


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(PINS)))
def test_the_first_of_two_pins_wins(first: str, second: str) -> None:
    """Two pins that disagree: the stronger is used, and one warning, given once, names both."""
    with simulated_machine(**TWO_GPUS, env={second: "cpu", first: "cuda:1"}):
        with pytest.warns(dk.DeviceFallbackWarning, match=f"{first}='cuda:1' and {second}='cpu' disagree"):
            assert str(dk.resolve_device()) == "cuda:1"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dk.DeviceManager()


def test_two_pins_that_agree_are_no_matter() -> None:
    """The same device twice, spelled otherwise, is no disagreement."""
    with simulated_machine(**TWO_GPUS, env={"KRONOS_DEVICE": "cpu", "PREFERRED_DEVICE": " CPU "}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert str(dk.resolve_device()) == "cpu"


@pytest.mark.parametrize("text", ["cuad", "", "cuda:-1"])
def test_a_typo_in_a_pin_names_the_variable(text: str) -> None:
    """An operator's typo is an error, also for auto, and says where it stands."""
    with simulated_machine(env={"KRONOS_DEVICE": text}):
        with pytest.raises(dk.UnknownDeviceError, match="from KRONOS_DEVICE"):
            dk.resolve_device("auto")


def test_a_pin_that_is_not_usable_falls_back() -> None:
    """A pin is checked like an argument, and the warning names the variable."""
    with simulated_machine(env={"PREFERRED_DEVICE": "npu"}):
        with pytest.warns(dk.DeviceFallbackWarning, match=r"'npu' \(from PREFERRED_DEVICE\)"):
            assert str(dk.resolve_device()) == "cpu"
        with pytest.raises(dk.DeviceUnavailableError, match="torch_npu is not installed"):
            dk.resolve_device(strict=True)


def test_a_pin_set_later_counts() -> None:
    """The variables are read at each call."""
    with simulated_machine(**TWO_GPUS) as machine:
        assert str(dk.resolve_device()) == "cuda:0"
        machine.env["KRONOS_DEVICE"] = "cuda:1"
        assert str(dk.resolve_device()) == "cuda:1"
        del machine.env["KRONOS_DEVICE"]
        assert str(dk.resolve_device()) == "cuda:0"


def _save(host: Host, text: str) -> None:
    file = host.config_file("device")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_saved_choice_counts_where_nothing_else_does() -> None:
    """What `devicekit use` saved is weaker than a pin and stronger than auto."""
    with simulated_machine(**TWO_GPUS) as machine:
        _save(machine, "cuda:1\n")
        assert str(dk.resolve_device()) == "cuda:1"
        assert dk.explain().source == "saved choice"
        machine.env["PREFERRED_DEVICE"] = "cpu"
        assert str(dk.resolve_device()) == "cpu"


def test_a_broken_saved_choice_says_where_it_stands() -> None:
    """A word that is no device is an error that names the saved choice; bytes that are no text are ignored."""
    with simulated_machine(**TWO_GPUS) as machine:
        _save(machine, "cuad")
        with pytest.raises(dk.UnknownDeviceError, match="from saved choice"):
            dk.resolve_device()
    with simulated_machine(**TWO_GPUS) as machine:
        _save(machine, "")
        machine.config_file("device").write_bytes(b"\xff\xfe\x00")
        assert str(dk.resolve_device()) == "cuda:0"


# -- explaining --------------------------------------------------------------------------------------
def test_the_explanation_covers_every_backend() -> None:
    """Every candidate has a verdict with a reason; what is not usable has a way out; exactly one is chosen."""
    explanation = dk.explain()
    names = [v.backend for v in explanation.verdicts]
    assert names[:5] == ["cuda", "rocm", "xpu", "npu", "mps"]
    assert names[-3:] == ["cpu", "numpy", "vulkan"]
    assert all(v.reason for v in explanation.verdicts)
    assert all(v.fix for v in explanation.verdicts if not v.usable)
    assert [v.backend for v in explanation.verdicts if v.chosen] == ["cpu"]


def test_the_explanation_is_data() -> None:
    """It survives JSON, and reads as text."""
    explanation = dk.explain("cpu")
    assert json.loads(json.dumps(explanation.to_dict()))["source"] == "argument"
    assert str(explanation).startswith("cpu (cpu), asked for 'cpu' by argument")
    assert "not usable: torch" in str(explanation)


def test_explaining_a_fallback_does_not_warn() -> None:
    """The warning is in the explanation; nobody is interrupted by it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation = dk.explain("cuda")
    assert explanation.warning is not None
    assert "warning: 'cuda'" in str(explanation)


def test_available_backends_are_in_order_of_preference() -> None:
    """Accelerators first, then the CPU, then NumPy."""
    assert dk.available_backends() == ("cpu", "numpy")
    with simulated_machine(**TWO_GPUS):
        assert dk.available_backends() == ("cuda", "cpu", "numpy")


def test_nothing_is_usable_and_auto_still_answers() -> None:
    """Without torch and NumPy the device is the CPU, and the warning says what is missing."""

    class Bare(Host):
        def _import_torch(self) -> object:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

        def installed(self, name: str) -> bool:
            return False

    with use_host(Bare(env={})), pytest.warns(dk.DeviceFallbackWarning, match="neither torch nor numpy"):
        assert dk.resolve_device() == "cpu"  # type: ignore[comparison-overlap]


def test_threads_get_one_answer() -> None:
    """Many threads that ask at once get the same device, and every backend is asked once."""
    with simulated_machine(**TWO_GPUS):
        answers: list[str] = []
        gate = threading.Barrier(8)

        def ask() -> None:
            gate.wait()
            answers.append(str(dk.resolve_device()))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ["cuda:0"] * 8
