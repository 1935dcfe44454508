"""Code written for CUDA loads its checkpoints onto an npu, and joins a process group of the npu's collective."""

from __future__ import annotations

import io
import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import distributed, nn

import devicekit as dk
from devicekit.testing.simulated_npu import install

install("256MiB")
warnings.filterwarnings("ignore", "Device capability of hccl unknown")


def saved_on_a_card(value: Any, **options: Any) -> bytes:
    """A checkpoint of a machine with a card: torch is told another word for the place while it is saved."""
    registry = torch.serialization._package_registry
    entry = (-1, lambda storage: "cuda:0", lambda storage, location: None)
    registry.insert(0, entry)
    file = io.BytesIO()
    torch.save(value, file, **options)
    registry.remove(entry)
    return file.getvalue()


def load(data: bytes, **options: Any) -> Any:
    return torch.load(io.BytesIO(data), **options)


def check_checkpoints_of_cards_come_to_the_npu() -> None:
    """With and without map_location, in both formats; what is sent to the host goes there."""
    for form in ({}, {"_use_new_zipfile_serialization": False}):
        data = saved_on_a_card({"w": torch.arange(3.0)}, **form)
        with dk.redirect_cuda("npu"):
            for place in (None, "cuda", "cuda:0", torch.device("cuda"), lambda s, _: s.cuda(0)):
                loaded = load(data, map_location=place)["w"]
                assert (loaded.device, loaded.tolist()) == (torch.device("npu", 0), [0, 1, 2])
            for place in ("cpu", {"cuda:0": "cpu"}, lambda s, _: s):
                assert load(data, map_location=place)["w"].device.type == "cpu"


def check_a_card_that_is_not_there_is_torchs_error() -> None:
    """There is one npu."""
    with dk.redirect_cuda("npu"), pytest.raises(RuntimeError, match=r"CUDA device 1 but torch.cuda.device_count\(\)"):
        load(saved_on_a_card(torch.ones(1)), map_location="cuda:1")


def check_what_is_saved_is_a_file_of_the_npu() -> None:
    """It is read without any redirect."""
    file = io.BytesIO()
    with dk.redirect_cuda("npu"):
        torch.save(torch.ones(2, device="cuda"), file)
    assert b"devicekit" not in file.getvalue()
    assert load(file.getvalue()).device == torch.device("npu", 0)


def check_storages_and_safetensors() -> None:
    with dk.redirect_cuda("npu"), tempfile.TemporaryDirectory() as folder:
        assert torch.ones(2).untyped_storage().cuda().device.type == "npu"
        assert torch.ones(2).untyped_storage().cuda(0).cpu().device.type == "cpu"
        path = Path(folder, "w.safetensors")
        safetensors.torch.save_file({"w": torch.ones(2, device="cuda")}, path)
        for place in ("cuda", "cuda:0", 0):
            assert safetensors.torch.load_file(path, device=place)["w"].device == torch.device("npu", 0)


def check_data_parallelism_runs_on_the_one_that_is_there() -> None:
    """Torch scatters by functions of CUDA, which an npu has not."""
    with dk.redirect_cuda("npu"):
        parallel = nn.DataParallel(nn.Linear(2, 2), device_ids=[0])
        assert parallel(torch.ones(3, 2)).device == torch.device("npu", 0)
        module = nn.Linear(2, 2).cuda()
        assert nn.parallel.data_parallel(module, torch.ones(3, 2), [0, 1]).device == torch.device("npu", 0)


def check_nccl_means_hccl() -> None:
    """The group, its device, a mesh, and DistributedDataParallel with the npu's number."""

    def create(store: object, rank: int, size: int, timeout: object) -> object:
        return distributed.ProcessGroupGloo(store, rank, size, timeout=timeout)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with dk.redirect_cuda("npu"):
        with pytest.raises((AssertionError, RuntimeError, ValueError), match="hccl"):
            distributed.init_process_group("nccl")
        distributed.Backend.register_backend("hccl", create, devices=["npu"])
        distributed.init_process_group("cuda:nccl,cpu:gloo", device_id=torch.device("cuda", 0))
        assert distributed.get_backend() == "npu:hccl,cpu:gloo"
        assert distributed.get_backend(distributed.new_group([0], backend="nccl")) == "hccl"
        assert distributed.device_mesh.init_device_mesh("cuda", (1,)).device_type == "npu"
        ddp = nn.parallel.DistributedDataParallel(nn.Linear(2, 2).cuda(), device_ids=["cuda:0"], output_device=0)
        assert ddp(torch.ones(1, 2)).device == torch.device("npu", 0)
        distributed.destroy_process_group()


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
