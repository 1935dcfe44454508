"""Tensors under a redirect: they go where the program sends them, and a copy stays a copy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")

TO_DEVICE: dict[str, Callable[[Any], Any]] = {
    "cuda()": lambda x: x.cuda(),
    "cuda(0)": lambda x: x.cuda(0),
    "cuda(device)": lambda x: x.cuda(torch.device("cuda:0"), non_blocking=True),
    "to('cuda')": lambda x: x.to("cuda"),
    "to('cuda:0', dtype)": lambda x: x.to("cuda:0", torch.float32),
    "to(device=)": lambda x: x.to(device=torch.device("cuda"), dtype=torch.float32),
    "to(0)": lambda x: x.to(0, non_blocking=True),
    "to(dtype, device=)": lambda x: x.to(dtype=torch.float32, device=0),
    "to(other)": lambda x: x.to(torch.zeros(1, device="cuda")),
    "as_tensor(tensor)": lambda x: torch.as_tensor(x, device="cuda"),
    "as_tensor(array)": lambda x: torch.as_tensor(x.numpy(), device="cuda"),
    "asarray": lambda x: torch.asarray(x.numpy(), device="cuda"),
    "type('torch.cuda.FloatTensor')": lambda x: x.type("torch.cuda.FloatTensor"),
    "to(other.device)": lambda x: x.to(torch.zeros(1, device="cuda").device),
}
TO_HOST: dict[str, Callable[[Any], Any]] = {
    "cpu()": lambda x: x.cpu(),
    "to('cpu')": lambda x: x.to("cpu"),
    "to(torch.device('cpu'))": lambda x: x.to(torch.device("cpu")),
    "to(device='cpu')": lambda x: x.to(device="cpu"),
    "to(host tensor)": lambda x: x.to(torch.zeros(1).cpu()),
}


@pytest.mark.parametrize("way", TO_DEVICE.values(), ids=TO_DEVICE)
def test_from_the_host_is_a_copy(way: Callable[[Any], Any]) -> None:
    """What is done to the tensor on the device does not reach the host's."""
    host = torch.ones(3)
    on_device = way(host)
    on_device.add_(1)
    assert host.tolist() == [1, 1, 1]
    assert on_device.device == torch.zeros(1).device


@pytest.mark.parametrize("way", TO_HOST.values(), ids=TO_HOST)
def test_to_the_host_is_a_copy(way: Callable[[Any], Any]) -> None:
    """A snapshot stays what it was; also of a view, of a parameter's data and of an operation's result."""
    on_device = torch.ones(4, device="cuda")
    for tensor in (on_device, on_device.view(2, 2), on_device[1:], torch.nn.Parameter(on_device).data, on_device * 1):
        snapshot = way(tensor)
        before = snapshot.clone()
        tensor.add_(1)
        assert torch.equal(snapshot, before)


@pytest.mark.parametrize("way", TO_DEVICE.values(), ids=TO_DEVICE)
def test_what_is_there_stays(way: Callable[[Any], Any]) -> None:
    """As on a card, a tensor that lies where it shall go is not copied."""
    on_device = torch.ones(3, device="cuda")
    host_side = ("array", "asarray")  # they start from the host's memory
    if not any(word in way.__code__.co_names for word in ("numpy", *host_side)):
        assert way(on_device).data_ptr() == on_device.data_ptr()


def test_what_is_on_the_host_stays() -> None:
    host = torch.ones(3, device="cuda").cpu()
    assert host.cpu() is host
    assert host.to("cpu") is host


def test_best_weights_are_kept_while_training_goes_on() -> None:
    model = torch.nn.Linear(3, 3).to("cuda")
    best = {name: value.cpu() for name, value in model.state_dict().items()}
    before = copy.deepcopy(best)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.ones(2, 3, device="cuda")).sum().backward()
    optimizer.step()
    assert all(torch.equal(best[name], before[name]) for name in best)
    assert not torch.equal(model.weight, best["weight"])


@pytest.mark.parametrize("again", ["cuda", "cuda:0", 0, "device"])
def test_a_module_that_is_there_keeps_its_memory(again: Any) -> None:
    model = torch.nn.Linear(3, 3).cuda()
    where = model.weight.data_ptr()
    model.to(torch.device("cuda", 0) if again == "device" else again)
    model.to(model.weight.device)
    assert model.weight.data_ptr() == where


def test_the_device_says_the_truth() -> None:
    tensor = torch.ones(3, device="cuda")
    assert not tensor.is_cuda
    assert tensor.device == torch.device("cpu")
    assert tensor.type() == "torch.FloatTensor"


def test_a_device_that_the_program_names_stays_what_it_named() -> None:
    """``device.type == "cuda"`` is how programs ask which way to go."""
    device = torch.device("cuda")
    assert device.type == "cuda"
    assert isinstance(device, torch.device)
    assert torch.device(1) == torch.device("cuda", 1)
    assert torch.device("cuda", index=1).index == 1


def test_devices_are_pickled_as_ever() -> None:
    for device in (torch.device("cuda:1"), torch.device("cpu"), torch.ones(1, device="cuda").device):
        assert pickle.loads(pickle.dumps(device)) == device
    assert pickle.loads(pickle.dumps(torch.device)) is torch.device


def test_nothing_of_it_is_pickled() -> None:
    tensor = torch.ones(3, device="cuda")
    assert b"devicekit" not in pickle.dumps(tensor)
    assert pickle.loads(pickle.dumps(tensor)).untyped_storage().__dict__.keys().isdisjoint(["_devicekit_place"])
    assert copy.deepcopy(tensor).untyped_storage().__dict__ == {}


def test_default_device() -> None:
    with torch.device("cuda"):
        assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
    torch.set_default_device("cuda:0")
    try:
        assert torch.zeros(2).device.type == "cpu"
        assert torch.get_default_device().type == "cpu"
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("wrong", ["cuda:x", "cuda:", "cuad", "cuda:-1"])
def test_what_is_spelled_wrong_is_torchs_error(wrong: str) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=wrong)
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2).to(wrong)


def test_cuda_of_another_device_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="must be cuda device"):
        torch.ones(2).cuda("cpu")


def test_pinned_memory_of_a_device_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        torch.zeros(2, device="cuda", pin_memory=True)
    assert torch.ones(2).pin_memory().tolist() == [1, 1]
    assert torch.zeros(2, pin_memory=True).tolist() == [0, 0]
    assert torch.empty_like(torch.ones(2), pin_memory=True).shape == (2,)
    assert torch.tensor([1.0], pin_memory=True).tolist() == [1]


def test_factories() -> None:
    x = torch.ones(2, device="cuda")
    made = [
        torch.empty(2, device="cuda:0"), torch.full((2,), 1.0, device=0), torch.arange(3, device="cuda"),
        torch.tensor([1.0], device="cuda"), torch.randn(2, device=torch.device("cuda")), torch.eye(2, device="cuda"),
        torch.zeros_like(x, device="cuda"), torch.randint(0, 3, (2,), device="cuda"), torch.linspace(0, 1, 3, device=0),
        x.new_zeros(2, device="cuda"), x.new_tensor([1.0], device="cuda"), torch.hann_window(4, device="cuda"),
        torch.fft.fftfreq(4, device="cuda"), torch.signal.windows.hann(4, device="cuda"),
        torch.sparse_coo_tensor([[0]], [1.0], (2,), device="cuda", check_invariants=True),
        torch.tril_indices(2, 2, device="cuda"),
        torch.nested.nested_tensor([x, x], device="cuda", layout=torch.jagged),
        torch.normal(0.0, 1.0, (2,), device="cuda"),
    ]  # fmt: skip
    assert {tensor.device.type for tensor in made} == {"cpu"}
