"""torch.func over tensors on the device."""

from __future__ import annotations

from typing import Any

import torch

from tests.redirect.battery.checking import MIXED, Skipped, check, group

group("transforms")
NO_TRANSFORMS = Skipped("torch.func does not take the simulated npu's tensors apart")


def _x() -> Any:
    return torch.arange(3.0, device="cuda")


@check("torch.func.vmap", [0.0, 2.0, 4.0], npu=NO_TRANSFORMS)
def _() -> Any:
    return torch.func.vmap(lambda a: a * 2)(_x()).tolist()


@check("torch.func.vmap with a tensor made inside", [1.0, 2.0, 3.0], npu=NO_TRANSFORMS)
def _() -> Any:
    return torch.func.vmap(lambda a: a + torch.ones((), device="cuda"))(_x()).tolist()


@check("what vmap gives is on CUDA", translated=False, npu=NO_TRANSFORMS)
def _() -> Any:
    return torch.func.vmap(lambda a: a * 2)(_x()).is_cuda


@check("torch.func.grad", [0.0, 2.0, 4.0], npu=NO_TRANSFORMS)
def _() -> Any:
    return torch.func.grad(lambda a: a.square().sum())(_x()).tolist()


@check("what grad gives is on CUDA", translated=False, npu=NO_TRANSFORMS)
def _() -> Any:
    return torch.func.grad(lambda a: a.square().sum())(_x()).is_cuda


@check("torch.func.jacrev, jacfwd, hessian", [True, True, True], npu=NO_TRANSFORMS)
def _() -> Any:
    eye = torch.eye(3, device="cuda") * 2
    return [
        torch.equal(torch.func.jacrev(lambda a: a * 2)(_x()), eye),
        torch.equal(torch.func.jacfwd(lambda a: a * 2)(_x()), eye),
        torch.equal(torch.func.hessian(lambda a: a.square().sum())(_x()), eye),
    ]  # fmt: skip


@check("torch.func.functional_call", [0.0, 0.0], npu=NO_TRANSFORMS)
def _() -> Any:
    net = torch.nn.Linear(3, 2).cuda()
    zeros = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    return torch.func.functional_call(net, zeros, (_x(),)).tolist()


@check("per-sample gradients: vmap of grad over a module", [3, 1, 2], npu=NO_TRANSFORMS)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(net, parameters, (x[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.ones(3, 2, device="cuda"))
    return list(found["weight"].shape)


@check("vmap of a tensor of the host with one of the device", MIXED, translated=[1.0, 2.0, 3.0], npu=NO_TRANSFORMS)
def _() -> Any:
    return torch.func.vmap(lambda a, b: a + b)(_x(), torch.ones(3)).tolist()


@check("torch.func.stack_module_state, an ensemble", [2, 3, 1], npu=NO_TRANSFORMS)
def _() -> Any:
    nets = [torch.nn.Linear(2, 1).cuda() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(nets)

    def one(parameters: Any, buffers: Any, x: Any) -> Any:
        return torch.func.functional_call(nets[0], (parameters, buffers), (x,))

    return list(torch.func.vmap(one, (0, 0, None))(parameters, buffers, torch.ones(3, 2, device="cuda")).shape)
