"""Mixed precision: autocast in every spelling, the scaler, functions with custom_fwd."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tests.redirect.battery.checking import Differs, check, group

group("amp")


def _product() -> str:
    x = torch.ones(2, 2, device="cuda")
    return str((x @ x).dtype).removeprefix("torch.")


@check("torch.autocast('cuda', dtype=torch.bfloat16)", "bfloat16")
def _() -> Any:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return _product()


@check("torch.autocast('cuda') computes in float16", "float16")
def _() -> Any:
    with torch.autocast("cuda"):
        return _product()


@check("torch.autocast(device_type='cuda', dtype=torch.float16)", "float16")
def _() -> Any:
    with torch.autocast(device_type="cuda", dtype=torch.float16):
        return _product()


@check("torch.autocast('cuda', enabled=False)", "float32")
def _() -> Any:
    with torch.autocast("cuda", enabled=False):
        return _product()


@check("torch.autocast('cuda', torch.bfloat16): the dtype by position", "bfloat16")
def _() -> Any:
    with torch.autocast("cuda", torch.bfloat16):
        return _product()


@check("torch.cuda.amp.autocast()", "float16")
def _() -> Any:
    with torch.cuda.amp.autocast():
        return _product()


@check("torch.cuda.amp.autocast(False)", "float32")
def _() -> Any:
    with torch.cuda.amp.autocast(False):
        return _product()


@check("torch.cuda.amp.autocast(enabled=True, dtype=torch.bfloat16)", "bfloat16")
def _() -> Any:
    with torch.cuda.amp.autocast(enabled=True, dtype=torch.bfloat16):
        return _product()


@check("torch.amp.autocast('cuda', dtype=torch.bfloat16)", "bfloat16")
def _() -> Any:
    with torch.amp.autocast("cuda", dtype=torch.bfloat16):
        return _product()


@check("@torch.autocast('cuda', dtype=torch.bfloat16)", "bfloat16")
def _() -> Any:
    @torch.autocast("cuda", dtype=torch.bfloat16)
    def program() -> str:
        return _product()

    return program()


@check("@torch.cuda.amp.autocast()", "float16")
def _() -> Any:
    @torch.cuda.amp.autocast()
    def program() -> str:
        return _product()

    return program()


@check("autocast inside autocast, switched off inside", ["bfloat16", "float32", "bfloat16"])
def _() -> Any:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        first = _product()
        with torch.autocast("cuda", enabled=False):
            inner = _product()
        return [first, inner, _product()]


@check("autocast ends, also after an error", "float32")
def _() -> Any:
    try:
        with torch.autocast("cuda"):
            raise ValueError
    except ValueError:
        return _product()


@check("autocast: linear in bfloat16, the loss in float32", ["torch.bfloat16", "torch.float32"])
def _() -> Any:
    net = torch.nn.Linear(2, 2).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = net(torch.ones(2, 2, device="cuda"))
        loss = functional.mse_loss(out, torch.ones(2, 2, device="cuda"))
    return [str(out.dtype), str(loss.dtype)]


@check("torch.is_autocast_enabled() inside and outside", [True, False])
def _() -> Any:
    with torch.autocast("cuda"):
        inside = torch.is_autocast_enabled()
    return [inside, torch.is_autocast_enabled()]


@check("torch.is_autocast_enabled('cuda')", True)
def _() -> Any:
    with torch.autocast("cuda"):
        return torch.is_autocast_enabled("cuda")


@check("torch.get_autocast_gpu_dtype(), get_autocast_dtype('cuda')", ["torch.bfloat16", "torch.bfloat16"])
def _() -> Any:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return [str(torch.get_autocast_gpu_dtype()), str(torch.get_autocast_dtype("cuda"))]


@check("torch.amp.is_autocast_available('cuda')")
def _() -> Any:
    return torch.amp.is_autocast_available("cuda")


@check(
    "autocast leaves the host alone",
    "float32",
    translated="bfloat16",
    masqueraded=Differs("bfloat16", "one processor"),
    npu="float32",
)
def _() -> Any:
    x = torch.ones(2, 2)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return str((x @ x).dtype).removeprefix("torch.")


def _step(scaler: Any) -> Any:
    net = torch.nn.Linear(2, 2).cuda()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = net.weight.detach().clone()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = net(torch.ones(2, 2, device="cuda")).float().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return [scaler.is_enabled(), not torch.equal(before, net.weight)]


@check("torch.cuda.amp.GradScaler(): a whole step", [True, True])
def _() -> Any:
    return _step(torch.cuda.amp.GradScaler(init_scale=8.0))


@check("torch.amp.GradScaler('cuda'): a whole step", [True, True])
def _() -> Any:
    return _step(torch.amp.GradScaler("cuda", init_scale=8.0))


@check("torch.amp.GradScaler(): a whole step", [True, True])
def _() -> Any:
    return _step(torch.amp.GradScaler(init_scale=8.0))


@check("GradScaler(enabled=False)", [False, True])
def _() -> Any:
    return _step(torch.cuda.amp.GradScaler(enabled=False))


@check("GradScaler scales, and skips a step with an infinite gradient", [64.0, True, 4.0])
def _() -> Any:
    net = torch.nn.Linear(1, 1).cuda()
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cuda", init_scale=8.0)
    scaled = scaler.scale(torch.tensor(8.0, device="cuda")).item()
    before = net.weight.detach().clone()
    scaler.scale(net(torch.full((1, 1), float("inf"), device="cuda")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return [scaled, torch.equal(before, net.weight), scaler.get_scale()]


@check("GradScaler.state_dict and back", 16.0)
def _() -> Any:
    one, other = torch.cuda.amp.GradScaler(init_scale=16.0), torch.cuda.amp.GradScaler()
    other.load_state_dict(one.state_dict())
    return other.get_scale()


@check("torch.cuda.amp.custom_fwd, custom_bwd", "torch.float32")
def _() -> Any:
    seen: list[str] = []

    class Function(torch.autograd.Function):
        @staticmethod
        @torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)
        def forward(ctx: Any, x: Any) -> Any:
            seen.append(str(x.dtype))
            return x * 2

        @staticmethod
        @torch.cuda.amp.custom_bwd
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient * 2

    x = torch.ones(2, device="cuda", dtype=torch.float16, requires_grad=True)
    with torch.autocast("cuda"):
        Function.apply(x).sum().backward()
    return seen[0]


@check("torch.amp.custom_fwd(device_type='cuda')", [2.0, 2.0])
def _() -> Any:
    class Function(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda")
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient * 2

    x = torch.ones(2, device="cuda", requires_grad=True)
    with torch.autocast("cuda"):
        Function.apply(x).sum().backward()
    return x.grad.tolist()


@check("an autocast for x.device.type", "bfloat16")
def _() -> Any:
    x = torch.ones(2, 2, device="cuda")
    with torch.autocast(device_type=x.device.type, dtype=torch.bfloat16):
        return _product()


@check("torch.set_autocast_enabled by hand", [True, False])
def _() -> Any:
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    found = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", before)
    torch.clear_autocast_cache()
    return [found, before]
