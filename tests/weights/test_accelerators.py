"""Weights come onto simulated accelerators as they come onto the CPU: on the right card, counted, and whole or not."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import devicekit as dk
from devicekit.staging import Staging, StreamStaging
from devicekit.testing import FakeHost, simulated_machine
from devicekit.testing.device_memory import round_up
from devicekit.weights.reading import ROOM

KINDS: dict[str, dict[str, Any]] = {
    "cuda": {"cuda": 1},
    "rocm": {"rocm": 1},
    "xpu": {"xpu": 1},
    "npu": {"npu": 1},
    "mps": {"mps": True},
}
STREAMS = ["cuda", "rocm", "xpu", "npu"]
NO_FLOAT64 = ["npu", "mps"]
F8 = torch.float8_e4m3fn


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of accelerator."""
    return str(request.param)


@pytest.fixture
def machine(kind: str) -> Iterator[FakeHost]:
    """A machine with one of them."""
    with simulated_machine(**KINDS[kind]) as host:
        yield host


def stored() -> dict[str, torch.Tensor]:
    """Tensors of many dtypes: none, one, many elements, and more than a piece."""
    torch.manual_seed(7)
    return {
        "large": torch.randn(1100, 1000),
        "bf16": torch.randn(33, 5).bfloat16(),
        "f16": torch.randn(2, 3, 4).half(),
        "f8": torch.randn(40).to(F8),
        "count": torch.arange(17),
        "mask": torch.rand(9) > 0.5,
        "bytes": torch.randint(0, 255, (3,), dtype=torch.uint8),
        "none": torch.empty(0, 3),
        "one": torch.tensor(2.5),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of them."""
    safetensors.torch.save_file(stored(), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def block(tensors: Any) -> int:
    """What an allocator takes for tensors that share no memory."""
    return sum(round_up(tensor.nbytes, 512) for tensor in tensors)


def memory(host: FakeHost, card: int = 0) -> Any:
    """What is counted on a card."""
    simulated = host.torch()
    return simulated._memory_of(simulated._machine.cards[card])


def lies_on(host: FakeHost, tensor: torch.Tensor, card: int = 0) -> bool:
    """The tensor's memory is counted on a card."""
    return bool(memory(host, card).holds(tensor.untyped_storage()))


# -- a dict ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "workers"), [(None, 1), (None, 4), (torch.bfloat16, 4), (torch.float16, 1), (torch.float32, 2)]
)
@pytest.mark.parametrize("direct", [False, True])
def test_the_result_is_the_cpus(
    machine: FakeHost, path: Path, dtype: torch.dtype | None, workers: int, direct: bool
) -> None:
    """Every tensor has the dtype, the shape and the numbers that it has on the CPU, past the page cache or not."""
    on_cpu = dk.DeviceManager("cpu").load_safetensors(path, dtype=dtype)
    loaded = dk.DeviceManager().load_safetensors(path, dtype=dtype, workers=workers, direct=direct)
    assert list(loaded) == list(on_cpu)
    for name, right in on_cpu.items():
        assert loaded[name].dtype is right.dtype, name
        assert loaded[name].shape == right.shape, name
        assert torch.equal(loaded[name].float(), right.float()), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_device_holds_the_result_and_no_more(machine: FakeHost, path: Path, dtype: torch.dtype | None) -> None:
    """Afterwards the memory of the tensors is counted and nothing else; on the way at most a buffer for each thread."""
    dm = dk.DeviceManager()
    loaded = dm.load_safetensors(path, dtype=dtype, workers=2)
    card = memory(machine)
    assert all(lies_on(machine, tensor) for tensor in loaded.values())
    assert dm.memory_stats().allocated == card.allocated.current == block(loaded.values())
    assert card.allocated.peak - card.allocated.current <= 2 * ROOM
    del loaded
    assert dm.memory_stats().allocated == 0


@pytest.mark.parametrize("kind", STREAMS, indirect=True)
def test_a_cast_takes_room_on_the_device_and_gives_it_back(machine: FakeHost, path: Path) -> None:
    """The room is there, which is what the bound above is about; without a cast there is none."""
    dm = dk.DeviceManager()
    dm.load_safetensors(path, workers=1)
    assert memory(machine).allocated.peak == block(stored().values())
    memory(machine).reset_peak()
    loaded = dm.load_safetensors(path, dtype=torch.bfloat16, workers=1)
    assert memory(machine).allocated.peak == block(loaded.values()) + ROOM
    assert memory(machine).allocated.current == block(loaded.values())


def test_streams_are_used_where_there_are_some(kind: str, machine: FakeHost) -> None:
    """Two buffers in turn and a side stream for a runtime that has them, and one buffer for one that has not."""
    dm = dk.DeviceManager()
    staging = dm._backend.staging(dm.device, 64)
    assert type(staging) is (StreamStaging if kind in STREAMS else Staging)
    buffers = [staging.buffer().data_ptr() for _ in range(4)]
    assert buffers[:2] == buffers[2:]
    assert len(set(buffers)) == (2 if kind in STREAMS else 1)
    staging.finish()


@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu", "npu"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("into", [False, True])
def test_a_rank_loads_onto_its_own_card(path: Path, kind: str, dtype: torch.dtype | None, into: bool) -> None:
    """Under torchrun the bare word is LOCAL_RANK's card: all is counted there, and card 0 has not even a context."""
    with simulated_machine(**{kind: 2}, env={"LOCAL_RANK": "1"}) as host:
        dm = dk.DeviceManager(kind)
        assert dm.index == 1
        if into:
            model = Model()
            safetensors.torch.save_file(weights(), path)
            dm.load_safetensors(path, into=model, dtype=dtype)
            held: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
        else:
            held = list(dm.load_safetensors(path, dtype=dtype).values())
        runtime = getattr(host.torch(), dm.device.type)
        assert (runtime.memory_allocated(0), runtime.memory_allocated(1)) == (0, block(held))
        assert runtime._contexts == {1}
        assert runtime.current_device() == 0


def test_the_card_that_is_named_is_loaded_onto_from_any_thread(path: Path) -> None:
    """Neither the thread's current device nor that of the threads that read decides."""
    with simulated_machine(cuda=2) as host:
        runtime = host.torch().cuda
        dm = dk.DeviceManager("cuda:0")
        found: list[Any] = []

        def elsewhere() -> None:
            runtime.set_device(1)
            found.append(dm.load_safetensors(path, dtype=torch.float16))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert (runtime.memory_allocated(0), runtime.memory_allocated(1)) == (block(found[0].values()), 0)


# -- what does not fit -----------------------------------------------------------------------------------
ERRORS: dict[str, tuple[type[Exception], str]] = {
    "cuda": (torch.OutOfMemoryError, "CUDA out of memory"),
    "rocm": (torch.OutOfMemoryError, "HIP out of memory"),
    "xpu": (torch.OutOfMemoryError, "XPU out of memory"),
    "npu": (torch.OutOfMemoryError, "NPU out of memory"),
    "mps": (RuntimeError, "MPS backend out of memory"),
}


@pytest.mark.parametrize("into", [False, True])
def test_what_does_not_fit_fails_before_anything_is_read(kind: str, path: Path, into: bool) -> None:
    """The vendor's own error, with nothing read, nothing left on the device, and the module as it was."""
    error, words = ERRORS[kind]
    told: list[int] = []
    model = Model()
    if into:
        safetensors.torch.save_file(weights(), path)
    before = snapshot(model)
    with simulated_machine(**KINDS[kind], memory="4MiB", faults={"oom_at": "16KiB"}) as host:
        dm = dk.DeviceManager()
        with pytest.raises(error, match=words) as caught:
            dm.load_safetensors(path, into=model if into else None, progress=lambda done, total: told.append(done))
        assert type(caught.value) is error
        del caught
        assert dm.memory_stats().allocated == 0
        assert not any(lies_on(host, tensor) for tensor in model.state_dict().values())
    assert told == []
    assert snapshot(model) == before


def test_a_full_device_casts_on_the_host(path: Path) -> None:
    """Where the result fits and the room for a cast does not, the host casts, and nobody hears of it."""
    on_cpu = dk.DeviceManager("cpu").load_safetensors(path, dtype=torch.bfloat16)
    with simulated_machine(cuda=1, memory=block(on_cpu.values())):
        loaded = dk.DeviceManager("cuda", strict=True).load_safetensors(path, dtype=torch.bfloat16)
    assert all(torch.equal(loaded[name].float(), right.float()) for name, right in on_cpu.items())


# -- float64 -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", NO_FLOAT64, indirect=True)
def test_float64_becomes_float32_with_one_warning(kind: str, machine: FakeHost, tmp_path: Path) -> None:
    """On a device without double precision, however many tensors and loads there are, in a dict and in a module."""
    held = {"a": torch.randn(5).double(), "b": torch.randn(6).double(), "c": torch.arange(3)}
    safetensors.torch.save_file(held, tmp_path / "d.safetensors")
    model = torch.nn.Linear(3, 2).double()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    right = model.weight.detach().clone()
    dm = dk.DeviceManager()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = dm.load_safetensors(tmp_path / "d.safetensors")
        again = dm.load_safetensors(tmp_path / "d.safetensors", dtype=torch.float64)
        dm.load_safetensors(tmp_path / "m.safetensors", into=model)
    assert [str(each.message) for each in caught] == [f"{kind} has no torch.float64: torch.float32 is used instead"]
    for found in (loaded, again):
        assert {name: found[name].dtype for name in held} == {"a": torch.float32, "b": torch.float32, "c": torch.int64}
        assert all(torch.equal(found[name], tensor.to(found[name].dtype)) for name, tensor in held.items())
    assert model.weight.dtype is torch.float32
    assert torch.equal(model.weight, right.float())


@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu"], indirect=True)
def test_float64_stays_where_it_can_be_kept(machine: FakeHost, tmp_path: Path) -> None:
    """Without a warning."""
    safetensors.torch.save_file({"a": torch.ones(2).double()}, tmp_path / "d.safetensors")
    assert dk.DeviceManager().load_safetensors(tmp_path / "d.safetensors")["a"].dtype is torch.float64


# -- modules -------------------------------------------------------------------------------------------
class Model(torch.nn.Module):
    """Tied weights, a norm's running figures, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 100)
        self.norm = torch.nn.BatchNorm1d(100)
        self.head = torch.nn.Linear(100, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("angles", torch.linspace(0, 1, 8), persistent=False)


def weights() -> dict[str, torch.Tensor]:
    """Of such a model, without the second name."""
    torch.manual_seed(11)
    state = Model().state_dict()
    del state["head.weight"]
    state["norm.running_mean"] += 0.5
    return state


def snapshot(model: torch.nn.Module) -> list[tuple[str, int, int, list[float]]]:
    """Which objects a module has, where their memory is, and what they hold."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [(name, id(tensor), tensor.data_ptr(), tensor.flatten().tolist()) for name, tensor in named]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file for the model."""
    safetensors.torch.save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def on_meta() -> Model:
    """Without memory, but for what no file holds."""
    with torch.device("meta"):
        model = Model()
    model.angles = torch.linspace(0, 1, 8)
    return model


@pytest.mark.parametrize("make", [Model, on_meta], ids=["cpu", "meta"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_module_is_on_the_device_afterwards(
    machine: FakeHost, saved: Path, make: Callable[[], Model], dtype: torch.dtype | None
) -> None:
    """All of it, also buffers that no file holds: with the file's numbers, tied as before, and counted once."""
    model = make()
    parameter = model.embed.weight
    told = dk.DeviceManager().load_safetensors(saved, into=model, dtype=dtype)
    assert (told.missing_keys, told.unexpected_keys, told.meta_keys) == ((), (), ())
    held = [*model.parameters(), *model.buffers()]
    assert all(lies_on(machine, tensor) for tensor in held)
    assert memory(machine).allocated.current == block(held)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.angles, torch.linspace(0, 1, 8))
    if make is Model:
        assert model.embed.weight is parameter
    for name, right in weights().items():
        asked = dtype if dtype and right.is_floating_point() else right.dtype
        assert torch.equal(model.state_dict()[name], right.to(asked)), name
    assert isinstance(model.embed.weight, torch.nn.Parameter)
    assert model.embed.weight.requires_grad


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
@pytest.mark.parametrize("make", [Model, on_meta], ids=["cpu", "meta"])
def test_what_does_not_match_touches_nothing(
    machine: FakeHost, tmp_path: Path, change: str, make: Callable[[], Model]
) -> None:
    """A name or a shape that does not fit is refused while the module is where it was and nothing is on the device."""
    state = weights()
    if change == "missing":
        del state["norm.weight"]
    elif change == "unexpected":
        state["more"] = torch.ones(3)
    else:
        state["norm.bias"] = torch.ones(7)
    safetensors.torch.save_file(state, tmp_path / "wrong.safetensors")
    model = make()
    before = [(name, id(tensor), tensor.device) for name, tensor in model.state_dict(keep_vars=True).items()]
    with pytest.raises(dk.WeightsError, match=r"norm\.weight|more|norm\.bias"):
        dk.DeviceManager().load_safetensors(tmp_path / "wrong.safetensors", into=model)
    assert [(n, id(t), t.device) for n, t in model.state_dict(keep_vars=True).items()] == before
    assert not any(lies_on(machine, t) for t in [*model.parameters(), *model.buffers()] if not t.is_meta)
    assert memory(machine).allocated.peak == 0


def test_a_part_can_be_loaded(machine: FakeHost, saved: Path) -> None:
    """Only what is asked for is read and takes memory; a module is on the device all the same."""
    dm = dk.DeviceManager()
    loaded = dm.load_safetensors(saved, keys="norm.*")
    assert set(loaded) == {name for name in weights() if name.startswith("norm.")}
    assert memory(machine).allocated.current == block(loaded.values())
    model = Model()
    dm.load_safetensors(saved, into=model, keys="norm.*")
    assert all(lies_on(machine, tensor) for tensor in [*model.parameters(), *model.buffers()])


def test_progress_ends_at_the_bytes_of_the_file(machine: FakeHost, path: Path) -> None:
    """It is called with figures that never fall, up to the bytes of the tensors."""
    told: list[tuple[int, int]] = []
    dk.DeviceManager().load_safetensors(path, progress=lambda *figures: told.append(figures), workers=3)
    total = sum(tensor.nbytes for tensor in stored().values())
    assert told[-1] == (total, total)
    assert told == sorted(told)
