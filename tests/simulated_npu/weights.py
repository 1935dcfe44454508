"""Weights come onto an npu that is registered with torch: no fake of ours stands between."""

from __future__ import annotations

import tempfile
import threading
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

import devicekit as dk
from devicekit.staging import StreamStaging
from devicekit.testing.simulated_npu import install
from devicekit.weights.reading import ROOM

MIB = 1 << 20

install(memory="64MiB", soc="Ascend910B3")

dm = dk.DeviceManager("npu", strict=True)
folder = tempfile.TemporaryDirectory()
PATH = Path(folder.name, "a.safetensors")
MODEL = Path(folder.name, "model.safetensors")

torch.manual_seed(5)
STORED = {
    "large": torch.randn(3, MIB),
    "bf16": torch.randn(33, 5).bfloat16(),
    "f8": torch.randn(40).to(torch.float8_e4m3fn),
    "count": torch.arange(17),
    "mask": torch.rand(9) > 0.5,
    "none": torch.empty(0, 3),
    "one": torch.tensor(2.5),
}
safetensors.torch.save_file(STORED, PATH)


class Model(torch.nn.Module):
    """Tied weights, a norm's running figures, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(30, 20)
        self.norm = torch.nn.BatchNorm1d(20)
        self.head = torch.nn.Linear(20, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("angles", torch.linspace(0, 1, 8), persistent=False)


WEIGHTS = {name: torch.rand(t.shape).to(t.dtype) for name, t in Model().state_dict().items() if name != "head.weight"}
safetensors.torch.save_file(WEIGHTS, MODEL)


def holds(model: Model, dtype: torch.dtype | None = None) -> bool:
    """The model is on the npu, with the file's numbers and tied."""
    state = model.state_dict()
    there = all(t.device.type == "npu" for t in (*model.parameters(), *model.buffers()))
    right = (
        torch.equal(state[name].cpu(), t.to(dtype) if dtype and t.is_floating_point() else t)
        for name, t in WEIGHTS.items()
    )
    return there and all(right) and model.head.weight is model.embed.weight and model.angles[7].item() == 1


def check_there_is_no_pinned_memory() -> None:
    """What is loaded here goes through ordinary buffers, and through the device's streams all the same."""
    with pytest.raises(NotImplementedError):
        torch.empty(4, pin_memory=True)
    staging = dm._backend.staging(dm.device, 64)
    assert isinstance(staging, StreamStaging)
    assert staging.buffer() is staging.buffer()
    staging.finish()


def check_a_dict() -> None:
    """Every tensor is on the npu as it is in the file, by one thread and by several."""
    for workers in (1, 4):
        loaded = dm.load_safetensors(PATH, workers=workers)
        assert set(loaded) == set(STORED)
        for name, right in STORED.items():
            assert loaded[name].device == dm.device
            assert loaded[name].dtype is right.dtype
            assert torch.equal(loaded[name].cpu().float(), right.float()), name


def check_a_cast() -> None:
    """Floating-point tensors come in the dtype that is asked for, as the CPU would cast them; others keep theirs."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        on_cpu = dk.DeviceManager("cpu").load_safetensors(PATH, dtype=dtype)
        for name, tensor in dm.load_safetensors(PATH, dtype=dtype, workers=3).items():
            assert tensor.device == dm.device
            assert tensor.dtype is on_cpu[name].dtype
            assert torch.equal(tensor.cpu(), on_cpu[name]), name


def check_memory_is_that_of_the_result() -> None:
    """A cast takes a buffer for each thread while it lasts, and afterwards only the result is held."""
    before = torch.npu.memory_allocated()
    loaded = dm.load_safetensors(PATH, workers=1)
    held = torch.npu.memory_allocated() - before
    assert 0 <= held - sum(t.nbytes for t in loaded.values()) < 512 * len(loaded)
    del loaded
    torch.npu.reset_peak_memory_stats()
    loaded = dm.load_safetensors(PATH, dtype=torch.bfloat16, workers=2)
    held = torch.npu.memory_allocated() - before
    assert 0 <= held - sum(t.nbytes for t in loaded.values()) < 512 * len(loaded)
    assert ROOM <= torch.npu.max_memory_allocated() - before - held <= 2 * ROOM
    del loaded
    assert torch.npu.memory_allocated() == before


def check_into_a_module_on_the_cpu() -> None:
    """All of it goes to the npu, buffers that no file holds as well, and computes there."""
    for dtype in (None, torch.bfloat16):
        model = Model().eval()
        told = dm.load_safetensors(MODEL, into=model, dtype=dtype)
        assert (told.missing_keys, told.unexpected_keys, told.meta_keys) == ((), (), ())
        assert holds(model, dtype)
        out = model.head(model.norm(model.embed(torch.arange(4, device=dm.device))))
        assert out.device == dm.device
        assert torch.isfinite(out).all()


def check_into_a_module_without_memory() -> None:
    """A module from the meta device gets memory on the npu alone, as parameters that want their gradients."""
    with torch.device("meta"):
        model = Model()
    model.angles = torch.linspace(0, 1, 8)
    before = torch.npu.memory_allocated()
    dm.load_safetensors(MODEL, into=model)
    assert holds(model)
    assert model.embed.weight.requires_grad
    assert isinstance(model.embed.weight, torch.nn.Parameter)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert held <= torch.npu.memory_allocated() - before < held + 512 * 8


def check_into_a_module_on_the_npu() -> None:
    """It is filled where it lies: the same objects over the same memory, and what autograd knew of it is outdated."""
    model = dm.to(Model())
    objects = {name: (id(t), t.data_ptr()) for name, t in model.state_dict(keep_vars=True).items()}
    version = model.embed.weight._version
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    dm.load_safetensors(MODEL, into=model)
    assert holds(model)
    assert {name: (id(t), t.data_ptr()) for name, t in model.state_dict(keep_vars=True).items()} == objects
    assert torch.npu.max_memory_allocated() == torch.npu.memory_allocated() == before
    assert model.embed.weight._version > version


def check_into_a_module_on_the_npu_with_a_cast() -> None:
    """A module keeps its own dtype, in its own memory; with `dtype` it gets the one that is asked for."""
    model = dm.to(Model(), torch.float16)
    where = model.embed.weight.data_ptr()
    dm.load_safetensors(MODEL, into=model)
    assert holds(model, torch.float16)
    assert model.embed.weight.data_ptr() == where
    dm.load_safetensors(MODEL, into=model, dtype=torch.bfloat16)
    assert holds(model, torch.bfloat16)


def check_what_is_missing_touches_nothing() -> None:
    """A file that lacks a name is refused while the module is still on the CPU."""
    short = Path(folder.name, "short.safetensors")
    safetensors.torch.save_file({name: t for name, t in WEIGHTS.items() if name != "norm.bias"}, short)
    model = Model()
    before = torch.npu.memory_allocated()
    with pytest.raises(dk.WeightsError, match=r"norm\.bias"):
        dm.load_safetensors(short, into=model)
    assert all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers()))
    assert torch.npu.memory_allocated() == before


def check_float64_becomes_float32() -> None:
    """The AI core has no double precision: one warning, and the numbers as float32, in a dict and in a module."""
    doubles = Path(folder.name, "double.safetensors")
    module = torch.nn.Linear(3, 2).double()
    right = {name: t.clone() for name, t in module.state_dict().items()}
    safetensors.torch.save_file(right, doubles)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = dm.load_safetensors(doubles)
        dm.load_safetensors(doubles, into=module)
    assert [str(each.message) for each in caught] == ["npu has no torch.float64: torch.float32 is used instead"]
    for found in (loaded, module.state_dict()):
        assert all(found[name].dtype is torch.float32 for name in right)
        assert all(torch.equal(found[name].cpu(), t.float()) for name, t in right.items())


def check_memory_runs_out() -> None:
    """What does not fit fails before anything is read, with torch_npu's error; the module stays what it was."""
    big = Path(folder.name, "big.safetensors")
    safetensors.torch.save_file({"weight": torch.ones(17, MIB), "bias": torch.ones(17)}, big)
    told: list[int] = []
    before = torch.npu.memory_allocated()
    model = torch.nn.Linear(MIB, 17)
    kept = [(id(t), t.data_ptr(), t.device) for t in model.parameters()]
    first = model.weight[0, :5].tolist()
    for into in (None, model):
        with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
            dm.load_safetensors(big, into=into, progress=lambda done, total: told.append(done))
    assert told == []
    assert [(id(t), t.data_ptr(), t.device) for t in model.parameters()] == kept
    assert model.weight[0, :5].tolist() == first
    assert torch.npu.memory_allocated() == before
    assert dm.load_safetensors(big, dtype=torch.bfloat16)["weight"].dtype is torch.bfloat16


def check_threads_may_load_at_once() -> None:
    """Several loads in several threads do not disturb each other, and leave every thread its own current stream."""
    stream = torch.npu.current_stream()
    found: list[bool] = []

    def work() -> None:
        loaded = dm.load_safetensors(MODEL, workers=2)
        found.append(all(torch.equal(loaded[name].cpu(), t) for name, t in WEIGHTS.items()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    assert torch.npu.current_stream() == stream


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
folder.cleanup()
print(len(CHECKS), "checks")
