"""Tensors that look like CUDA's: what they say, what they refuse, and what they take."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devicekit import DeviceKitError, is_out_of_memory
from devicekit.redirect.redirect import Redirect
from devicekit.testing import simulated_cuda

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def gpus() -> Iterator[Redirect]:
    with simulated_cuda(count=2, memory="1GiB", capability=(8, 6)) as redirect:
        yield redirect


def on_device(index: int = 0) -> Any:
    return torch.ones(3, 3, device=f"cuda:{index}")


MADE: dict[str, Callable[[Any], Any]] = {
    "arithmetic": lambda x: x + 1,
    "two of them": lambda x: x @ x,
    "a number of the host": lambda x: x * torch.tensor(2.0),
    "view": lambda x: x.view(9)[2:],
    "data": lambda x: x.data,
    "detach": lambda x: x.detach(),
    "split": lambda x: x.split(1)[1],
    "max": lambda x: x.max(0).values,
    "cat": lambda x: torch.cat([x, x]),
    "stack": lambda x: torch.stack((x, x)),
    "like": lambda x: torch.zeros_like(x),
    "new": lambda x: x.new_zeros(2),
    "tensor of it": lambda x: torch.as_tensor(x),
    "out": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
    "in place": lambda x: x.clone().add_(1),
    "deepcopy": copy.deepcopy,
    "parameter": lambda x: torch.nn.Parameter(x),
    "sparse": lambda x: x.to_sparse(),
    "dense again": lambda x: x.to_sparse().to_dense(),
    "sparse from the host": lambda x: torch.eye(3).to_sparse().cuda(x.get_device()) @ x,
    "read back": lambda x: read_back({"x": x})["x"] + x,
    "read back into a model": lambda x: read_back(torch.nn.Linear(3, 3).cuda())(x),
    "pickled": lambda x: x @ pickle.loads(pickle.dumps(x)),
    "packed": lambda x: torch.nn.utils.rnn.pack_padded_sequence(x[None], torch.tensor([3]), batch_first=True).data,
    "vmap": lambda x: torch.func.vmap(lambda row: row * 2)(x),
    "grad": lambda x: torch.func.grad(lambda v: (v * v).sum())(x),
    "host indices": lambda x: x[torch.tensor([0, 1])],
    "mask": lambda x: x[x > 0],
    "where": lambda x: torch.where(x > 0, x, 0),
    "einsum": lambda x: torch.einsum("ij,jk->ik", x, x),
    "linear algebra": lambda x: torch.linalg.norm(x),
    "complex": lambda x: torch.fft.fft(x).abs(),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "lstm": lambda x: torch.nn.LSTM(3, 2).cuda()(x[None])[0],
    "lstm over packed": lambda x: torch.nn.LSTM(3, 2, batch_first=True).cuda()(packed(x))[0].data,
    "attention module": lambda x: torch.nn.MultiheadAttention(3, 1).cuda()(x, x, x)[0],
    "batch norm": lambda x: torch.nn.BatchNorm1d(3).cuda()(x),
    "dropout": lambda x: torch.nn.functional.dropout(x),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(torch.nn.Linear(3, 3).cuda(), x, use_reentrant=False),
    "clip": lambda x: torch.nn.utils.clip_grad_norm_([with_grad(x)], 1.0),
    "type": lambda x: x.double(),
    "type_as": lambda x: torch.ones(2).type_as(x),
    "to other": lambda x: torch.ones(2).to(x),
    "to device of": lambda x: torch.ones(2).to(x.device),
    "scripted": lambda x: traced(lambda a: a * 2)(x),
    "scripted with a size": lambda x: scripted_part(x, torch.IntTensor([2])),
}


def scripted_part(x: Any, sizes: Any) -> Any:
    """Calls what vocoders have: how many channels there are is an argument, on the host."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.CompilationUnit("def part(x, sizes):\n    return x[:, : int(sizes[0])] * 2\n")
    return script.part(x, sizes)


def read_back(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False, **options)


def traced(function: Callable[[Any], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch advise against it
        return torch.jit.trace(function, (torch.ones(3, 3),))


def with_grad(x: Any) -> Any:
    parameter = torch.nn.Parameter(x.clone())
    parameter.square().sum().backward()
    return parameter


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_comes_of_it_is_there_too(make: Callable[[Any], Any]) -> None:
    made = make(on_device())
    assert made.device == torch.device("cuda:0")
    assert made.is_cuda
    assert not made.is_cpu
    assert made.get_device() == 0


@pytest.mark.parametrize("name", ["arithmetic", "view", "like", "new", "deepcopy", "vmap", "type_as", "to device of"])
def test_also_on_another_device(name: str) -> None:
    assert MADE[name](on_device(1)).device == torch.device("cuda:1")


HOST: dict[str, Callable[[Any], Any]] = {
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "to device": lambda x: x.to(torch.device("cpu"), torch.float64),
    "type": lambda x: x.type("torch.FloatTensor"),
    "like on the host": lambda x: torch.zeros_like(x, device="cpu"),
    "new on the host": lambda x: x.new_zeros(2, device="cpu"),
    "numbers": lambda x: torch.tensor(x.tolist()),
    "copied to": lambda x: torch.empty(3, 3).copy_(x),
    "forced": lambda x: torch.from_numpy(x.numpy(force=True)),
    "assigned": lambda x: torch.zeros(3, 3).__setitem__(0, x[0]) or torch.zeros(3),
    "filled": lambda x: torch.zeros(3).fill_(x.sum()),
    "read back": lambda x: read_back(x, map_location="cpu"),
    "indexed by a number": lambda x: torch.ones(3)[x.sum().long() - 9],
    "batch sizes": lambda x: packed(x).batch_sizes,
    "lengths": lambda x: torch.nn.utils.rnn.pad_packed_sequence(packed(x))[1],
}


def packed(x: Any) -> Any:
    return torch.nn.utils.rnn.pack_padded_sequence(x[None], torch.tensor([3]), batch_first=True)


@pytest.mark.parametrize("make", HOST.values(), ids=HOST)
def test_what_goes_to_the_host_is_there(make: Callable[[Any], Any]) -> None:
    made = make(on_device())
    assert made.device == torch.device("cpu")
    assert not made.is_cuda
    assert made.numpy() is not None


WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "add": (lambda x, h: x + h, "cuda:0 and cpu!"),
    "add the other way": (lambda x, h: h + x, "cuda:0 and cpu!"),
    "in place": (lambda x, h: h.add_(x), "at least two devices|same device"),
    "into a number": (lambda x, h: torch.tensor(0.0).add_(x.sum()), "same device"),
    "stacked numbers": (lambda x, h: torch.stack([h.sum(), x.sum()]), "same device"),
    "lengths": (
        lambda x, h: torch.nn.utils.rnn.pack_padded_sequence(x[None], torch.tensor([3]).cuda(), batch_first=True),
        "'lengths' argument should be a 1D CPU int64 tensor, but got 1D cuda:0 Long tensor",
    ),
    "matmul": (lambda x, h: x @ h, "wrapper_CUDA_mm"),
    "linear": (lambda x, h: torch.nn.Linear(3, 3).cuda()(h), "mat1 .*wrapper_CUDA_addmm"),
    "forgotten module": (lambda x, h: torch.nn.Linear(3, 3)(x), "wrapper_CUDA_addmm"),
    "embedding": (lambda x, h: torch.nn.Embedding(3, 3).cuda()(torch.tensor([1])), "wrapper_CUDA__index_select"),
    "conv": (
        lambda x, h: torch.nn.Conv2d(1, 1, 1).cuda()(torch.ones(1, 1, 2, 2)),
        r"Input type \(torch.FloatTensor\) and weight type \(torch.cuda.FloatTensor\) should be the same",
    ),
    "cat": (lambda x, h: torch.cat([x, h]), "same device"),
    "lstm": (lambda x, h: torch.nn.LSTM(3, 2).cuda()(h[None]), "same device"),
    "lstm over packed": (lambda x, h: torch.nn.LSTM(3, 2, batch_first=True).cuda()(packed(h)), "same device"),
    "loss": (lambda x, h: torch.nn.functional.cross_entropy(x, torch.tensor([0, 1, 2])), "same device"),
    "where": (lambda x, h: torch.where(x > 0, x, h), "same device"),
    "out": (lambda x, h: torch.add(x, x, out=h), "same device"),
    "index": (lambda x, h: h[torch.tensor([0], device="cuda")], r"on the same device as the indexed tensor \(cpu\)"),
    "other device": (lambda x, h: x + on_device(1), "cuda:1 and cuda:0!"),
    "generator": (
        lambda x, h: torch.randn(2, device="cuda", generator=torch.Generator()),
        "Expected a 'cuda' device type for generator but found 'cpu'",
    ),
    "no such device": (lambda x, h: x.to("cuda:2"), "invalid device ordinal"),
    "pinned": (lambda x, h: x.pin_memory(), "only dense CPU tensors can be pinned"),
    "grad": (
        lambda x, h: setattr(x, "grad", h),
        "a gradient with device type 'cpu' to a tensor with device type 'cuda'",
    ),
    "grad of another device": (
        lambda x, h: setattr(x, "grad", h.to("cuda:1")),
        "assigned grad has data located on a different device",
    ),
    "values at indices": (lambda x, h: x.__setitem__([0, 1], h[:2]), "found at least two devices, cuda:0 and cpu"),
    "backward of a gradient": (
        lambda x, h: (x.requires_grad_() * 2).backward(h),
        "invalid gradient at index 0 - expected device cuda:0 but got cpu",
    ),
    "buckets": (
        lambda x, h: torch.bucketize(x, h[0]),
        "boundaries tensor device type cpu and input value tensor .* cuda:0",
    ),
}


@pytest.mark.parametrize(("do", "words"), WRONG.values(), ids=WRONG)
def test_mixing_devices_is_an_error(do: Callable[[Any, Any], Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        do(on_device(), torch.ones(3, 3))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # torch takes no copy=
@pytest.mark.parametrize("do", [lambda x: x.numpy(), np.asarray, np.array, lambda x: np.add(x, 1)])
def test_numpy_wants_the_host(do: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"):
        do(on_device())


def test_a_copy_between_places_is_a_copy() -> None:
    host = torch.ones(2)
    device = host.cuda()
    back = device.cpu()
    device.add_(1)
    assert (host.tolist(), device.tolist(), back.tolist()) == ([1, 1], [2, 2], [1, 1])
    assert device.cuda() is device
    assert device.cuda(1).data_ptr() != device.data_ptr()


def test_it_is_shown_as_on_cuda() -> None:
    assert repr(on_device()[0]) == "tensor([1., 1., 1.], device='cuda:0')"
    assert repr(on_device(1)[0].double()) == "tensor([1., 1., 1.], device='cuda:1', dtype=torch.float64)"
    assert "device='cuda:0', grad_fn=<MulBackward0>" in repr(with_grad(on_device()) * 2)
    assert repr(torch.nn.Parameter(on_device()[0])).endswith("device='cuda:0', requires_grad=True)")
    assert f"{on_device().sum():.1f}" == "9.0"
    assert on_device().type() == "torch.cuda.FloatTensor"
    assert repr(torch.zeros(1)) == "tensor([0.])"


def test_training_step() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).cuda()
    for options in ({}, {"fused": True}, {"foreach": True}):
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        loss = torch.nn.functional.cross_entropy(model(on_device()), torch.tensor([0, 1, 1]).cuda())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.is_cuda for p in model.parameters())
        optimizer.step()
        assert optimizer.state[model[0].weight]["exp_avg"].is_cuda
    assert all(value.is_cuda for value in model.state_dict().values())


def test_gradients_in_hooks_and_functions() -> None:
    seen = []

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            seen.extend([grad.is_cuda, ctx.saved_tensors[0].is_cuda])
            return grad + torch.zeros_like(grad, device="cuda")

    x = on_device().requires_grad_()
    x.register_hook(lambda grad: seen.append(grad.device))
    Twice.apply(x).sum().backward()
    assert seen == [True, True, torch.device("cuda:0")]
    assert x.grad.is_cuda
    assert torch.autograd.grad(Twice.apply(x).sum(), x)[0].is_cuda


def test_gradients_that_are_asked_for() -> None:
    """They are told by keyword in most programs, lie where their inputs lie, and inputs may come one by one."""
    model, host = torch.nn.Linear(3, 1).cuda(), torch.ones(2, 3, requires_grad=True)
    score = model(host.cuda()).sum()
    (gradient,) = torch.autograd.grad(outputs=score, inputs=host, create_graph=True, retain_graph=True)
    assert gradient.device.type == "cpu"
    found = torch.autograd.grad(score, model.parameters())
    assert [each.device for each in found] == [torch.device("cuda:0")] * 2
    torch.autograd.backward(tensors=[model(on_device()).sum()])
    assert model.weight.grad.is_cuda


def test_the_host_can_be_trained_on_as_well() -> None:
    parameter = with_grad(torch.ones(2))
    assert parameter.grad.device.type == "cpu"


def test_memory_is_counted(gpus: Redirect) -> None:
    memory = gpus.target.memory[0]  # type: ignore[attr-defined]
    before = memory.allocated
    big = torch.zeros(1 << 20, device="cuda")
    view = big.view(2, -1)
    assert memory.allocated == before + (4 << 20)
    del big
    assert memory.allocated == before + (4 << 20)
    del view
    assert memory.allocated == before
    assert memory.peak >= before + (4 << 20)


@pytest.mark.parametrize(
    "take",
    [
        lambda: torch.empty(1 << 30, device="cuda"),
        lambda: torch.zeros(1 << 50, device="cuda"),
        lambda: [torch.ones(1 << 26, device="cuda") for _ in range(5)],
        lambda: torch.empty(300 << 20).cuda(),
    ],
)
def test_memory_runs_out(take: Callable[[], Any]) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as raised:
        take()
    assert is_out_of_memory(raised.value)
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_default_device() -> None:
    with torch.device("cuda:1"):
        assert torch.zeros(2).device == torch.device("cuda:1")
        assert torch.nn.Linear(2, 2).weight.device == torch.device("cuda:1")
        assert torch.zeros(2, device="cpu").device.type == "cpu"
    torch.set_default_device("cuda")
    try:
        assert torch.zeros(2).device == torch.get_default_device() == torch.device("cuda:0")
    finally:
        torch.set_default_device(None)
    assert torch.zeros(2).device.type == "cpu"


@pytest.mark.filterwarnings("ignore:torch.set_default_tensor_type:UserWarning")
def test_default_tensor_type() -> None:
    """It is what torch.Tensor makes, beside what the default device is for."""
    torch.set_default_tensor_type("torch.cuda.HalfTensor")
    try:
        made = torch.Tensor([1e3]), torch.Tensor(2, 3), torch.ones(2), torch.nn.Parameter(torch.Tensor(2))
        assert {(each.device, each.dtype) for each in made} == {(torch.device("cuda:0"), torch.float16)}
        assert torch.Tensor(made[1]).data_ptr() == made[1].data_ptr()
        assert torch.FloatTensor([1.0]).device.type == "cpu"
    finally:
        torch.set_default_tensor_type("torch.FloatTensor")
    assert torch.Tensor([1.0]).device.type == "cpu"
    assert torch.ones(1).dtype == torch.float32


def test_threads() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(torch.zeros(1, device="cuda:1").device.index))
    thread.start()
    thread.join()
    assert found == [1]


def test_pinned_memory() -> None:
    assert torch.zeros(2, pin_memory=True).is_pinned()
    assert torch.zeros(2).pin_memory().is_pinned()
    assert not torch.zeros(2).is_pinned()


def test_nothing_of_it_is_pickled() -> None:
    pickled = pickle.dumps({"w": on_device(), "p": torch.nn.Parameter(on_device())})
    assert b"devicekit" not in pickled
    assert b"cuda" not in pickled


def test_any_torch_reads_what_was_saved(tmp_path: Path) -> None:
    """Without CUDA, without devicekit, and without being told where to."""
    torch.save({"w": on_device(), "m": torch.nn.Linear(2, 2).cuda().state_dict()}, tmp_path / "w.pt")
    code = f"import torch; print(torch.load({str(tmp_path / 'w.pt')!r})['w'].device)"
    env = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "cpu", done.stderr


def test_what_is_read_back_goes_with_any_device() -> None:
    """The file does not say where it was, so nothing is refused that a card would compute."""
    found = read_back(on_device())
    assert (found + torch.ones(3, 3)).device.type == "cpu"
    assert (found + on_device(1)).device == torch.device("cuda:1")
    with pytest.raises(RuntimeError, match="same device"):
        read_back(on_device(), map_location="cpu") + on_device()


def test_afterwards_all_is_as_it_was() -> None:
    before = torch.overrides._get_current_function_mode_stack()
    with simulated_cuda():
        inside = torch.ones(2, device="cuda")
        assert torch.overrides._get_current_function_mode_stack() != before
    assert torch.overrides._get_current_function_mode_stack() == before
    assert inside.cpu().numpy().tolist() == [1, 1]


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"memory": "much"}, {"memory": 0}, {"memory": "-1GiB"}, {"memory": True}]
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeviceKitError, match=r"is no (size|number)"):
        simulated_cuda(**wrong)
