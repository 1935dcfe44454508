"""Types of tensors, as programs of the first years of torch use them."""

from __future__ import annotations

from typing import Any

import torch

from tests.redirect.battery.checking import check, group

group("typed")
OLD = "deprecated as of PyTorch 2.1"


@check("torch.cuda.FloatTensor([1.0, 2.0])", [[1.0, 2.0], "torch.float32"])
def _() -> Any:
    x = torch.cuda.FloatTensor([1.0, 2.0])
    return [x.tolist(), str(x.dtype)]


@check("torch.cuda.FloatTensor(2, 3).shape", [2, 3])
def _() -> Any:
    return list(torch.cuda.FloatTensor(2, 3).shape)


@check(
    "torch.cuda.LongTensor, HalfTensor, ByteTensor, BoolTensor",
    ["torch.int64", "torch.float16", "torch.uint8", "torch.bool"],
)
def _() -> Any:
    return [
        str(t([1]).dtype)
        for t in (torch.cuda.LongTensor, torch.cuda.HalfTensor, torch.cuda.ByteTensor, torch.cuda.BoolTensor)
    ]


@check("torch.cuda.FloatTensor([1.0]).is_cuda", translated=False)
def _() -> Any:
    return torch.cuda.FloatTensor([1.0]).is_cuda


@check("isinstance(x, torch.cuda.FloatTensor)", [True, False])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return [isinstance(x, torch.cuda.FloatTensor), isinstance(x.long(), torch.cuda.FloatTensor)]


@check("isinstance(host tensor, torch.cuda.FloatTensor)", False, translated=True, npu=False)
def _() -> Any:
    return isinstance(torch.ones(2), torch.cuda.FloatTensor)


@check("Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor", 3.0)
def _() -> Any:
    make = torch.cuda.FloatTensor if torch.cuda.is_available() else torch.FloatTensor
    return make(3).fill_(1.0).sum().item()


@check("torch.cuda.FloatTensor(2).uniform_(), normal_()", True)
def _() -> Any:
    return torch.cuda.FloatTensor(2).uniform_().max().item() <= 1


@check("torch.set_default_tensor_type('torch.cuda.FloatTensor')", translated=False, warns=OLD)
def _() -> Any:
    torch.set_default_tensor_type("torch.cuda.FloatTensor")
    try:
        return torch.zeros(2).is_cuda and torch.tensor([1.0]).is_cuda
    finally:
        torch.set_default_tensor_type("torch.FloatTensor")


@check("torch.set_default_tensor_type(torch.cuda.HalfTensor)", "torch.float16", warns=OLD)
def _() -> Any:
    torch.set_default_tensor_type(torch.cuda.HalfTensor)
    try:
        return str(torch.zeros(2).dtype)
    finally:
        torch.set_default_tensor_type(torch.FloatTensor)


@check("a model built under a CUDA default tensor type", 4.0, warns=OLD)
def _() -> Any:
    torch.set_default_tensor_type("torch.cuda.FloatTensor")
    try:
        net = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(net.weight)
        torch.nn.init.zeros_(net.bias)
        return net(torch.ones(1, 2)).sum().item()
    finally:
        torch.set_default_tensor_type("torch.FloatTensor")


@check("x.type() == 'torch.cuda.FloatTensor'", translated=False)
def _() -> Any:
    return torch.ones(2).cuda().type() == "torch.cuda.FloatTensor"


@check("torch.tensortype of x.new(): x.new([1.0])", translated=False)
def _() -> Any:
    return torch.ones(2, device="cuda").new([1.0]).is_cuda


@check("torch.autograd.Variable(x).cuda()", 2.0)
def _() -> Any:
    return torch.autograd.Variable(torch.ones(2)).cuda().sum().item()


@check("x.type(torch.cuda.LongTensor)", "torch.int64")
def _() -> Any:
    return str(torch.ones(2).type(torch.cuda.LongTensor).dtype)
