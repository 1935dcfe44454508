"""torch.accelerator under a redirect, and loaders that pin."""

from __future__ import annotations

import types

import pytest

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")


def test_it_is_the_target() -> None:
    assert torch.accelerator.is_available() is True
    assert torch.accelerator.device_count() == 1
    device = torch.accelerator.current_accelerator()
    assert device == torch.device("cpu")
    assert torch.ones(2, device=device).cuda().device == device


def test_it_and_torch_cuda_are_one() -> None:
    with Redirect(DecidedTarget(resolver().decide("cpu"), 2)):
        torch.accelerator.set_device_index(1)
        assert torch.cuda.current_device() == torch.accelerator.current_device_index() == 1
        torch.accelerator.synchronize()
        assert torch.accelerator.current_stream() is torch.cuda.current_stream()
        if hasattr(torch.accelerator, "device_index"):
            with torch.accelerator.device_index(0), torch.accelerator.device_index(None):
                assert torch.cuda.current_device() == 0
            assert torch.cuda.current_device() == 1


@pytest.mark.skipif(not hasattr(torch.accelerator, "memory_stats"), reason="this torch does not have it")
def test_memory() -> None:
    assert torch.accelerator.memory_allocated() > 0
    assert torch.accelerator.max_memory_allocated("cuda:0") > 0
    assert "allocated_bytes.all.peak" in torch.accelerator.memory_stats()
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats()


def test_torch_itself_is_told_the_truth() -> None:
    module = types.ModuleType("torch.a_part")
    exec("def asked():\n    import torch\n    return torch.accelerator.is_available()", module.__dict__)
    assert module.asked() is False


def test_every_public_name_is_decided_on(redirect: Redirect) -> None:
    """Left alone are classes whose methods are replaced, and what says itself that there is nothing."""
    left = {"Any", "Graph", "cache", "deprecated", "device_index", "get_device_capability", "graphs", "memory", "torch"}
    new = {id(new) for _, new in redirect.layer.replaced()}
    names = {name for name in dir(torch.accelerator) if not name.startswith("_")}
    assert {name for name in names - left if id(getattr(torch.accelerator, name)) not in new} == set()


def test_the_module_of_the_device() -> None:
    assert torch.get_device_module("cuda") is torch.cuda
    assert torch.get_device_module(torch.device("cuda:0")).is_available()


@pytest.mark.parametrize("options", [{}, {"pin_memory_device": "cuda"}], ids=str)
def test_a_loader_that_pins_says_nothing(options: dict[str, str]) -> None:
    """There is nothing to pin for on a processor; warnings are errors here."""
    data = torch.utils.data.TensorDataset(torch.arange(4.0))
    loader = torch.utils.data.DataLoader(data, batch_size=2, pin_memory=True, **options)
    assert [batch.cuda(non_blocking=True).tolist() for (batch,) in loader] == [[0, 1], [2, 3]]
    assert loader.pin_memory is True


def test_a_loader_with_workers_that_pins() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(4.0))
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, pin_memory=True, num_workers=1, multiprocessing_context="fork"
    )
    assert [batch.tolist() for (batch,) in loader] == [[0, 1], [2, 3]]
