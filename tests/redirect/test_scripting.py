"""TorchScript under a redirect: what is compiled, traced or loaded computes on the target, with the same numbers."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from devicekit.redirect.recording import Record
from devicekit.redirect.redirect import Redirect

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.usefixtures("redirect"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
ones = torch.ones(3)
REAL_DEVICE = torch.device


def by_method(x: torch.Tensor) -> torch.Tensor:
    return x.cuda() + 1


def by_name(x: torch.Tensor) -> torch.Tensor:
    return x.to("cuda") + torch.ones(3, device="cuda:0")


def by_device(x: torch.Tensor) -> torch.Tensor:
    device = torch.device("cuda")
    if bool(x.sum() > 0):
        return x.to(device, torch.float32) + 1
    return x.to(torch.device("cuda", 0))


def by_text(x: torch.Tensor, index: int = 0) -> torch.Tensor:
    return x.to(f"cuda:{index}") + torch.ones(3, device=torch.device("cuda", index))


def by_call(x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        if x.dim() == 1:
            return by_name(x)
    return x


class Holder:
    def __init__(self, number: int) -> None:
        self.number = number

    def there(self, x: torch.Tensor) -> torch.Tensor:
        return x.to("cuda") + self.number


def by_class(x: torch.Tensor) -> torch.Tensor:
    return Holder(1).there(x)


FUNCTIONS: list[Callable[..., Any]] = [by_method, by_name, by_device, by_text, by_call, by_class]


class Inner(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cuda()

    @torch.jit.export
    def other(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return x.to("cuda") if index == 0 else x.to(f"cuda:{index}").cpu()


class Net(torch.nn.Module):
    device: torch.device

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.device = REAL_DEVICE("cuda:0")
        self.name = "cuda"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).to(self.device) + torch.ones(3, device=self.device).to(self.name)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions(function: Callable[..., Any]) -> None:
    """A device that is written down, computed, or named in what is called, is the target."""
    assert torch.jit.script(function)(ones).tolist() == [2, 2, 2]


def test_modules() -> None:
    """Of modules every method, of theirs too; and what they hold."""
    net = torch.jit.script(Net())
    assert net(ones).tolist() == [2, 2, 2]
    assert net.inner.other(ones, 0).tolist() == [1, 1, 1]
    assert net.inner.other(ones, 3).tolist() == [1, 1, 1]
    assert torch.jit.freeze(net.eval())(ones).tolist() == [2, 2, 2]


def test_the_old_way_to_make_a_module() -> None:
    class Old(torch.jit.ScriptModule):
        @torch.jit.script_method
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cuda() + 1

    assert Old()(ones).tolist() == [2, 2, 2]


def given(x: torch.Tensor, device: REAL_DEVICE) -> torch.Tensor:
    return x.to(device)


def test_a_device_that_is_given() -> None:
    """As an argument; the annotation was read when torch.device was torch's own."""
    given.__annotations__["device"] = REAL_DEVICE
    scripted = torch.jit.script(given)
    assert scripted(ones, torch.device("cuda")).device.type == "cpu"
    assert scripted(ones, device=torch.device("cuda:0")).device.type == "cpu"


def test_a_device_that_the_program_did_not_name_stays() -> None:
    def elsewhere(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, device="meta").to(torch.device("meta"))

    assert torch.jit.script(elsewhere)(ones).device.type == "meta"


def test_traced() -> None:
    """A trace holds the target's devices, and is an ordinary file."""
    traced = torch.jit.trace(lambda x: by_name(x).cuda(), ones)
    assert traced(ones).tolist() == [2, 2, 2]
    assert "cuda" not in str(traced.graph)


def test_files() -> None:
    """What was saved on a machine with CUDA is loaded for the target; what is saved here names no CUDA device."""
    plain = io.BytesIO()
    torch.jit.save(torch.jit.script(Net()), plain)
    assert b"cuda:0" not in torch.jit.script(by_name).code.encode()
    plain.seek(0)
    assert torch.jit.load(plain)(ones).tolist() == [2, 2, 2]


def test_it_is_told() -> None:
    with Redirect(_target(), record=Record()) as redirect:
        torch.jit.script(by_name)
        torch.jit.script(torch.nn.Linear(2, 2))
    assert {place.what: count for place, count in redirect.record.counts.items()} == {"torch.jit.script": 1}


def _target() -> Any:
    from devicekit.redirect.target import DecidedTarget
    from devicekit.resolve import resolver

    return DecidedTarget(resolver().decide("cpu"))
