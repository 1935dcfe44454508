"""TorchScript, torch.compile and the other tracers."""

from __future__ import annotations

from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Skipped, check, group

group("compiling")
NO_COMPILER = Skipped("torch.compile fails on the simulated npu")
NO_SCRIPT = Skipped("TorchScript passes the simulated npu's tensors by")


def _scripted(x: torch.Tensor) -> torch.Tensor:
    return x.to("cuda") + torch.ones(2, device="cuda") + x.cuda()


class Net(torch.nn.Module):
    """Names CUDA in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.to("cuda")) * torch.ones(2, device="cuda")


def _there(x: Any) -> Any:
    return (x.cuda() * 2).relu() + torch.ones(2, device="cuda") + torch.zeros(2, device=x.cuda().device)


@check("torch.jit.script of a function that names CUDA", [3.0, 3.0], npu=NO_SCRIPT)
def _() -> Any:
    return torch.jit.script(_scripted)(torch.ones(2)).tolist()


@check("torch.jit.script of a module that names CUDA", 2, npu=NO_SCRIPT)
def _() -> Any:
    return torch.jit.script(Net().cuda())(torch.ones(2)).numel()


@check(
    "what a scripted function gives is on CUDA",
    translated=False,
    masqueraded=Differs(False, "a script's result is where its arguments are"),
    npu=NO_SCRIPT,
)
def _() -> Any:
    return torch.jit.script(_scripted)(torch.ones(2)).is_cuda


@check("torch.jit.trace of a module on the device", [2, 2], npu=NO_SCRIPT)
def _() -> Any:
    net, x = torch.nn.Linear(2, 2).cuda(), torch.ones(2, 2, device="cuda")
    return list(torch.jit.trace(net, x)(x).shape)


@check("torch.jit.save and load of a script that names CUDA", [3.0, 3.0], npu=NO_SCRIPT)
def _() -> Any:
    import io

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(_scripted), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)(torch.ones(2)).tolist()


@check("torch.jit.load(map_location='cuda')", True, npu=NO_SCRIPT)
def _() -> Any:
    import io

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    buffer.seek(0)
    net = torch.jit.load(buffer, map_location="cuda")
    return net(torch.ones(1, 2, device="cuda")).shape == (1, 2)


@check(
    "torch.compile(backend='eager', fullgraph=True) with x.cuda(), device='cuda', x.device", [3.0, 3.0], npu=NO_COMPILER
)
def _() -> Any:
    return torch.compile(_there, backend="eager", fullgraph=True)(torch.ones(2)).tolist()


@check("torch.compile(backend='aot_eager') of a module, with a backward pass", True, npu=NO_COMPILER)
def _() -> Any:
    net = Net().cuda()
    torch.compile(net, backend="aot_eager")(torch.ones(2)).sum().backward()
    return net.layer.weight.grad is not None


@check(
    "torch.compile(model): the names in its state_dict",
    ["_orig_mod.layer.weight", "_orig_mod.layer.bias"],
    npu=NO_COMPILER,
)
def _() -> Any:
    return list(torch.compile(Net().cuda(), backend="eager").state_dict())


@check("torch.compile under autocast", "torch.bfloat16", npu=NO_COMPILER)
def _() -> Any:
    program = torch.compile(lambda x: x @ x, backend="eager")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return str(program(torch.ones(2, 2, device="cuda")).dtype)


@check("torch.compile by inductor", [3.0, 3.0], npu=NO_COMPILER, process=True)
def _() -> Any:
    return torch.compile(_there)(torch.ones(2)).tolist()


@check("what a compiled function gives is on CUDA", translated=False, npu=NO_COMPILER)
def _() -> Any:
    return torch.compile(_there, backend="eager")(torch.ones(2)).is_cuda


@check("torch.export.export of a module on the device", [2], npu=NO_COMPILER)
def _() -> Any:
    exported = torch.export.export(Net().cuda(), (torch.ones(2, device="cuda"),))
    return list(exported.module()(torch.ones(2, device="cuda")).shape)


@check("torch.fx.symbolic_trace of a module that names CUDA", 2)
def _() -> Any:
    return torch.fx.symbolic_trace(Net().cuda())(torch.ones(2)).numel()


@check("@torch.compiler.disable, torch.compiler.is_compiling()", [[3.0, 3.0], False])
def _() -> Any:
    return [torch.compiler.disable(_there)(torch.ones(2)).tolist(), torch.compiler.is_compiling()]
