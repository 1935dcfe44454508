"""The backward pass: gradients, hooks, functions of one's own, and where all of it lies."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tests.redirect.battery.checking import Raises, Skipped, check, group

group("autograd")


def _leaf() -> Any:
    return torch.ones(2, device="cuda", requires_grad=True)


class _Double(torch.autograd.Function):
    """Doubles, and remembers what it saw."""

    seen: list[Any] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        _Double.seen = [x.is_cuda]
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (x,) = ctx.saved_tensors
        _Double.seen += [gradient.is_cuda, x.is_cuda]
        return gradient * 2 + torch.zeros_like(x) + torch.zeros(2, device="cuda")


@check("x.grad after backward()", [2.0, 2.0])
def _() -> Any:
    x = _leaf()
    (x * 2).sum().backward()
    return x.grad.tolist()


@check("x.grad.is_cuda", translated=False)
def _() -> Any:
    x = _leaf()
    (x * 2).sum().backward()
    return x.grad.is_cuda


@check("gradients accumulate", [4.0, 4.0])
def _() -> Any:
    x = _leaf()
    for _i in range(2):
        (x * 2).sum().backward()
    return x.grad.tolist()


@check("torch.autograd.grad", [[2.0, 2.0], False], translated=[[2.0, 2.0], True], npu=[[2.0, 2.0], False])
def _() -> Any:
    x = _leaf()
    (gradient,) = torch.autograd.grad((x * 2).sum(), x)
    return [gradient.tolist(), gradient.is_cpu]


@check("torch.autograd.grad(create_graph=True), twice", [6.0, 6.0])
def _() -> Any:
    x = _leaf()
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return second.tolist()


@check("a gradient penalty, as GANs have it", True)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    x = _leaf()
    out = net(x)
    (g,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    ((g.norm() - 1) ** 2).backward()
    return net.weight.grad is not None


@check("x.register_hook sees the gradient on CUDA", [True], translated=[False])
def _() -> Any:
    x, seen = _leaf(), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.is_cuda))
    y.sum().backward()
    return seen


@check("a hook that changes the gradient with a tensor of the device", [4.0, 4.0])
def _() -> Any:
    x = _leaf()
    y = x * 2
    y.register_hook(lambda g: g * torch.full((2,), 2.0, device="cuda"))
    y.sum().backward()
    return x.grad.tolist()


@check("register_post_accumulate_grad_hook", [True], translated=[False])
def _() -> Any:
    x, seen = _leaf(), []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.is_cuda))
    x.sum().backward()
    return seen


@check("forward and full backward hooks of modules", [True, True], translated=[False, False])
def _() -> Any:
    net, seen = torch.nn.Linear(2, 2).cuda(), []
    net.register_forward_hook(lambda m, i, o: seen.append(o.is_cuda))
    net.register_full_backward_hook(lambda m, gi, go: seen.append(go[0].is_cuda))
    net(_leaf()).sum().backward()
    return seen


@check(
    "autograd.Function: forward, backward and what it saved see CUDA",
    [True, True, True],
    translated=[False, False, False],
)
def _() -> Any:
    _Double.apply(_leaf()).sum().backward()
    return _Double.seen


@check("autograd.Function gives the gradient", [2.0, 2.0])
def _() -> Any:
    x = _leaf()
    _Double.apply(x).sum().backward()
    return x.grad.tolist()


@check("saved_tensors_hooks that pack to the host", [2.0, 2.0])
def _() -> Any:
    x = _leaf()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.cpu(), lambda t: t.cuda()):
        y = x * x
    y.sum().backward()
    return x.grad.tolist()


@check("torch.autograd.graph.save_on_cpu()", [2.0, 2.0])
def _() -> Any:
    x = _leaf()
    with torch.autograd.graph.save_on_cpu():
        y = x * x
    y.sum().backward()
    return x.grad.tolist()


@check("checkpoint(use_reentrant=False)", [True, True], translated=[False, True])
def _() -> Any:
    net, x = torch.nn.Linear(2, 2).cuda(), _leaf()
    y = checkpoint(net, x, use_reentrant=False)
    y.sum().backward()
    return [y.is_cuda, x.grad is not None]


@check(
    "checkpoint(use_reentrant=True) with dropout: the same mask again",
    True,
    npu=Skipped("the simulated npu is not asked for its state"),
)
def _() -> Any:
    x = torch.ones(64, device="cuda", requires_grad=True)
    y = checkpoint(torch.nn.Dropout(0.5), x, use_reentrant=True)
    y.sum().backward()
    return torch.equal(y.detach(), x.grad)


@check("checkpoint under autocast computes the same dtype again", True)
def _() -> Any:
    net, x = torch.nn.Linear(2, 2).cuda(), _leaf()
    seen: list[Any] = []

    def program(x: Any) -> Any:
        seen.append(net(x).dtype)
        return net(x)

    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = checkpoint(program, x, use_reentrant=False)
    y.float().sum().backward()
    return seen == [torch.bfloat16, torch.bfloat16]


@check("detach_anomaly: set_detect_anomaly finds a NaN", True, warns="Error detected in|Anomaly Detection")
def _() -> Any:
    x = torch.zeros(1, device="cuda", requires_grad=True)
    try:
        with torch.autograd.detect_anomaly(check_nan=True):
            (x.sqrt() * 0).sum().backward()
    except RuntimeError as error:
        return "returned nan values" in str(error)
    return False


@check("x.retain_grad() of a result on the device", [1.0, 1.0])
def _() -> Any:
    y = _leaf() * 2
    y.retain_grad()
    y.sum().backward()
    return y.grad.tolist()


@check("x.backward(gradient on the device)", [3.0, 3.0])
def _() -> Any:
    x = _leaf()
    (x * 1).backward(torch.full((2,), 3.0, device="cuda"))
    return x.grad.tolist()


@check("torch.autograd.functional.jacobian, hessian", [[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 2.0]]])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    functional = torch.autograd.functional
    return [
        functional.jacobian(lambda a: a * 2, x).tolist(),
        functional.hessian(lambda a: a.square().sum(), x).tolist(),
    ]


@check("gradients on several devices", [2.0, 2.0], needs_devices=2, npu=Raises(RuntimeError))
def _() -> Any:
    x = torch.ones(2, device="cuda:0", requires_grad=True)
    (x.to("cuda:1") * 2).sum().backward()
    return x.grad.tolist()
