"""Which device a tensor says it is on, and devices as values."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Raises, Skipped, check, group

group("devices")


@check("x.is_cuda", translated=False)
def _() -> Any:
    return torch.ones(2, device="cuda").is_cuda


@check("x.is_cpu", False, translated=True, npu=False)
def _() -> Any:
    return torch.ones(2, device="cuda").is_cpu


@check("x.device.type", "cuda", translated=lambda device: device.type)
def _() -> Any:
    return torch.ones(2, device="cuda").device.type


@check("x.device.index", 0, translated=None, npu=0)
def _() -> Any:
    return torch.ones(2, device="cuda").device.index


@check("str(x.device)", "cuda:0", translated="cpu", npu="npu:0")
def _() -> Any:
    return str(torch.ones(2, device="cuda").device)


@check("x.device == torch.device('cuda:0')", translated=False)
def _() -> Any:
    return torch.ones(2, device="cuda").device == torch.device("cuda:0")


@check("x.device == torch.device('cuda') is False: one has an index", False)
def _() -> Any:
    return torch.ones(2, device="cuda").device == torch.device("cuda")


@check("x.device is a torch.device, also by type()")
def _() -> Any:
    device = torch.ones(2, device="cuda").device
    return isinstance(device, torch.device) and type(device) == torch.device  # noqa: E721


@check(
    "type(x.device) is torch.device",
    translated=Differs(False, "torch.device is replaced, devices are torch's own"),
    masqueraded=Differs(False, "the same"),
)
def _() -> Any:
    return type(torch.ones(2, device="cuda").device) is torch.device


@check("x.get_device()", 0, translated=-1, npu=0)
def _() -> Any:
    return torch.ones(2, device="cuda").get_device()


@check("torch.ones(2).get_device() of the host", -1)
def _() -> Any:
    return torch.ones(2).get_device()


@check("x.type()", "torch.cuda.FloatTensor", translated="torch.FloatTensor", npu="torch.npu.FloatTensor")
def _() -> Any:
    return torch.ones(2, device="cuda").type()


@check(
    "repr(x)",
    "tensor([1., 1.], device='cuda:0')",
    translated="tensor([1., 1.])",
    npu="tensor([1., 1.], device='npu:0')",
)
def _() -> Any:
    return repr(torch.ones(2, device="cuda"))


@check(
    "repr of an integer tensor with a dtype",
    "tensor([1, 2], device='cuda:0', dtype=torch.int32)",
    translated="tensor([1, 2], dtype=torch.int32)",
    npu=Skipped("a subclass of Tensor writes the device last"),
)
def _() -> Any:
    return repr(torch.tensor([1, 2], dtype=torch.int32, device="cuda"))


@check(
    "repr of a parameter",
    "Parameter containing:\ntensor([1.], device='cuda:0', requires_grad=True)",
    translated="Parameter containing:\ntensor([1.], requires_grad=True)",
    npu="Parameter containing:\ntensor([1.], device='npu:0', requires_grad=True)",
)
def _() -> Any:
    return repr(torch.nn.Parameter(torch.ones(1, device="cuda")))


@check("f'{x}' of a number", "1.5")
def _() -> Any:
    return f"{torch.tensor(1.5, device='cuda'):.1f}"


@check("the host's tensors stay the host's", ["cpu", False])
def _() -> Any:
    x = torch.ones(2)
    x.cuda()
    return [str(x.device), x.is_cuda]


@check("results are where their tensors are", translated=False)
def _() -> Any:
    x = torch.ones(4, 4, device="cuda")
    made = [
        x + 1,
        x @ x,
        x[0],
        x.T,
        x.view(-1),
        x.sum(),
        x > 0,
        x.max(0).values,
        *x.split(2),
        x.topk(1).indices,
        torch.cat([x, x]),
    ]
    return all(t.is_cuda for t in made)


@check("what is like another is where that is", translated=False)
def _() -> Any:
    x = torch.ones(4, device="cuda")
    made = [
        torch.zeros_like(x),
        torch.rand_like(x),
        x.new_zeros(2),
        x.new_tensor([1.0]),
        x.clone(),
        x.detach(),
        x.data,
        torch.empty_like(x),
    ]
    return all(t.is_cuda for t in made)


@check("torch.device('cuda').type, index and text", ["cuda", None, "cuda", 1, "cuda:1"])
def _() -> Any:
    one, other = torch.device("cuda"), torch.device("cuda", 1)
    return [one.type, one.index, str(one), other.index, str(other)]


@check("torch.device(0) is a CUDA device", "cuda:0")
def _() -> Any:
    return str(torch.device(0))


@check("torch.device(type='cuda', index=0)", "cuda:0")
def _() -> Any:
    return str(torch.device(type="cuda", index=0))


@check("torch.device of a device", "cuda:0")
def _() -> Any:
    return str(torch.device(torch.device("cuda:0")))


@check("a device that is spelled wrong", Raises(RuntimeError, "device"))
def _() -> Any:
    return torch.device("cuda:x")


@check("devices are keys, and are pickled and copied")
def _() -> Any:
    device = torch.device("cuda:0")
    return {device: 1}[torch.device("cuda", 0)] == 1 and pickle.loads(pickle.dumps(device)) == copy.deepcopy(
        device
    ) == device


@check("a table with torch.device as a key", "device")
def _() -> Any:
    return {torch.device: "device", int: "number"}[type(torch.ones(1, device="cuda").device)]


@check("device.type == 'cuda' of a device that the program named")
def _() -> Any:
    return torch.device("cuda").type == "cuda"


@check("'cuda' in str(device)", translated=False)
def _() -> Any:
    return "cuda" in str(torch.ones(1, device="cuda").device)


@check("x.device is passed on", 2.0)
def _() -> Any:
    x = torch.ones(1, device="cuda")
    return (x + torch.ones(1, device=x.device)).item()


@check("a tensor of cuda:1 says so", "cuda:1", translated="cpu", npu=Raises(RuntimeError), needs_devices=2)
def _() -> Any:
    return str(torch.ones(2, device="cuda:1").device)


@check(
    "torch.cuda.set_device(1); torch.ones(2, device='cuda')",
    "cuda:1",
    translated="cpu",
    npu=Raises(RuntimeError),
    needs_devices=2,
)
def _() -> Any:
    before = torch.cuda.current_device()
    torch.cuda.set_device(1)
    try:
        return str(torch.ones(2, device="cuda").device)
    finally:
        torch.cuda.set_device(before)


@check(
    "with torch.cuda.device(1): torch.ones(2).cuda()",
    "cuda:1",
    translated="cpu",
    npu=Raises(RuntimeError),
    needs_devices=2,
)
def _() -> Any:
    with torch.cuda.device(1):
        return str(torch.ones(2).cuda().device)


@check(
    "a tensor of a device that is not there",
    Raises(RuntimeError, "invalid device ordinal"),
    translated=2.0,
    npu=Raises(RuntimeError),
)
def _() -> Any:
    return torch.ones(2, device="cuda:97").sum().item()


@check("a complex tensor", translated=False)
def _() -> Any:
    return torch.ones(2, dtype=torch.complex64, device="cuda").is_cuda


# -- the default device ------------------------------------------------------------------------------
@check("with torch.device('cuda'): factories and modules", translated=False)
def _() -> Any:
    with torch.device("cuda"):
        return torch.zeros(2).is_cuda and torch.nn.Linear(2, 2).weight.is_cuda and torch.tensor([1.0]).is_cuda


@check("with torch.device('cuda'): an explicit 'cpu' wins", "cpu")
def _() -> Any:
    with torch.device("cuda"):
        return str(torch.zeros(2, device="cpu").device)


@check("torch.set_default_device('cuda')", translated=False)
def _() -> Any:
    torch.set_default_device("cuda")
    try:
        return torch.zeros(2).is_cuda and torch.arange(3).is_cuda and torch.randn(2).is_cuda
    finally:
        torch.set_default_device(None)


@check("torch.get_default_device() inside", "cuda", translated=lambda device: device.type)
def _() -> Any:
    torch.set_default_device("cuda")
    try:
        return torch.get_default_device().type
    finally:
        torch.set_default_device(None)


@check("the default device does not outlive its context", "cpu")
def _() -> Any:
    with torch.device("cuda"):
        pass
    return str(torch.zeros(2).device)
