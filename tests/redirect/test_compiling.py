"""torch.compile and other tracers under a redirect: they take in whole what names CUDA, and give the same numbers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devicekit.redirect.recording import Record
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver
from devicekit.testing import simulated_cuda

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")
ones = torch.ones(3)


def target() -> DecidedTarget:
    return DecidedTarget(resolver().decide("cpu"))


@pytest.fixture(autouse=True)
def _anew(redirect: Redirect) -> Iterator[None]:
    """Dynamo remembers code objects over tests."""
    yield
    torch._dynamo.reset()


def as_default(x: Any) -> Any:
    torch.set_default_device("cuda")
    try:
        return x + torch.ones(3)
    finally:
        torch.set_default_device(None)


def autocast(x: Any) -> Any:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return (x.reshape(1, 3) @ x.reshape(3, 1)).to(torch.float32).reshape(1).expand(3) - 1


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "x.cuda()": lambda x: x.cuda() + 1,
    "x.cuda(0)": lambda x: x.cuda(0, non_blocking=True) + 1,
    "x.to('cuda')": lambda x: x.to("cuda") + 1,
    "x.to(device, dtype)": lambda x: x.to(torch.device("cuda:0"), torch.float32) + 1,
    "x.to(0)": lambda x: x.to(0) + 1,
    "x.to(device=)": lambda x: x.to(device="cuda", dtype=torch.float32, non_blocking=True) + 1,
    "x.cpu()": lambda x: x.cuda().cpu() + 1,
    "x.type()": lambda x: x.type("torch.cuda.FloatTensor") + 1,
    "zeros": lambda x: x + 1 + torch.zeros(3, device="cuda"),
    "ones of a device": lambda x: x + torch.ones(3, device=torch.device("cuda")),
    "ones of a number": lambda x: x + torch.ones(3, device=0),
    "full": lambda x: x + torch.full((3,), 1.0, device="cuda:0"),
    "tensor": lambda x: x + torch.tensor([1.0, 1.0, 1.0], device="cuda"),
    "arange of a shape": lambda x: x + 1 + 0 * torch.arange(x.shape[0], device="cuda"),
    "ones_like": lambda x: x + torch.ones_like(x, device="cuda"),
    "new_ones": lambda x: x + x.new_ones(3, device="cuda"),
    "as_tensor": lambda x: x + torch.as_tensor([1.0, 1.0, 1.0], device="cuda"),
    "x.device": lambda x: x + torch.ones(3, device=x.device),
    "a choice by device.type": lambda x: x + (1 if x.device.type == "cpu" else 2),
    "isinstance(x.device)": lambda x: x + (1 if isinstance(x.device, torch.device) else 2),
    "a device by a condition": lambda x: x.to(torch.device("cuda" if x.shape[0] == 3 else "cpu")) + 1,
    "is_available": lambda x: x.cuda() + 1 if torch.cuda.is_available() else x,
    "autocast": autocast,
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_in_one_graph(function: Callable[[Any], Any], backend: str) -> None:
    """Nothing that names CUDA breaks the graph."""
    made = torch.compile(function, backend=backend, fullgraph=True)
    assert made(ones).tolist() == [2, 2, 2]
    assert made(ones.clone()).tolist() == [2, 2, 2]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        mask = torch.ones(3, device="cuda")
        return self.layer(x.to("cuda")) * mask.cuda()


def test_modules_keep_the_names_that_torch_gives_them() -> None:
    net = Net().cuda()
    made = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert list(made.state_dict()) == ["_orig_mod.layer.weight", "_orig_mod.layer.bias"]
    torch.testing.assert_close(made(ones), net(ones))
    made(ones).sum().backward()
    assert net.layer.weight.grad is not None


def test_in_place_and_as_a_decorator() -> None:
    net = Net().cuda()
    net.compile(backend="eager", fullgraph=True)
    assert net(ones).shape == (3,)

    @torch.compile(backend="eager", fullgraph=True)
    def double(x: Any) -> Any:
        return x.cuda() * 2

    assert double(ones).tolist() == [2, 2, 2]


def test_nothing_of_it_outlives_the_redirect() -> None:
    """What was compiled inside means torch's own again, and what was compiled before is compiled anew inside."""

    def there(x: Any) -> Any:
        return x + torch.ones(3, device="cuda")

    made = torch.compile(there, backend="eager")
    with Redirect(target()), Redirect(target()):
        assert made(ones).tolist() == [2, 2, 2]
    assert made(ones).tolist() == [2, 2, 2]


@pytest.mark.slow
def test_dynamo_that_is_imported_inside_knows_torchs_own_functions_afterwards() -> None:
    """Optimizers import it, so that most programs do; and installing does not."""
    code = """if True:
        import sys, torch
        import devicekit
        with devicekit.redirect_cuda("cpu"), devicekit.redirect_cuda("cpu"):
            assert "torch._dynamo" not in sys.modules
            f = torch.compile(lambda x: x.to(torch.device("cuda")) + torch.ones(3, device="cuda"), backend="eager")
            assert f(torch.ones(3)).tolist() == [2, 2, 2]
        g = torch.compile(lambda x: x.to(torch.device("cpu")) + torch.ones(3, device=x.device), backend="eager",
                          fullgraph=True)
        assert g(torch.ones(3)).tolist() == [2, 2, 2]
        assert torch.zeros in torch._dynamo.trace_rules.get_torch_obj_rule_map()
        assert torch.cuda.is_available in torch._dynamo.variables.torch.constant_fold_functions
        if not torch.cuda.is_available():
            try:
                f(torch.ones(3))
            except Exception:
                sys.exit()
            raise AssertionError("it is still redirected")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_real_compiler() -> None:
    """Inductor makes code for it, forwards and backwards."""
    code = """if True:
        import torch, devicekit
        with devicekit.redirect_cuda("cpu"):
            net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU()).cuda()
            def step(x):
                x = x.to("cuda", non_blocking=True)
                return (net(x) + torch.ones(4, device="cuda")).square().mean()
            made = torch.compile(step, fullgraph=True)
            x = torch.randn(2, 3)
            torch.testing.assert_close(made(x), step(x))
            made(x).backward()
            assert net[0].weight.grad is not None
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_it_runs_plainly() -> None:
    """The module is what torch.compile makes of it, and the reason is told."""

    class NoCompiler(DecidedTarget):
        def compile_problem(self) -> str:
            return "there is no C++ compiler"

    here = NoCompiler(resolver().decide("cpu"))
    with Redirect(here, record=Record()) as redirect:
        made = torch.compile(Net().cuda(), mode="max-autotune")
        assert made(ones).shape == (3,)
        assert list(made.state_dict()) == ["_orig_mod.layer.weight", "_orig_mod.layer.bias"]
        assert torch.compile(lambda x: x.cuda() + 1)(ones).tolist() == [2, 2, 2]
        assert torch.compile(lambda x: x + 1, backend="eager")(ones).tolist() == [2, 2, 2]
    told = {place.what for place in redirect.record.counts if "compile" in place.what}
    assert told == {"torch.compile: runs plainly, because there is no C++ compiler"}


def test_masquerade_runs_plainly() -> None:
    """What is compiled could not look as if it were on CUDA; the names in the state dict are as ever."""
    with simulated_cuda(report=True) as redirect:
        net = Net().cuda()
        made = torch.compile(net, fullgraph=True)
        assert made(torch.ones(3)).is_cuda
        assert list(made.state_dict()) == ["_orig_mod.layer.weight", "_orig_mod.layer.bias"]
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            torch.compile(lambda x: x + torch.ones(3))(torch.ones(3).cuda())
    assert any(place.what.startswith("torch.compile: runs plainly, because") for place in redirect.record.counts)


# -- other tracers -----------------------------------------------------------------------------------
def test_export() -> None:
    exported = torch.export.export(Net().cuda(), (ones,))
    assert exported.module()(ones).shape == (3,)
    assert "cuda" not in exported.graph_module.code


def test_symbolic_trace() -> None:
    """The graph says what the program says; its calls are redirected when it runs."""

    def there(x: Any) -> Any:
        return x.cuda() + torch.ones_like(x, device="cuda")

    graph = torch.fx.symbolic_trace(there)
    assert graph(ones).tolist() == [2, 2, 2]
    assert [node.op for node in graph.graph.nodes] == [
        "placeholder", "call_method", "call_function", "call_function", "output",
    ]  # fmt: skip


def test_make_fx() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: x.cuda() + torch.ones(3, device="cuda"))(ones)
    assert graph(ones).tolist() == [2, 2, 2]


def test_transforms() -> None:
    """vmap, grad and jacrev over what lies on the target, and with what is made there inside."""
    x = torch.arange(3.0, device="cuda")

    def there(a: Any) -> Any:
        return (a.to("cuda") * torch.ones((), device="cuda")).square()

    assert torch.func.vmap(there)(x).tolist() == [0, 1, 4]
    assert torch.func.grad(lambda a: there(a).sum())(x).tolist() == [0, 2, 4]
    assert torch.func.jacrev(there)(x).diagonal().tolist() == [0, 2, 4]
    net = Net().cuda()
    parameters = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    assert torch.func.functional_call(net, parameters, (x,)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool) -> None:
    """What is computed again in the backward pass is the same, dropout included."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout()).cuda()
    x = torch.ones(2, 3, device="cuda", requires_grad=True)
    torch.manual_seed(0)
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=use_reentrant).sum().backward()
    torch.manual_seed(0)
    again = x.detach().clone().requires_grad_()
    net(again).sum().backward()
    assert torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("way", [lambda x: x.cuda(), lambda x: x.to("cuda"), lambda x: x.cpu(), lambda x: x.to("cpu")])
def test_a_copy_is_a_copy_there_too(way: Callable[[Any], Any], backend: str) -> None:
    """What is done to the result does not reach what it was made from."""

    def changed(x: Any) -> Any:
        return way(x).add_(1)

    x = torch.ones(3)
    assert torch.compile(changed, backend=backend, fullgraph=True)(x).tolist() == [2, 2, 2]
    assert x.tolist() == [1, 1, 1]
