"""Mixed precision under a redirect: autocast, the gradient scaler, and torch's helpers for custom functions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.usefixtures("redirect"),
    pytest.mark.filterwarnings("ignore:.torch.cuda.amp:FutureWarning"),  # the older spellings, which torch deprecates
    pytest.mark.filterwarnings("ignore:torch.(g|s)et_autocast_gpu_dtype:DeprecationWarning"),
]
F = torch.nn.functional


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    yield
    assert (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")) == before


def computed() -> Any:
    return F.linear(torch.ones(2, 2, device="cuda"), torch.ones(2, 2, device="cuda")).dtype


SPELLINGS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Any]] = {
    "autocast('cuda')": (lambda: torch.autocast("cuda"), torch.float16),
    "autocast(device_type=)": (lambda: torch.autocast(device_type="cuda", enabled=True), torch.float16),
    "autocast(device.type)": (lambda: torch.autocast(torch.device("cuda").type), torch.float16),
    "autocast('cuda', bfloat16)": (lambda: torch.autocast("cuda", torch.bfloat16), torch.bfloat16),
    "autocast(dtype=)": (lambda: torch.autocast("cuda", dtype=torch.bfloat16), torch.bfloat16),
    "autocast(enabled=False)": (lambda: torch.autocast("cuda", enabled=False), torch.float32),
    "autocast(float32)": (lambda: torch.autocast("cuda", dtype=torch.float32), torch.float32),
    "autocast('cuda:0')": (lambda: torch.autocast("cuda:0"), torch.float16),
    "amp.autocast": (lambda: torch.amp.autocast("cuda"), torch.float16),
    "cuda.amp.autocast()": (lambda: torch.cuda.amp.autocast(), torch.float16),
    "cuda.amp.autocast(False)": (lambda: torch.cuda.amp.autocast(False), torch.float32),
    "cuda.amp.autocast(dtype=)": (lambda: torch.cuda.amp.autocast(dtype=torch.bfloat16), torch.bfloat16),
    "autocast('cpu')": (lambda: torch.autocast("cpu"), torch.bfloat16),
}


@pytest.mark.parametrize(("made", "dtype"), SPELLINGS.values(), ids=SPELLINGS)
def test_each_spelling_computes_in_what_it_says(made: Callable[[], Any], dtype: Any) -> None:
    """float16 by default, as on CUDA, and not bfloat16, as the processor's default is."""
    with made():
        assert computed() is dtype
        assert torch.is_autocast_enabled() is (dtype is not torch.float32)
    assert computed() is torch.float32


def test_as_a_decorator() -> None:
    @torch.autocast("cuda", dtype=torch.bfloat16)
    def one() -> Any:
        return computed()

    @torch.cuda.amp.autocast()
    def other() -> Any:
        return computed()

    assert (one(), other()) == (torch.bfloat16, torch.float16)


def test_inside_one_another() -> None:
    with torch.autocast("cuda", torch.bfloat16):
        with torch.autocast("cuda", enabled=False):
            assert computed() is torch.float32
        with torch.autocast("cuda"):  # as on CUDA, it goes on with what is around it
            assert computed() is torch.bfloat16


def test_another_dtype_in_place_of_float16() -> None:
    target = DecidedTarget(resolver().decide("cpu"))
    with Redirect(target, autocast_dtype=torch.bfloat16):
        with torch.autocast("cuda"):
            assert computed() is torch.bfloat16
        with torch.cuda.amp.autocast():
            assert computed() is torch.bfloat16
        with torch.autocast("cuda", dtype=torch.float32):
            assert computed() is torch.float32


def test_what_the_target_cannot_is_torchs_warning() -> None:
    with pytest.warns(UserWarning, match="CPU [Aa]utocast only supports|target dtype is not supported"):
        torch.autocast("cuda", dtype=torch.float64)


def test_what_is_no_type_is_torchs_error() -> None:
    with pytest.raises(ValueError, match="Expected `device_type` of type `str`"):
        torch.autocast(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="cuad"):
        torch.autocast("cuad")


def test_questions() -> None:
    assert torch.amp.is_autocast_available("cuda") is True
    assert torch.amp.is_autocast_available("cuda:0") is True
    assert torch.is_autocast_enabled() is torch.is_autocast_enabled("cuda") is False
    assert torch.get_autocast_dtype("cuda") is torch.get_autocast_gpu_dtype() is torch.float16
    assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled() is torch.is_autocast_enabled("cuda") is True
        assert torch.get_autocast_dtype("cuda") is torch.get_autocast_gpu_dtype() is torch.bfloat16


def test_what_is_set_by_hand() -> None:
    """As checkpointing code does: state is read, set, and set back."""
    cpu = torch.get_autocast_dtype("cpu")
    try:
        torch.set_autocast_gpu_dtype(torch.bfloat16)
        assert torch.get_autocast_gpu_dtype() is torch.bfloat16
        torch.set_autocast_enabled(True)
        assert computed() is torch.bfloat16
        torch.set_autocast_dtype("cuda", torch.float16)
        assert computed() is torch.float16
        torch.set_autocast_enabled("cuda", False)
        assert computed() is torch.float32
        torch.set_autocast_enabled(enabled=True)
        assert torch.is_autocast_enabled(device_type="cuda")
        torch.set_autocast_enabled(device_type="cuda", enabled=False)
        assert not torch.is_autocast_enabled()
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_dtype("cuda", torch.float16)
        torch.set_autocast_dtype("cpu", cpu)


# -- the gradient scaler ---------------------------------------------------------------------------
SCALERS = {
    "torch.cuda.amp": lambda **k: torch.cuda.amp.GradScaler(**k),
    "torch.amp": lambda **k: torch.amp.GradScaler("cuda", **k),
    "torch": lambda **k: torch.GradScaler(**k),
}


@pytest.mark.parametrize("make", SCALERS.values(), ids=SCALERS)
def test_a_scaler_scales(make: Callable[..., Any]) -> None:
    """A full step on the processor: scaled loss, unscaled gradients, a step, and the state to go on from."""
    model = torch.nn.Linear(3, 1).cuda()
    before = copy.deepcopy(model.weight)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), make(init_scale=256.0)
    loss = model(torch.ones(2, 3, device="cuda")).square().mean()
    scaled = scaler.scale(loss)
    assert torch.equal(scaled, loss * 256)
    scaled.backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.is_enabled()
    assert scaler.get_scale() == 256
    assert not torch.equal(model.weight, before)
    other = make()
    other.load_state_dict(scaler.state_dict())
    assert other.get_scale() == 256


def test_a_step_with_infinite_gradients_is_left_out() -> None:
    weight = torch.ones(1, device="cuda", requires_grad=True)
    optimizer, scaler = torch.optim.SGD([weight], 0.1), torch.amp.GradScaler("cuda", init_scale=4.0)
    scaler.scale(weight * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1]
    assert scaler.get_scale() == 2


def test_a_scaler_that_is_off_does_nothing() -> None:
    scaler = torch.cuda.amp.GradScaler(enabled=False)
    assert not scaler.is_enabled()
    assert scaler.scale(torch.ones(1)).item() == 1
    assert isinstance(scaler, torch.amp.GradScaler)


# -- custom functions ------------------------------------------------------------------------------
def decorated(cast_inputs: Any, older: bool) -> Any:
    if older:
        fwd = torch.cuda.amp.custom_fwd(cast_inputs=cast_inputs)
        bwd = torch.cuda.amp.custom_bwd
    else:
        fwd = torch.amp.custom_fwd(device_type="cuda", cast_inputs=cast_inputs)
        bwd = torch.amp.custom_bwd(device_type="cuda")

    class Twice(torch.autograd.Function):
        seen: list[Any] = []  # noqa: RUF012

        @staticmethod
        @fwd
        def forward(ctx: Any, x: Any, w: Any) -> Any:
            ctx.save_for_backward(x, w)
            Twice.seen.append((x.dtype, torch.is_autocast_enabled()))
            return x @ w

        @staticmethod
        @bwd
        def backward(ctx: Any, grad: Any) -> Any:
            x, w = ctx.saved_tensors
            Twice.seen.append((grad.dtype, torch.is_autocast_enabled()))
            return grad @ w.t(), x.t() @ grad

    return Twice


@pytest.mark.parametrize("older", [True, False])
def test_custom_functions_go_with_autocast(older: bool) -> None:
    kind = decorated(None, older)
    x, w = (torch.ones(2, 2, device="cuda", requires_grad=True) for _ in range(2))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = kind.apply(x, w)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert kind.seen == [(torch.float32, True), (torch.bfloat16, True)]
    assert x.grad.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("older", [True, False])
def test_custom_functions_cast_what_they_are_given(older: bool) -> None:
    """Tensors of the device are cast, and the function runs without autocast."""
    kind = decorated(torch.float16, older)
    x, w = (torch.ones(2, 2, device="cuda", requires_grad=True) for _ in range(2))
    with torch.autocast("cuda"):
        y = kind.apply(x, w)
    assert y.dtype is torch.float16
    assert kind.seen == [(torch.float16, False)]


def test_checkpoints_are_computed_again_as_before() -> None:
    from torch.utils.checkpoint import checkpoint

    seen: list[Any] = []

    def block(x: Any) -> Any:
        seen.append(F.linear(x, x).dtype)
        return F.linear(x, x).float()

    for reentrant in (True, False):
        x = torch.ones(2, 2, device="cuda", requires_grad=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = checkpoint(block, x, use_reentrant=reentrant)
        y.sum().backward()
    assert seen == [torch.bfloat16] * 4


def test_afterwards_it_is_torchs_own() -> None:
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        enabled = torch.is_autocast_enabled
    with torch.autocast("cpu"):
        assert torch.is_autocast_enabled("cpu")
        assert enabled("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.autocast("cuda")
