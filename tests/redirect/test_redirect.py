"""A redirect as a whole: entered and left, nested, after errors, in threads, and what is left behind: nothing."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")


def to_cpu() -> Redirect:
    return Redirect(DecidedTarget(resolver().decide("cpu")))


def state() -> dict[str, Any]:
    """Every attribute of torch's modules and of the classes that a redirect may touch."""
    # What the compiler keeps changes as it is used, and is forgotten when a redirect ends.
    mine = {name: m for name, m in sys.modules.items() if not name.startswith(("torch._dynamo", "torch._inductor"))}
    owners = [m for name, m in mine.items() if name.partition(".")[0] == "torch" and m is not None]
    owners += [torch.Tensor, torch.nn.Module, torch.UntypedStorage, torch.TypedStorage, torch.Generator]
    owners += [torch.amp.autocast_mode.autocast, torch.amp.GradScaler, torch.nn.parallel.DistributedDataParallel]
    return {f"{id(owner)} {getattr(owner, '__name__', owner)}": dict(vars(owner)) for owner in owners}


def assert_unchanged(before: dict[str, Any]) -> None:
    now = state()
    for owner, names in before.items():
        different = [n for n, v in names.items() if not n.startswith("__") and now[owner].get(n, None) is not v]
        assert different == [], owner
        assert set(now[owner]) - set(names) <= {n for n in now[owner] if type(now[owner][n]) is types.ModuleType}


@pytest.fixture(autouse=True)
def everything_is_loaded() -> None:
    """What torch loads on first use is no change of ours."""
    with to_cpu():
        torch.zeros(1, device="cuda")


def test_all_is_taken_back() -> None:
    before = state()
    with to_cpu():
        torch.zeros(2, device="cuda").cuda()
        assert "cuda" in vars(torch.Tensor)
    assert_unchanged(before)


def test_also_after_an_error() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), to_cpu():
        1 / 0  # noqa: B018
    assert_unchanged(before)


def test_also_when_a_part_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()
    monkeypatch.setattr("devicekit.redirect.redirect.TRANSLATING", ("tensors", "no_such_part"))
    with pytest.raises(ModuleNotFoundError), to_cpu():
        pass
    assert_unchanged(before)


def test_inside_one_another() -> None:
    before = state()
    with to_cpu():
        with to_cpu():
            torch.zeros(2, device="cuda")
        torch.zeros(2, device="cuda").cuda()
    assert_unchanged(before)


def test_the_same_one_twice() -> None:
    before = state()
    redirect = to_cpu()
    with redirect, redirect:
        torch.zeros(2, device="cuda")
    with redirect:
        torch.zeros(2, device="cuda")
    assert_unchanged(before)


def test_left_in_another_order() -> None:
    before = state()
    first, second = to_cpu(), to_cpu()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    second.__exit__(None, None, None)
    assert_unchanged(before)


def test_what_the_program_kept_is_torchs_own_again() -> None:
    with to_cpu():
        zeros, to, device = torch.zeros, torch.Tensor.to, torch.device
    assert zeros(2).tolist() == [0, 0]
    assert to(zeros(1), torch.float64).dtype is torch.float64
    assert isinstance(device("cpu"), torch.device)
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            zeros(2, device="cuda")


def test_what_was_imported_before_is_redirected_too() -> None:
    module = types.ModuleType("a_program")
    exec("from torch import zeros, device", module.__dict__)
    real = module.zeros
    sys.modules["a_program"] = module
    try:
        with to_cpu():
            assert module.zeros(2, device="cuda").device.type == "cpu"
            assert module.device(0).type == "cuda"
        assert module.zeros is real
    finally:
        del sys.modules["a_program"]


def test_threads() -> None:
    found = []
    with to_cpu():
        thread = threading.Thread(target=lambda: found.append(torch.zeros(1, device="cuda").device.type))
        thread.start()
        thread.join()
    assert found == ["cpu"]
