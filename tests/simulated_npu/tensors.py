"""A tensor on the simulated npu behaves like one on a device."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from devicekit.testing.simulated_npu import install

install("1GiB")

NPU = torch.device("npu", 0)


def check_device_strings_name_the_device() -> None:
    """ "npu" and "npu:0" are devices, and torch counts one of them as its accelerator."""
    assert torch.device("npu").type == "npu"
    assert torch.device("npu:0").index == 0
    assert torch.accelerator.current_accelerator(check_available=True) == torch.device("npu")
    assert torch.accelerator.device_count() == torch.npu.device_count() == 1
    assert torch.get_device_module("npu") is torch.npu


def check_factories_make_tensors_there() -> None:
    """Every usual factory puts its tensor on npu:0."""
    made = [
        torch.zeros(2, device="npu"),
        torch.ones(2, device="npu:0"),
        torch.full((2,), 3.0, device="npu"),
        torch.arange(0, 1, 0.25, device="npu"),
        torch.linspace(0, 1, 3, device="npu"),
        torch.eye(2, device="npu"),
        torch.tril_indices(2, 2, device="npu"),
        torch.rand(2, device="npu"),
        torch.randint(5, (2,), device="npu"),
        torch.randperm(5, device="npu"),
        torch.tensor([1.0, 2.0], device="npu"),
        torch.as_tensor(np.ones(2, dtype=np.float32), device="npu"),
        torch.zeros_like(torch.ones(2), device="npu"),
        torch.ones(2).new_empty(2, device="npu"),
    ]
    assert {tensor.device for tensor in made} == {NPU}


def check_tensors_move_both_ways() -> None:
    """.to, .npu and .cpu copy a tensor without changing a number."""
    host = torch.randn(3, 4)
    there = host.to("npu")
    assert there.is_npu
    assert host.npu().device == NPU
    assert there.to("npu") is there
    assert type(there.cpu()) is torch.Tensor
    assert torch.equal(there.cpu(), host)
    assert torch.equal(torch.zeros(3, 4).copy_(there), host)
    assert there.to("meta").device.type == "meta"


def check_results_are_those_of_the_cpu() -> None:
    """matmul, convolution and attention give the CPU's numbers."""
    a, image, kernel = torch.randn(5, 5), torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    heads = torch.randn(1, 2, 4, 8)
    for function, args in (
        (torch.matmul, (a, a)),
        (functional.conv2d, (image, kernel)),
        (functional.scaled_dot_product_attention, (heads, heads, heads)),
        (torch.linalg.inv, (a,)),
    ):
        there = function(*(x.to("npu") for x in args))
        assert there.device == NPU
        torch.testing.assert_close(there.cpu(), function(*args))


def check_views_share_memory() -> None:
    """A write through a view is seen in the tensor that it was taken from."""
    base = torch.zeros(4, 4, device="npu")
    base[1:, 2] += 1
    base.view(-1)[0] = 5
    base[base > 4] = 7
    assert base.sum().item() == 10
    assert base[1].data_ptr() == base.data_ptr() + 16
    assert base.untyped_storage().data_ptr() == base.t().untyped_storage().data_ptr()


def check_in_place_reshaping_is_seen() -> None:
    """t_, resize_ and out= change the shape of the tensor they are called on."""
    tensor = torch.ones(2, 3, device="npu")
    assert tensor.t_().shape == (3, 2)
    assert tensor.resize_(9).shape == (9,)
    out = torch.empty(0, device="npu")
    assert torch.add(tensor, 1, out=out) is out
    assert out.shape == (9,)


def check_devices_do_not_mix() -> None:
    """Host tensors are refused beside device tensors, host scalars and host indices are not."""
    there = torch.ones(3, device="npu")
    for mixed in (
        lambda: there + torch.ones(3),
        lambda: functional.embedding(torch.tensor([0]), there.view(3, 1)),
        lambda: torch.ones(3)[torch.tensor([0], device="npu")],
        lambda: there.set_(torch.ones(3).untyped_storage()),
    ):
        with pytest.raises(RuntimeError, match="found at least two devices, npu:0 and cpu"):
            mixed()
    assert (there * torch.tensor(2.0)).device == NPU
    assert there[torch.tensor([0, 1])].shape == (2,)


def check_inference_mode_keeps_the_rules() -> None:
    """In inference mode modules move and run, and devices do not mix."""
    with torch.inference_mode():
        layer = torch.nn.Linear(2, 2).to("npu").half().float()
        there = layer(torch.ones(1, 2, device="npu"))
        assert there.device == NPU
        assert type(there.to("cpu")) is torch.Tensor
        with pytest.raises(RuntimeError, match="at least two devices"):
            layer(torch.ones(1, 2))


def check_numbers_can_be_read() -> None:
    """item, tolist, repr, format and numpy(force=True) give numbers; numpy() alone refuses."""
    there = torch.tensor([1.5, 2.5], device="npu", requires_grad=True)
    assert there.tolist() == [1.5, 2.5]
    assert f"{there[0]:.2f}" == "1.50"
    assert repr(there) == "tensor([1.5000, 2.5000], device='npu:0', requires_grad=True)"
    assert "grad_fn=<MulBackward0>" in repr(there * 2)
    assert there.numpy(force=True).sum() == 4
    for read in (there.detach().numpy, lambda: np.asarray(there.detach())):
        with pytest.raises(TypeError, match="can't convert npu:0 device type tensor to numpy"):
            read()


def check_default_device_works() -> None:
    """Inside `with torch.device("npu")` tensors are made on the npu."""
    with torch.device("npu"):
        assert torch.ones(2).device == NPU
        assert torch.nn.Linear(2, 2).weight.device == NPU


def check_deepcopy_keeps_ties() -> None:
    """A deep copy of tied weights is tied again, and takes their memory once."""
    first = torch.nn.Linear(64, 64, bias=False, device="npu")
    second = torch.nn.Linear(64, 64, bias=False, device="npu")
    second.weight = first.weight
    before = torch.npu.memory_allocated()
    copied = copy.deepcopy(torch.nn.Sequential(first, second))
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight.data_ptr() != first.weight.data_ptr()
    assert torch.npu.memory_allocated() - before == 64 * 64 * 4


def check_streams_and_events() -> None:
    """Streams can be set, waited for and told apart, and an event measures milliseconds."""
    side = torch.npu.Stream()
    assert side != torch.npu.current_stream() == torch.npu.default_stream()
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with torch.npu.stream(side):
        assert torch.npu.current_stream() == side
        start.record()
        torch.ones(2, device="npu").record_stream(side)
        end.record()
    side.wait_stream(torch.npu.current_stream())
    torch.npu.synchronize()
    torch.accelerator.synchronize()
    assert 0 < start.elapsed_time(end) < 10_000
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        torch.npu.Event().elapsed_time(end)


def check_torch_npu_can_be_found() -> None:
    """Libraries that look for torch_npu find a version, the module and the chip."""
    import importlib.util

    import torch_npu

    assert importlib.util.find_spec("torch_npu") is not None
    assert torch_npu.__version__ == torch.__version__.split("+")[0] + "+simulated"
    assert torch_npu.npu is torch.npu
    assert torch.npu.get_device_name(0) == "Ascend910B3"
    assert torch.npu.get_device_properties("npu:0").total_memory == 1 << 30
    assert torch.npu.get_soc_version() == 223
    assert torch.npu.is_bf16_supported(including_emulation=False)


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
