"""A process on the simulated npu joins a process group of its own collective, as torch_npu registers it."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from torch import distributed

import devicekit as dk
from devicekit.testing.simulated_npu import install

install("1GiB", soc="Ascend910B1")


def pretend_torchrun() -> None:
    """Set what torchrun sets for a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def check_without_hccl_it_says_so() -> None:
    """The collective is None, and joining names what is missing and the way out."""
    dm = dk.DeviceManager("npu", strict=True)
    assert dm.distributed_backend is None
    with pytest.raises(dk.DeviceKitError, match="'hccl' cannot be used") as caught:
        dm.init_distributed(timeout=20)
    assert 'DeviceManager("cpu")' in caught.value.try_
    assert not distributed.is_initialized()


def check_with_hccl_torch_takes_name_and_device() -> None:
    """torch makes the group with this name and this device, and takes it down."""

    def create(store: object, rank: int, size: int, timeout: object) -> object:
        return distributed.ProcessGroupGloo(store, rank, size, timeout=timeout)

    distributed.Backend.register_backend("hccl", create, devices=["npu"])
    dm = dk.DeviceManager("npu", strict=True)
    assert dm.distributed_backend == "hccl"
    with dm.init_distributed(timeout=20) as world:
        assert (world.rank, world.world_size, world.backend, str(world.device)) == (0, 1, "hccl", "npu:0")
        assert distributed.get_backend() == "hccl"
        assert torch.npu.current_device() == 0
    assert not distributed.is_initialized()


pretend_torchrun()
CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
