"""What can be compiled is, what cannot runs as it is, nothing runs twice unsaid, and the reason is kept."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import InternalTorchDynamoError

import devicekit as dk
from devicekit.testing import simulated_machine
from devicekit.testing.machines import CUDA_BUILD

METAL = Path(torch.__file__).with_name("_inductor").joinpath("codegen", "mps.py").is_file()  # from torch 2.7 on
dm = dk.DeviceManager("cpu")
ones = torch.ones(3)


@pytest.fixture(autouse=True)
def _anew() -> None:
    """Dynamo remembers code objects over tests."""
    torch._dynamo.reset()


class Compiler:
    """A backend for torch.compile that runs graphs as they are, and fails from its nth graph on."""

    def __init__(self, fails_at: int = sys.maxsize, error: Exception | None = None) -> None:
        self.asked = 0
        self.ran = 0
        self.fails_at = fails_at
        self.error = error or RuntimeError("no such instruction\nand more")

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.asked += 1
        if self.asked >= self.fails_at:
            raise self.error

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


def double(x: torch.Tensor) -> torch.Tensor:
    """A function to compile."""
    return x * 2


# -- where there is a compiler ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"cuda": 1}, ""),
        ({"rocm": 1}, ""),
        ({"xpu": 1}, ""),
        ({"mps": True}, "" if METAL else "generates no code for mps"),
        ({"env": {"CXX": sys.executable}}, ""),
        ({"cuda": 1, "architecture": "sm_61", "build": replace(CUDA_BUILD, architectures=())}, "Triton needs sm_70"),
        ({"cuda": 1, "modules": ("numpy", "psutil", "pynvml")}, "triton is not installed"),
        ({"rocm": 1, "modules": ("numpy", "psutil")}, "triton is not installed"),
        ({"npu": 1}, "generates no code for npu"),
        ({"machine": "vulkan"}, "generates no code for vulkan"),
        ({"env": {"PATH": "/nowhere"}}, "there is no C++ compiler: g++ is not found"),
        ({"env": {"CXX": "no-such-compiler"}}, "no-such-compiler is not found"),
        ({"machine": "no-torch"}, "numpy has no compiler"),
    ],
)
def test_the_device_decides(machine: dict[str, Any], reason: str) -> None:
    """Each machine compiles or says why it cannot, without a warning, and the function works either way."""
    with simulated_machine(**machine), warnings.catch_warnings():
        warnings.simplefilter("error")
        here = dk.DeviceManager("vulkan" if machine.get("machine") == "vulkan" else None)
        made = here.compile(double)
    assert made.compiled is (reason == "")
    assert reason in made.reason
    assert bool(made.reason) is bool(reason)
    if reason:
        assert made(2) == 4


def test_a_compiler_of_ones_own_needs_none_of_torchs() -> None:
    """With a backend named, the device need not have code generated for it."""
    compiler = Compiler()
    with simulated_machine("vulkan"):
        made = dk.DeviceManager("vulkan").compile(double, backend=compiler)
    assert torch.equal(made(ones), ones * 2)
    assert (made.compiled, compiler.ran) == (True, 1)


def test_switched_off_is_told() -> None:
    """torch's own switches leave the function alone, and that is the reason."""
    made = dm.compile(double, disable=True)
    assert (made.compiled, made.reason) == (False, "disable=True")
    with torch._dynamo.config.patch(disable=True):
        assert "switched off" in dm.compile(double).reason


def test_nothing_is_compiled_of_what_cannot_be_called() -> None:
    """A number is an error that says what can be."""
    with pytest.raises(dk.DeviceKitError, match="5 cannot be compiled"):
        dm.compile(5)


def test_wrong_options_are_the_callers_error() -> None:
    """What torch.compile refuses is refused, and never taken for a failure of the compiler."""
    with pytest.raises(dk.DeviceKitError, match="not both"):
        dm.compile(double, backend="eager", mode="default", options={"a": 1})
    with pytest.raises(TypeError):
        dm.compile(double, backend="eager", no_such_option=1)


# -- it is the compiled one that runs ------------------------------------------------------------------
def test_a_function_is_compiled() -> None:
    """The graph runs, and the name, the text and the numbers are the function's."""
    compiler = Compiler()
    made = dm.compile(double, backend=compiler)
    assert torch.equal(made(ones), ones * 2)
    assert (compiler.asked, compiler.ran) == (1, 1)
    assert (made.__name__, made.__doc__) == ("double", double.__doc__)
    assert dm.compilation(made) == dm.compilation(made)
    assert dm.compilation(made).compiled


def test_it_is_a_decorator_with_and_without_options() -> None:
    """On a function and on a method, which gets its object."""
    compiler = Compiler()

    class Scaled:
        by = 3

        @dm.compile(backend=compiler, fullgraph=True)
        def times(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.by

    @dm.compile
    def plain(x: int) -> int:
        return x + 1

    assert torch.equal(Scaled().times(ones), ones * 3)
    assert compiler.ran == 1
    assert plain.__name__ == "plain"


def test_what_was_never_compiled_says_so() -> None:
    """Asked about anything else, the answer is a no in words."""
    for thing in (double, torch.nn.Linear(1, 1), 5):
        answer = dm.compilation(thing)
        assert (answer.compiled, answer.reason) == (False, "it was not given to DeviceManager.compile()")


# -- modules ----------------------------------------------------------------------------------------------
class Net(torch.nn.Module):
    """Two layers and a hook's worth of names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One after the other."""
        return torch.relu(self.norm(self.first(x)))


def test_a_module_stays_itself() -> None:
    """The same object, class, parameters and names; its state dict goes into a plain one and comes from one."""
    net, compiler = Net().eval(), Compiler()
    names, parameters = list(net.state_dict()), [id(p) for p in net.parameters()]
    made = dm.compile(net, backend=compiler)
    assert made is net
    assert isinstance(made, Net)
    assert (list(made.state_dict()), [id(p) for p in made.parameters()]) == (names, parameters)
    other = Net().eval()
    other.load_state_dict(made.state_dict())
    batch = torch.randn(2, 3)
    assert torch.equal(made(batch), other(batch))
    assert compiler.ran == 1
    made.load_state_dict(Net().state_dict())
    assert not torch.equal(made(batch), other(batch))
    assert dm.compilation(made).compiled


def test_torchs_own_modules_are_compiled() -> None:
    """A Sequential, a Linear: their own compile() of torch does nothing at all; several do not share one limit."""
    compiler = Compiler()
    for width in range(1, 21):
        made = dm.compile(torch.nn.Sequential(torch.nn.Linear(width, 2), torch.nn.ReLU()), backend=compiler)
        made(torch.ones(1, width))
        assert compiler.ran == width
    dm.compile(torch.nn.Linear(3, 3), backend=compiler)(torch.ones(1, 3))
    assert compiler.ran == 21


class Block(torch.nn.Module):
    """One of many alike."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A layer."""
        return torch.relu(self.inner(x))


def test_alike_blocks_are_compiled_once() -> None:
    """Twenty blocks, compiled one by one, ask the compiler once; each runs compiled, with its own weights."""
    compiler, blocks = Compiler(), [Block() for _ in range(20)]
    plain = [copy.deepcopy(block) for block in blocks]
    for block, other in zip(blocks, plain, strict=True):
        assert torch.equal(dm.compile(block, backend=compiler)(torch.ones(1, 3)), other(torch.ones(1, 3)))
    assert (compiler.asked, compiler.ran) == (1, 20)


def test_alike_blocks_fail_each_with_a_reason() -> None:
    """Where the compiler failed for the first one, the others run plainly as well, and none says it is compiled."""
    compiler, blocks = Compiler(fails_at=1), [Block() for _ in range(3)]
    for block in blocks:
        with pytest.warns(UserWarning, match="no such instruction"):
            dm.compile(block, backend=compiler)(torch.ones(1, 3))
        assert not dm.compilation(block).compiled
    assert compiler.asked == 1


def test_hooks_and_gradients_work() -> None:
    """Hooks run once a call, and the gradients are the plain module's."""
    net, plain, calls = Net(), Net(), []
    plain.load_state_dict(net.state_dict())
    net.register_forward_hook(lambda *_: calls.append(1))
    made, batch = dm.compile(net, backend="aot_eager"), torch.randn(5, 3)
    made(batch).square().sum().backward()
    plain(batch).square().sum().backward()
    assert calls == [1]
    for got, expected in zip(made.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_copies_of_a_module_are_plain() -> None:
    """A deep copy and a pickle compute the same without the compiler, and say that they are not compiled."""
    made, compiler = Net().eval(), Compiler()
    dm.compile(made, backend=compiler)
    batch = torch.randn(2, 3)
    expected = made(batch)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(batch), expected)
        assert not dm.compilation(other).compiled
    assert compiler.ran == 1


@dm.compile(backend="eager")
def decorated(x: torch.Tensor) -> torch.Tensor:
    """A function of this file, for its pickle is its name."""
    return x + 1


def test_a_decorated_function_is_pickled_by_name() -> None:
    """As any function: the copy is the function itself."""
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert copy.deepcopy(decorated) is decorated


def test_a_plain_module_keeps_the_reason() -> None:
    """Where the device has no compiler the module is itself, works, and says why."""
    net = Net().eval()
    with simulated_machine(env={"PATH": "/nowhere"}):
        here = dk.DeviceManager()
        assert here.compile(net) is net
        assert "no C++ compiler" in here.compilation(net).reason
    assert net(torch.ones(1, 3)).shape == (1, 4)


def test_compiled_parts_can_be_compiled_again() -> None:
    """A module in a module, and a function in a function, keep their numbers."""
    inner, compiler = dm.compile(torch.nn.Linear(3, 3), backend="eager"), Compiler()
    outer = torch.nn.Sequential(inner, torch.nn.ReLU())
    expected = outer(torch.ones(1, 3))
    assert torch.equal(dm.compile(outer, backend=compiler)(torch.ones(1, 3)), expected)
    assert compiler.ran
    twice = dm.compile(lambda x: dm_double(x) + 1, backend="eager", fullgraph=True)
    assert torch.equal(twice(ones), ones * 2 + 1)


dm_double = dm.compile(double, backend="eager")


# -- the compiler fails ---------------------------------------------------------------------------------------
def test_a_failing_compiler_leaves_the_function() -> None:
    """One warning at the caller's line, the reason kept, the right numbers, and the compiler is not asked again."""
    compiler = Compiler(fails_at=1)
    made = dm.compile(double, backend=compiler)
    with pytest.warns(UserWarning, match="double runs plainly from now on.*no such instruction$") as heard:
        assert torch.equal(made(ones), ones * 2)
    assert [w.filename for w in heard] == [__file__]
    assert (made.compiled, made.reason) == (False, "the compiler failed: RuntimeError: no such instruction")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(made(torch.ones(4, 4)), torch.full((4, 4), 2.0))
    assert compiler.asked == 1


def test_a_failing_compiler_leaves_the_module() -> None:
    """The same for a module, whose gradients still come."""
    net = dm.compile(Net(), backend=Compiler(fails_at=1))
    with pytest.warns(UserWarning, match="Net runs plainly.*no such instruction"):
        net(torch.randn(5, 3)).sum().backward()
    assert net.first.weight.grad is not None
    assert "no such instruction" in dm.compilation(net).reason


def test_nothing_happens_twice() -> None:
    """What the function did before and around the part that fails was done once."""
    done: list[str] = []

    def note(word: str) -> None:
        done.append(word)

    def function(x: torch.Tensor) -> torch.Tensor:
        note("begin")
        x = x + 1
        torch._dynamo.graph_break()
        note("middle")
        x = x * 3
        note("end")
        return x

    compiler = Compiler(fails_at=2)
    made = dm.compile(function, backend=compiler)
    with pytest.warns(UserWarning, match="no such instruction"):
        assert torch.equal(made(ones), torch.full((3,), 6.0))
    assert done == ["begin", "middle", "end"]
    assert (compiler.asked, compiler.ran) == (2, 1)


def test_a_later_shape_may_fail() -> None:
    """Compiled for one shape and failing for the next, it runs plainly for all from the next call on."""
    compiler = Compiler(fails_at=2)
    made = dm.compile(double, backend=compiler, dynamic=False)
    made(ones)
    assert made.compiled
    with pytest.warns(UserWarning, match="no such instruction"):
        assert torch.equal(made(torch.ones(5)), torch.full((5,), 2.0))
    made(ones)
    assert (made.compiled, compiler.asked, compiler.ran) == (False, 2, 1)


def test_errors_of_the_function_are_its_own() -> None:
    """What it raises comes through as it is, runs once, and is no failure of the compiler."""
    ran: list[int] = []
    error = KeyError("mine")

    def function(x: torch.Tensor) -> torch.Tensor:
        ran.append(1)
        x = x + 1
        if x.sum() > 0:
            raise error
        return x

    made = dm.compile(function, backend=Compiler())
    with pytest.raises(KeyError) as caught:
        made(ones)
    assert caught.value is error
    assert ran == [1]
    assert made.compiled
    assert torch.equal(made(-2 * ones), -ones)


def test_a_whole_graph_that_cannot_be_is_the_callers_error() -> None:
    """fullgraph=True asks for an error where the function cannot be traced, and gets torch's."""

    @dm.compile(backend="eager", fullgraph=True)
    def function(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        function(ones)


def test_dynamos_own_failure_says_that_the_call_began_anew() -> None:
    """Where torch fails before any compiler was asked, the call starts again, and the warning says so."""
    ran: list[str] = []

    def function(x: int) -> int:
        ran.append("plain")
        return x + 1

    def broken(x: int) -> int:
        ran.append("traced")
        raise InternalTorchDynamoError("AssertionError: a bug")

    with simulated_machine(env={"CXX": sys.executable}) as host:
        host.torch().compile = lambda call, **_: broken  # type: ignore[attr-defined]
        made = dk.DeviceManager().compile(function)
    with pytest.warns(UserWarning, match="a bug; what the call had done by then is done again"):
        assert made(1) == 2
    assert made(2) == 3
    assert ran == ["traced", "plain", "plain"]
    assert not made.compiled


# -- what it costs, and the real one -----------------------------------------------------------------------------
def _run(code: str, **env: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_who_does_not_compile_does_not_pay() -> None:
    """Dynamo is imported by the call and not before, also not by a decision or by attention."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import devicekit; dm = devicekit.DeviceManager('cpu'); dm.attention_backend()\n"
        "with dm.attention('math'): pass\n"
        "new = {m for m in set(sys.modules) - before if m.startswith(('torch._dynamo', 'torch._inductor', 'sympy'))}\n"
        "assert not new, new\n"
        "dm.compile(len, backend='eager'); assert 'torch._dynamo' in sys.modules"
    )
    assert _run(code) == ""


REAL = """
import torch, warnings, devicekit as dk
warnings.simplefilter("always")
dm = dk.DeviceManager("cpu")
net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
plain = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
plain.load_state_dict(net.state_dict())
made, x = dm.compile(net{options}), torch.randn(4, 8)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    made(x).sum().backward()
plain(x).sum().backward()
torch.testing.assert_close(made(x), plain(x))
torch.testing.assert_close(net[0].weight.grad, plain[0].weight.grad)
told = [str(w.message) for w in heard if "plainly" in str(w.message)]
print(dm.compilation(made).compiled, dm.compilation(made).reason, len(told))
"""


@pytest.mark.slow
def test_the_real_compiler_computes_the_same(tmp_path: Any) -> None:
    """Inductor's C++ gives the module's numbers and gradients; without a C++ compiler it is plain, with the reason."""
    told = _run(REAL.format(options=", mode='default'"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    if dm.compile(double).compiled:
        assert told == "True  0\n"
    else:
        assert told.startswith("False there is no C++ compiler")


@pytest.mark.slow
def test_a_real_compiler_that_fails(tmp_path: Any) -> None:
    """A C++ compiler that is there but does not compile is a reason, one warning, and the right numbers."""
    broken = tmp_path / "broken-cxx"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    told = _run(REAL.format(options=""), CXX=str(broken), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert told.startswith("False the compiler failed: ")
    assert told.endswith(" 1\n")
