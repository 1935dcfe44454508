"""Managers for code that says ``"cuda"`` without a number, and devices by number, on machines with and without them."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import devicekit as dk
from devicekit.host import use
from devicekit.testing import MACHINES, FakeHost, simulated_machine
from devicekit.values import Availability, DeviceInfo
from tests.third_party import Acme, Entry, HostWithPlugins

TWO: dict[str, dict[str, Any]] = {kind: {kind: 2} for kind in ("cuda", "rocm", "xpu", "npu")}
"""Machines with two devices that have numbers."""
UNNUMBERED: dict[str, dict[str, Any]] = {"mps": {"mps": True}, "cpu": {}, "numpy": {"machine": "no-torch"}}


def runtime(host: FakeHost) -> Any:
    """torch.cuda, torch.xpu or torch.npu of a simulated machine."""
    kind = host.simulated.accelerator
    return getattr(host.torch(), "cuda" if kind == "rocm" else str(kind))


def has_started(host: FakeHost) -> bool:
    """Something has made the accelerator's runtime start."""
    return bool(runtime(host).is_initialized())


# -- current ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "machine"), {**TWO, **UNNUMBERED}.items())
def test_its_device_has_no_number(name: str, machine: dict[str, Any]) -> None:
    """It is spelled as in torch, and the index is None, whatever the machine has."""
    with simulated_machine(**machine):
        dm = dk.DeviceManager.current()
        assert str(dm.device) == {"rocm": "cuda", "numpy": "cpu"}.get(name, name)
        assert (dm.backend, dm.index, dm.warning) == (name, None, None)


@pytest.mark.parametrize("kind", TWO)
def test_nothing_starts_the_runtime(kind: str) -> None:
    """Making it, and asking what it is and how many there are, makes no context."""
    with simulated_machine(**TWO[kind]) as host:
        dm = dk.DeviceManager.current()
        assert (dm.is_accelerator, dm.device_count, bool(dm.name)) == (True, 2, True)
        dm.device_at(1)
        dm.manual_seed(1)
        pickle.loads(pickle.dumps(dm))
        dm.synchronize()
        dm.empty_cache()
        assert not has_started(host)


@pytest.mark.parametrize("kind", TWO)
def test_it_follows_the_current_device(kind: str) -> None:
    """After ``set_device(1)`` tensors go to device 1, and memory, generators, random states and peaks are its own."""
    with simulated_machine(**TWO[kind]) as host:
        dm, first, second = dk.DeviceManager.current(), dk.DeviceManager(f"{kind}:0"), dk.DeviceManager(f"{kind}:1")
        assert dm.create_generator(1).device.index == 0
        dm.set_device(1)
        kept = dm.to(torch.ones(1 << 20))
        assert dm.memory_stats() == second.memory_stats()
        assert dm.memory_stats().allocated == kept.nbytes
        assert first.memory_stats().allocated == 0
        assert dm.create_generator(1).device.index == 1
        del kept
        dm.empty_cache()
        dm.reset_peak_memory()
        assert second.memory_stats().peak == 0
        drawn = dm.rng_state().device
        runtime(host).default_generators[1].manual_seed(3)
        assert not torch.equal(dm.rng_state().device, drawn)
        assert torch.equal(first.rng_state().device, drawn)


def test_it_follows_torchs_own_functions() -> None:
    """Code that was not rewritten makes a device current with torch.cuda, and the manager's figures are about that."""
    with simulated_machine(cuda=2) as host:
        dm = dk.DeviceManager.current()
        with runtime(host).device(1):
            kept = dm.to(torch.ones(1 << 10))
            assert dm.memory_stats().allocated == kept.nbytes
        assert dm.memory_stats().allocated == 0


def test_each_thread_has_its_own() -> None:
    """The current device is a thread's; another thread starts with device 0."""
    with simulated_machine(cuda=2):
        dm = dk.DeviceManager.current()
        dm.set_device(1)
        seen: list[int] = []
        other = threading.Thread(target=lambda: seen.append(dm.create_generator().device.index))
        other.start()
        other.join()
        assert (seen, dm.create_generator().device.index) == ([0], 1)


def test_weights_go_where_the_caller_is(tmp_path: Any) -> None:
    """The threads that load weights start with device 0; the tensors come to the caller's current device."""
    tensors = {f"layer{i}": torch.ones(1 << 18) for i in range(8)}
    dk.save_safetensors(tensors, tmp_path / "w.safetensors")
    with simulated_machine(cuda=2) as host:
        dm = dk.DeviceManager.current()
        dm.set_device(1)
        loaded = dm.load_safetensors(tmp_path / "w.safetensors", workers=4)
        assert runtime(host)._contexts == {1}
        assert dk.DeviceManager("cuda:1").memory_stats().allocated == sum(t.nbytes for t in loaded.values())
        assert dk.DeviceManager("cuda:0").memory_stats().allocated == 0


def test_a_search_for_the_batch_size_is_on_the_current_device() -> None:
    """The memory that has to stay free is kept on device 1, where the steps run."""
    with simulated_machine(cuda=2, memory="1GiB"):
        dm = dk.DeviceManager.current()
        dm.set_device(1)
        kept: list[int | None] = []

        def step(size: int) -> None:
            kept.append(dm.memory_stats().allocated)

        assert dm.find_batch_size(step, limit=1, headroom=0.5) == 1
        assert kept == [1 << 29]
        with pytest.raises(dk.BatchSizeError, match="fits on cuda:1"):
            dm.find_batch_size(lambda _: dm.to(torch.ones(1 << 29)))


@pytest.mark.parametrize("machine", MACHINES)
def test_all_that_is_asked_is_answered(machine: str) -> None:
    """On every machine that goes wrong in the field the facade answers for the current device."""
    with simulated_machine(machine), warnings.catch_warnings():
        warnings.simplefilter("error", dk.DeviceFallbackWarning)
        dm = dk.DeviceManager.current()
        assert ":" not in str(dm.device)
        assert dm.report()["device"] == str(dm.device)
        assert dm.memory_stats().source
        assert dm.name
        assert dm.device_count >= dm.is_accelerator
        with dm.autocast(), dm.measure(), dm.device_index(0):
            dm.to([1.0])
        for act in (dm.synchronize, dm.empty_cache, dm.reset_peak_memory, dm.create_generator, dm.rng_state):
            act()
        assert dm.supports("float32") in ("native", "emulated")


def test_it_works_on_this_machine() -> None:
    """On the real one tensors and modules go to the device, and figures come from it."""
    dm = dk.DeviceManager.current(dtype=torch.float32)
    assert dm.dtype is torch.float32
    moved = dm.to(default_collate([{"x": torch.ones(2)}] * 2))
    assert dm.to(torch.nn.Linear(2, 1))(moved["x"]).device.type == dm.device.type
    dm.synchronize()
    assert (dm.memory_stats().allocated or 0) > 0


def test_what_is_no_dtype_is_refused() -> None:
    """As in the ordinary constructor."""
    with simulated_machine("cpu"), pytest.raises(dk.DeviceKitError, match="is no dtype"):
        dk.DeviceManager.current(dtype=16).device  # type: ignore[arg-type]  # noqa: B018  # the point


# -- pins, ranks, processes --------------------------------------------------------------------------
def test_a_pin_with_an_index_wins() -> None:
    """The operator's device is meant, whatever is current."""
    with simulated_machine(cuda=2, env={"KRONOS_DEVICE": "cuda:1"}):
        dm = dk.DeviceManager.current()
        assert (str(dm.device), dm.index) == ("cuda:1", 1)
        kept = dm.to(torch.ones(1 << 10))
        assert dm.memory_stats().allocated == kept.nbytes


@pytest.mark.parametrize("pin", ["cuda", "gpu", "auto"])
def test_a_pin_without_an_index_chooses_the_backend_only(pin: str) -> None:
    """The number stays open."""
    with simulated_machine(cuda=2, env={"KRONOS_DEVICE": pin}):
        assert str(dk.DeviceManager.current().device) == "cuda"


@pytest.mark.parametrize(("pin", "device"), [("xpu", "cuda"), ("cuda:7", "cuda"), ("npu:1", "cuda")])
def test_a_pin_that_cannot_be_had_is_warned_of(pin: str, device: str) -> None:
    """At the caller's line, and the number stays open."""
    with simulated_machine(cuda=2, env={"KRONOS_DEVICE": pin}):
        dm = dk.DeviceManager.current()
        with pytest.warns(dk.DeviceFallbackWarning, match=f"'{pin}' .*{device} is used instead") as heard:
            assert str(dm.device) == device
        assert heard[0].filename == __file__
        assert dm.warning is not None


def test_a_pin_that_is_no_device_is_an_error() -> None:
    """As in the ordinary constructor; each question says so again."""
    with simulated_machine(cuda=2, env={"KRONOS_DEVICE": "cuda:one"}):
        dm = dk.DeviceManager.current()
        for _ in range(2):
            with pytest.raises(dk.UnknownDeviceError):
                dm.device  # noqa: B018


def test_it_is_chosen_when_it_is_first_asked() -> None:
    """Modules make theirs at import; what the program sets after that, and before it asks, counts."""
    with simulated_machine(cuda=2) as host:
        dm = dk.DeviceManager.current()
        host.env["KRONOS_DEVICE"] = "cpu"
        assert str(dm.device) == "cpu"
        host.env["KRONOS_DEVICE"] = "cuda"
        assert (str(dm.device), dm.backend) == ("cpu", "cpu")


def test_a_name_that_it_has_not_is_an_attribute_error() -> None:
    """Before and after it has decided, and a typo decides nothing."""
    with simulated_machine(cuda=2):
        dm = dk.DeviceManager.current()
        for _ in range(2):
            with pytest.raises(AttributeError, match="no attribute 'devise'"):
                dm.devise  # noqa: B018
            assert not hasattr(dm, "_wanted")
        assert copy.copy(dm).device == dm.device


def test_a_number_names_a_device_that_need_not_be_there() -> None:
    """As torch.device does: a program may compute it for another host."""
    with simulated_machine(cuda=2):
        assert str(dk.DeviceManager.current().device_at(8)) == "cuda:8"


@pytest.mark.parametrize("rank", ["1", "9"])
def test_the_local_rank_does_not_matter(rank: str) -> None:
    """Whoever wants the device of its rank sets it, and a rank without a device is no reason to warn."""
    with simulated_machine(cuda=2, env={"LOCAL_RANK": rank}), warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = dk.DeviceManager.current()
        assert (str(dm.device), dm.create_generator().device.index) == ("cuda", 0)


def test_several_processes_take_the_current_device() -> None:
    """Joining them does not go back to device 0."""
    with simulated_machine(cuda=2):
        dm = dk.DeviceManager.current()
        dm.set_device(1)
        assert str(dm.init_distributed().device) == "cuda:1"


def test_it_stays_what_it_is_in_another_process() -> None:
    """A pickled one follows the current device of its new process; one of a pin keeps its number."""
    with simulated_machine(cuda=2, env={"LOCAL_RANK": "1"}):
        again = pickle.loads(pickle.dumps(dk.DeviceManager.current(dtype=torch.float16)))
        assert (str(again.device), again.index, again.dtype) == ("cuda", None, torch.float16)
        again.set_device(1)
        assert again.create_generator().device.index == 1
    with simulated_machine(cuda=2, env={"KRONOS_DEVICE": "cuda:1"}):
        assert pickle.loads(pickle.dumps(dk.DeviceManager.current())).index == 1
    with simulated_machine(cuda=2):
        sent = pickle.dumps(dk.DeviceManager.current())
    with simulated_machine(npu=2):
        elsewhere = pickle.loads(sent)
        assert (str(elsewhere.device), elsewhere.index) == ("npu", None)
        assert "'cuda' was asked for" in elsewhere.warning


# -- how many, and what they are called ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("two-gpus", (True, 2, "NVIDIA GeForce RTX 3090")),
        ("ascend", (True, 1, "Ascend NPU")),
        ("mac", (True, 1, "Apple GPU")),
        ("cpu", (False, 0, "CPU")),
        ("no-torch", (False, 0, "CPU, through NumPy")),
    ],
)
def test_it_tells_what_there_is(machine: str, expected: tuple[bool, int, str]) -> None:
    """Whether it is an accelerator, how many there are, and its name, from the probe."""
    with simulated_machine(machine):
        for dm in (dk.DeviceManager.current(), dk.DeviceManager()):
            assert (dm.is_accelerator, dm.device_count, dm.name) == expected


def test_where_nothing_can_compute_it_still_tells() -> None:
    """Without torch and NumPy the probe names nothing, so the name is the device's type."""
    with simulated_machine("no-torch", modules=()):
        dm = dk.DeviceManager.current()
        with pytest.warns(dk.DeviceFallbackWarning, match="neither torch nor"):
            assert dm.device_count == 0
        assert (dm.is_accelerator, dm.name) == (False, "cpu")


def test_a_card_that_cannot_be_used_does_not_count() -> None:
    """One of two cards has no kernels in this torch."""
    cards = [{"architecture": "sm_86", "memory": "24GiB"}, {"architecture": "sm_61", "memory": "8GiB"}]
    with simulated_machine("two-gpus", cards=cards, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}):
        dm = dk.DeviceManager.current()
        assert dm.device_count == 1
        with pytest.raises(dk.DeviceUnavailableError, match="has no kernels for"):
            dm.set_device(1)


def test_the_name_is_that_of_the_current_device() -> None:
    """On a machine with two different cards it follows."""
    cards = [{"name": "A", "architecture": "sm_86"}, {"name": "B", "architecture": "sm_86"}]
    with simulated_machine("two-gpus", cards=cards, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}):
        dm = dk.DeviceManager.current()
        assert dm.name == "A"
        with dm.device_index(1):
            assert dm.name == "B"


class Nameless(Acme):
    """Has a driver that breaks, and one device without a name."""

    def probe(self) -> Availability:
        return Availability.yes([DeviceInfo(0, None)])  # type: ignore[arg-type]  # a third party's mistake

    def current_index(self) -> int | None:
        raise OSError("the driver is gone")


def test_a_name_is_never_an_error() -> None:
    """A driver that breaks, or that gives no name, leaves the device's type."""
    entry = Entry("acme", "tests.test_current:Nameless")
    with use(HostWithPlugins(entry)):
        assert dk.DeviceManager.current().name == dk.DeviceManager().name == "meta"


# -- the device a number means ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TWO)
def test_a_number_means_a_device_here(kind: str) -> None:
    """Numbers, words and torch.devices with an index mean that index on this backend; without one its own device."""
    with simulated_machine(**TWO[kind]) as host:
        dm = dk.DeviceManager.current()
        word, device = str(dm.device), host.torch().device
        for asked in (1, np.int64(1), "1", "cuda:1", f"{word}:1", torch.device("cuda:1"), device(word, 1)):
            assert dm.device_at(asked) == device(word, 1), asked
        for asked in (None, "cuda", word, torch.device("cuda"), "auto", "gpu"):
            assert dm.device_at(asked) is dm.device, asked
        assert dm.device_at() is dm.device
        for asked in ("cpu", "cpu:0", torch.device("cpu")):
            assert dm.device_at(asked) == torch.device("cpu")


@pytest.mark.parametrize("name", UNNUMBERED)
def test_where_devices_have_no_numbers_any_number_is_the_one(name: str) -> None:
    """Code that was written for eight GPUs runs on a laptop."""
    with simulated_machine(**UNNUMBERED[name]):
        dm = dk.DeviceManager.current()
        for asked in (0, 7, "cuda:3", "cuda", None):
            assert dm.device_at(asked) is dm.device
        assert str(dm.device_at("cpu")) == "cpu"


@pytest.mark.parametrize("ask", ["set_device", "device_index"])
@pytest.mark.parametrize("nonsense", [True, 1.0, "", "one", "cuda:-1", "cuda:x", object(), [0]])
@pytest.mark.parametrize("machine", [{"cuda": 2}, {}], ids=str)
def test_nonsense_is_no_device(machine: dict[str, Any], nonsense: object, ask: str) -> None:
    """Also on the CPU, so that a typo is found before the GPU is rented; in three lines."""
    with simulated_machine(**machine), pytest.raises(dk.UnknownDeviceError, match="is no device") as caught:
        getattr(dk.DeviceManager.current(), ask)(nonsense)
    assert caught.value.why
    assert caught.value.try_


def test_a_negative_number_is_no_device() -> None:
    """torch.device refuses it as well."""
    with simulated_machine(cuda=2), pytest.raises(dk.UnknownDeviceError, match="-1 is no device"):
        dk.DeviceManager.current().device_at(-1)


@pytest.mark.parametrize("ask", ["set_device", "device_index"])
@pytest.mark.parametrize("asked", [2, "cuda:2"])
def test_a_number_beyond_the_last_is_refused(ask: str, asked: object) -> None:
    """The error has the valid range, and no runtime is started to find out."""
    with simulated_machine(cuda=2) as host:
        with pytest.raises(dk.DeviceUnavailableError) as caught:
            getattr(dk.DeviceManager.current(), ask)(asked)
        assert caught.value.why == "cuda has no device 2: valid are 0 to 1"
        assert caught.value.try_ == '"cuda" without an index'
        assert not has_started(host)


# -- making it current -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TWO)
def test_setting_a_device_makes_it_current(kind: str) -> None:
    """For torch as well as for the manager; without a number, or with a negative one, nothing changes."""
    with simulated_machine(**TWO[kind]) as host:
        dm = dk.DeviceManager.current()
        for asked in (-1, None, str(dm.device)):
            dm.set_device(asked)
        assert not has_started(host)
        steps: list[tuple[object, int]] = [(1, 1), (-1, 1), (None, 1), (0, 0), ("cuda:1", 1), (dm.device_at(0), 0)]
        for step, expected in steps:
            dm.set_device(step)
            assert runtime(host).current_device() == expected


def test_a_manager_of_one_device_stays_there() -> None:
    """It can make another device current, and its own by None, but is itself about the same one."""
    with simulated_machine(cuda=2) as host:
        dm = dk.DeviceManager("cuda:1")
        dm.set_device(0)
        assert (dm.create_generator().device.index, runtime(host).current_device()) == (1, 0)
        with dm.device_index(None):
            assert runtime(host).current_device() == 0
        dm.set_device(None)
        assert runtime(host).current_device() == 1


def test_the_cpu_is_not_made_current_among_gpus() -> None:
    """As in torch.cuda, whose error is a ValueError, too."""
    with simulated_machine(cuda=2):
        for act in (dk.DeviceManager.current().set_device, dk.DeviceManager.current().device_index):
            with pytest.raises(ValueError, match="'cpu' cannot be made current") as caught:
                act("cpu")
            assert "only cuda devices can be" in str(caught.value)


@pytest.mark.parametrize("kind", TWO)
def test_a_device_is_current_for_a_while(kind: str) -> None:
    """Inside all is about it; afterwards, also after an error, the former one is current, nested or not."""
    with simulated_machine(**TWO[kind]) as host:
        dm, current = dk.DeviceManager.current(), runtime(host).current_device
        with dm.device_index(1):
            assert (current(), dm.create_generator().device.index) == (1, 1)
            with dm.device_index(0):
                assert current() == 0
            assert current() == 1
        assert current() == 0
        dm.set_device(1)
        with pytest.raises(ZeroDivisionError), dm.device_index(0):
            raise ZeroDivisionError
        assert current() == 1
        with dm.device_index(0):
            dm.set_device(0)
        assert current() == 1


@pytest.mark.parametrize("kind", TWO)
def test_going_back_makes_no_context(kind: str) -> None:
    """A block on device 1 leaves device 0 without the half GB that a context takes."""
    with simulated_machine(**TWO[kind]) as host:
        with dk.DeviceManager.current().device_index(1):
            pass
        assert runtime(host)._contexts == {1}


@pytest.mark.parametrize("asked", [None, -1, "cuda"])
def test_no_number_changes_nothing(asked: object) -> None:
    """As in torch.cuda.device and torch.accelerator.device_index; no runtime is started."""
    with simulated_machine(cuda=2) as host:
        dm = dk.DeviceManager.current()
        with dm.device_index(asked):
            assert not has_started(host)
        dm.set_device(1)
        with dm.device_index(asked):
            assert runtime(host).current_device() == 1


@pytest.mark.parametrize("name", UNNUMBERED)
def test_nothing_is_made_current_where_devices_have_no_numbers(name: str) -> None:
    """Setting one, or working on one for a while, is harmless, whatever the number."""
    with simulated_machine(**UNNUMBERED[name]):
        dm = dk.DeviceManager.current()
        for asked in (0, 7, -1, None, "cuda:1", "cpu"):
            dm.set_device(asked)
            with dm.device_index(asked):
                assert dm.memory_stats().source


class Switching(Acme):
    """Remembers which device was made current, and has no context of its own for it."""

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        self.now = 0

    def current_index(self) -> int | None:
        return self.now or None

    def make_current(self, index: int = 0) -> None:
        self.now = index


def test_a_third_party_needs_to_say_only_how_one_is_made_current() -> None:
    """The default goes back to device 0, which counts as not chosen, and also after an error."""
    entry = Entry("acme", "tests.test_current:Switching")
    with use(HostWithPlugins(entry)):
        dm = dk.DeviceManager.current()
        assert (str(dm.device), dm.device_count, dm.name) == ("meta", 2, "Acme One")
        with dm.device_index(1):
            assert dm._at == 1
            with pytest.raises(ZeroDivisionError), dm.device_index(0):
                raise ZeroDivisionError
            assert dm._at == 1
        assert dm._at == 0
        dm.manual_seed(1)  # torch has no generators of such a device


# -- seeds -------------------------------------------------------------------------------------------------
def states(host: FakeHost) -> list[Any]:
    """The default generators' states of all devices."""
    return [generator.get_state() for generator in runtime(host).default_generators]


@pytest.mark.parametrize("kind", TWO)
def test_a_seed_is_for_all_devices_and_not_for_the_cpu(kind: str) -> None:
    """Before the runtime has started as well as after; the CPU's generator stays as it is."""
    with simulated_machine(**TWO[kind]) as host:
        dm, cpu = dk.DeviceManager.current(), torch.get_rng_state()
        dm.manual_seed(5)
        assert not has_started(host)
        dm.set_device(1)
        expected = torch.Generator().manual_seed(5).get_state()
        assert all(torch.equal(state, expected) for state in states(host))
        dm.manual_seed(6)
        assert not any(torch.equal(state, expected) for state in states(host))
        assert torch.equal(torch.get_rng_state(), cpu)


def test_a_mac_is_seeded() -> None:
    """Its one GPU has one generator."""
    with simulated_machine(mps=True):
        dm, cpu = dk.DeviceManager.current(), torch.get_rng_state()
        dm.manual_seed(5)
        first = dm.rng_state().device
        dm.manual_seed(6)
        assert not torch.equal(dm.rng_state().device, first)
        dm.manual_seed(5)
        assert torch.equal(dm.rng_state().device, first)
        assert torch.equal(torch.get_rng_state(), cpu)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_the_cpu_is_seeded_by_who_seeds_it(backend: str) -> None:
    """On the CPU nothing happens to torch's and NumPy's generators."""
    before, there = torch.get_rng_state(), str(np.random.get_state())
    dk.DeviceManager(backend).manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == there


@pytest.mark.parametrize("machine", [{"cuda": 1}, {}], ids=str)
@pytest.mark.parametrize(("seed", "error"), [(None, TypeError), ("x", ValueError), (2**64, ValueError)])
def test_what_is_no_seed_is_refused_everywhere(machine: dict[str, Any], seed: Any, error: type[Exception]) -> None:
    """Also where nothing is seeded, so that the mistake is found on a laptop."""
    with simulated_machine(**machine), pytest.raises(error):
        dk.DeviceManager.current().manual_seed(seed)


@pytest.mark.parametrize("seed", [np.int64(3), 3.7, torch.tensor(3), -1, 2**64 - 1], ids=str)
def test_a_seed_is_what_torch_takes_for_one(seed: Any) -> None:
    """torch.cuda.manual_seed_all makes a whole number of it, and so does this."""
    with simulated_machine(cuda=1) as host:
        dm = dk.DeviceManager.current()
        dm.manual_seed(seed)
        dm.set_device(0)
        assert torch.equal(states(host)[0], torch.Generator().manual_seed(int(seed)).get_state())


# -- which number it is now ----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TWO)
def test_the_current_number_is_that_of_the_runtime(kind: str) -> None:
    """0 before anything has started, without starting it; then what was made current; a chosen index stays."""
    with simulated_machine(**TWO[kind]) as host:
        dm = dk.DeviceManager.current()
        assert dm.current_index == 0
        assert not has_started(host)
        dm.set_device(1)
        assert (dm.current_index, dk.DeviceManager(f"{kind}:0").current_index) == (1, 0)


@pytest.mark.parametrize("name", UNNUMBERED)
def test_where_devices_have_no_numbers_it_is_0(name: str) -> None:
    """A whole number all the same, as code for several GPUs expects."""
    with simulated_machine(**UNNUMBERED[name]):
        assert dk.DeviceManager.current().current_index == 0
