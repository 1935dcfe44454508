"""One model over several devices, under a redirect to the processor and to simulated cards."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.simulated import SimulatedTarget
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
nn = torch.nn
dist = torch.distributed


def to_cpu() -> Redirect:
    return Redirect(DecidedTarget(resolver().decide("cpu")))


def cards(count: int) -> Redirect:
    return Redirect(SimulatedTarget(torch, count, 1 << 24, (8, 6)), strict=True)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process."""
    hook = sys.excepthook
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "")  # asks no name server
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    time.sleep(0.05)  # torch 2.6 waits for ever where a thread of Gloo still holds a tensor
    dist.destroy_process_group()
    sys.excepthook = hook


# -- DataParallel ------------------------------------------------------------------------------------
@pytest.mark.parametrize("device_ids", [None, [0], [0, 1], ["cuda:1"], [torch.device("cuda", 0)]])
def test_data_parallel_runs_the_module(redirect: Redirect, device_ids: Any) -> None:
    module = nn.Linear(3, 2).cuda()
    parallel = nn.DataParallel(module, device_ids=device_ids, output_device=0)
    x = torch.ones(4, 3, device="cuda")
    assert torch.equal(parallel.cuda()(x), module(x))
    assert list(parallel.state_dict()) == ["module.weight", "module.bias"]
    assert torch.equal(nn.parallel.data_parallel(module, x, device_ids), module(x))
    assert torch.equal(nn.parallel.data_parallel(module, (), [0], None, 0, {"input": x}), module(x))


@pytest.mark.parametrize("count", [1, 2])
def test_data_parallel_brings_the_input(count: int) -> None:
    """As on cards, what the program forgot to move; a single card also gets the module."""
    with cards(count):
        module = nn.Linear(3, 2) if count == 1 else nn.Linear(3, 2).cuda(0)
        parallel = nn.DataParallel(module)
        assert parallel(torch.ones(4, 3)).device == torch.device("cuda", 0)
        assert nn.parallel.data_parallel(module, torch.ones(4, 3), [0]).is_cuda


# -- DistributedDataParallel -------------------------------------------------------------------------
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("output", [0, None])
@pytest.mark.parametrize("device_ids", [None, [0], ["cuda:0"], [torch.device("cuda", 0)]])
def test_ddp_takes_any_device(device_ids: Any, output: Any) -> None:
    """And trains; its gradients are the module's own."""
    with to_cpu():
        module = nn.Linear(3, 2).cuda()
        alone = copy.deepcopy(module)
        ddp = nn.parallel.DistributedDataParallel(module, device_ids, output, find_unused_parameters=False)
        x = torch.ones(4, 3, device="cuda")
        ddp(x).sum().backward()
        alone(x).sum().backward()
        assert torch.equal(module.weight.grad, alone.weight.grad)


@pytest.mark.usefixtures("group")
def test_ddp_brings_the_input_if_it_was_told_where() -> None:
    with cards(2):
        module = nn.Linear(3, 2).cuda(1)
        ddp = nn.parallel.DistributedDataParallel(module, device_ids=[1])
        assert ddp(torch.ones(4, 3)).device == torch.device("cuda", 1)
        with pytest.raises(RuntimeError, match="same device"):
            nn.parallel.DistributedDataParallel(module)(torch.ones(4, 3))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("place", [0, "cuda:0", torch.device("cuda", 0), None])
def test_fsdp_takes_any_device(place: Any) -> None:
    with to_cpu():
        from torch.distributed.fsdp import FullyShardedDataParallel

        sharded = FullyShardedDataParallel(nn.Linear(3, 2).cuda(), device_id=place)
        sharded(torch.ones(4, 3, device="cuda")).sum().backward()
        assert all(parameter.grad is not None for parameter in sharded.parameters())


test_fsdp_takes_any_device = pytest.mark.filterwarnings(
    "ignore:.*world_size|.*NO_SHARD|.*FSDP:UserWarning", "ignore:.*FSDP:FutureWarning", "ignore::DeprecationWarning"
)(test_fsdp_takes_any_device)


# -- SyncBatchNorm -----------------------------------------------------------------------------------
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no momentum": {"momentum": None},
    "no weight": {"affine": False},
    "no running figures": {"track_running_stats": False},
    "eps": {"eps": 0.3, "momentum": 0.7},
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sync_batch_norm_of_one_process(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Torch refuses it on a processor; here it is what BatchNorm is, also its gradients and what it remembers."""
    torch.manual_seed(1)
    plain = nn.BatchNorm1d(3, dtype=torch.float64, **options)
    plain._check_input_dim = lambda x: None
    with to_cpu():
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3, dtype=torch.float64, **options)).cuda()
        for _ in range(2):
            x = (torch.randn(shape, dtype=torch.float64) * 3 + 100).requires_grad_()
            y = x.detach().clone().requires_grad_()
            mine, expected = synced(y), plain(x)
            mine.sin().sum().backward()
            expected.sin().sum().backward()
            torch.testing.assert_close(mine, expected)
            torch.testing.assert_close(y.grad, x.grad)
        torch.testing.assert_close(dict(synced.state_dict()), dict(plain.state_dict()))
        torch.testing.assert_close([p.grad for p in synced.parameters()], [p.grad for p in plain.parameters()])
        torch.testing.assert_close(synced.eval()(x), plain.eval()(x))


@pytest.mark.usefixtures("group")
def test_sync_batch_norm_in_half_precision() -> None:
    with to_cpu():
        synced = nn.SyncBatchNorm(3).cuda()
        x = torch.randn(8, 3, device="cuda").bfloat16()
        assert synced(x).dtype is torch.bfloat16
        torch.testing.assert_close(synced(x).float().mean(0), torch.zeros(3), atol=0.01, rtol=0)


@pytest.mark.usefixtures("group")
def test_sync_batch_norm_refuses_what_torch_refuses() -> None:
    with to_cpu():
        synced = nn.SyncBatchNorm(3).cuda()
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            synced(torch.ones(1, 3))
        with pytest.raises(ValueError, match="at least 2D"):
            synced(torch.ones(3))


def test_sync_batch_norm_without_a_group() -> None:
    with to_cpu():
        assert nn.SyncBatchNorm(3).cuda()(torch.randn(4, 3).cuda()).shape == (4, 3)


@pytest.mark.usefixtures("group")
def test_afterwards_torch_refuses_again() -> None:
    with to_cpu():
        synced = nn.SyncBatchNorm(3)
    with pytest.raises(ValueError, match="expected input tensor to be on"):
        synced(torch.ones(4, 3))
