"""Tensors of the simulated npu are saved as those of a real one are, and load on any device."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from devicekit.testing.simulated_npu import install

install("256MiB")


def saved(value: object, **options: Any) -> io.BytesIO:
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    file.seek(0)
    return file


def check_load_puts_tensors_where_it_is_told() -> None:
    """map_location decides; without it a tensor comes back to npu:0."""
    tensor = torch.randn(3, 4, device="npu")
    for place, expected in (
        (None, "npu"),
        ("npu", "npu"),
        (torch.device("npu", 0), "npu"),
        ("cpu", "cpu"),
        ({"npu:0": "cpu"}, "cpu"),
    ):
        loaded = torch.load(saved(tensor), map_location=place)
        assert loaded.device.type == expected
        assert torch.equal(loaded.cpu(), tensor.cpu())
    assert torch.load(saved(tensor.cpu()), map_location="npu").device.type == "npu"


def check_files_need_no_simulation() -> None:
    """A saved file names torch's own functions only, and npu:0 as the place."""
    file = saved({"a": torch.ones(2, device="npu")})
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert b"npu:0" in pickled
    assert b"_rebuild_tensor_v2" in pickled
    assert b"simulated" not in pickled


def check_views_stay_views() -> None:
    """A tensor and its view share memory again after loading, and gradients stay wanted."""
    tensor = torch.arange(6.0, device="npu")
    loaded = torch.load(saved({"all": tensor, "part": tensor[2:], "wanted": torch.ones(1).npu().requires_grad_()}))
    loaded["part"][0] = 9
    assert loaded["all"].tolist() == [0, 1, 9, 3, 4, 5]
    assert loaded["wanted"].requires_grad


def check_modules_are_saved_with_their_state() -> None:
    """A state dict and an optimizer's state survive saving, on the npu and on the CPU."""
    layer = torch.nn.Linear(4, 4).to("npu")
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4, device="npu")).sum().backward()
    optimizer.step()
    loaded = torch.load(saved({"model": layer.state_dict(), "steps": optimizer.state_dict()}))
    other = torch.nn.Linear(4, 4).to("npu")
    other.load_state_dict(loaded["model"])
    torch.optim.AdamW(other.parameters()).load_state_dict(loaded["steps"])
    assert torch.equal(other.weight, layer.weight)
    parameter = torch.load(saved(layer.weight), map_location="cpu")
    assert type(parameter) is torch.nn.Parameter
    whole = torch.load(saved(layer), weights_only=False)
    assert isinstance(whole.weight, torch.nn.Parameter)
    assert whole.weight.device.type == "npu"


def check_other_ways_of_pickling() -> None:
    """The old format, plain pickle and mmap give the tensor back on the npu."""
    tensor = torch.randn(5, device="npu")
    old = torch.load(saved(tensor, _use_new_zipfile_serialization=False))
    plain = pickle.loads(pickle.dumps(tensor))  # our own bytes
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tensor, Path(folder, "t.pt"))
        mapped = torch.load(Path(folder, "t.pt"), mmap=True, map_location="npu")
        for loaded in (old, plain, mapped):
            assert loaded.device.type == "npu"
            assert torch.equal(loaded, tensor)


def check_loading_is_counted() -> None:
    """What torch.load puts on the device counts against its memory, and can be too much."""
    file = saved(torch.ones(1 << 20))
    before = torch.npu.memory_allocated()
    loaded = torch.load(file, map_location="npu")
    assert torch.npu.memory_allocated() - before == loaded.nbytes == 4 << 20
    file.seek(0)
    torch.npu.set_per_process_memory_fraction(0.02)
    with pytest.raises(torch.OutOfMemoryError):
        torch.load(file, map_location="npu")
    torch.npu.set_per_process_memory_fraction(1.0)


def check_storages_know_their_place() -> None:
    """UntypedStorage can be made on the npu and moved, and others stay where they were."""
    storage = torch.UntypedStorage(16, device="npu")
    assert (storage.device.type, storage.nbytes()) == ("npu", 16)
    assert storage.cpu().device.type == "cpu"
    assert torch.UntypedStorage(4).to(device="npu").device == torch.device("npu", 0)
    assert torch.UntypedStorage(4).device.type == torch.ones(2).untyped_storage().device.type == "cpu"
    assert torch.UntypedStorage(4, device="meta").device.type == "meta"


def check_safetensors_go_both_ways() -> None:
    """safetensors writes tensors of the npu, and reads them to the CPU and to the npu."""
    tensors = {"w": torch.randn(3, 3, device="npu"), "b": torch.ones(2, device="npu").half()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.safetensors")
        safetensors.torch.save_file(tensors, path)
        for device in ("cpu", "npu", "npu:0"):
            loaded = safetensors.torch.load_file(path, device=device)
            assert loaded["w"].device.type == device[:3]
            assert torch.equal(loaded["w"].cpu(), tensors["w"].cpu())
            assert loaded["b"].dtype == torch.float16
        layer = torch.nn.Linear(3, 3, bias=False).to("npu")
        safetensors.torch.save_model(layer, path)
        safetensors.torch.load_model(layer, path)
        assert layer.weight.device.type == "npu"


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
