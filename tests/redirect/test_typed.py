"""Tensor types of torch.cuda under a redirect."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")

DTYPES = {
    "FloatTensor": "float32", "DoubleTensor": "float64", "HalfTensor": "float16", "BFloat16Tensor": "bfloat16",
    "LongTensor": "int64", "IntTensor": "int32", "ShortTensor": "int16", "CharTensor": "int8", "ByteTensor": "uint8",
    "BoolTensor": "bool",
}  # fmt: skip


@pytest.fixture
def default() -> Iterator[None]:
    """A default tensor type may be set: the default dtype is what it was afterwards."""
    before = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.set_default_tensor_type", UserWarning)
        yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_each_makes_tensors_of_its_dtype(name: str, dtype: str) -> None:
    kind = getattr(torch.cuda, name)
    made = kind([1, 0])
    assert made.dtype is getattr(torch, dtype) is kind.dtype
    assert made.tolist() == [1, 0]
    assert kind(2, 3).shape == (2, 3)
    assert kind().shape == (0,)
    assert isinstance(made, kind)
    assert repr(kind) == f"<class 'torch.cuda.{name}'>"
    assert kind.is_cuda


def test_asking_is_about_dtype_and_place() -> None:
    on_device = torch.ones(2, device="cuda")
    assert isinstance(on_device, torch.cuda.FloatTensor)
    assert not isinstance(on_device, torch.cuda.HalfTensor)
    assert not isinstance(on_device.cpu(), torch.cuda.FloatTensor)
    assert not isinstance("a", torch.cuda.FloatTensor)
    assert isinstance(on_device, (torch.cuda.FloatTensor, torch.cuda.HalfTensor))


def test_of_a_tensor_it_is_the_same_memory() -> None:
    on_device = torch.ones(2, device="cuda")
    assert torch.cuda.FloatTensor(on_device).data_ptr() == on_device.data_ptr()
    with pytest.raises(TypeError, match=r"expected torch.cuda.HalfTensor \(got torch.FloatTensor\)"):
        torch.cuda.HalfTensor(on_device)


@pytest.mark.parametrize("by_name", [True, False])
def test_conversion(by_name: bool) -> None:
    kind = "torch.cuda.HalfTensor" if by_name else torch.cuda.HalfTensor
    assert torch.ones(2).type(kind).dtype is torch.float16
    assert torch.nn.Linear(2, 2).type(kind).weight.dtype is torch.float16


@pytest.mark.usefixtures("default")
def test_the_default_is_a_dtype_and_a_device() -> None:
    for kind in ("torch.cuda.HalfTensor", torch.cuda.HalfTensor):
        torch.set_default_tensor_type(kind)
        assert torch.zeros(2).dtype is torch.float16
        assert torch.zeros(2).device.type == "cpu"
        torch.set_default_tensor_type(torch.FloatTensor)
        assert torch.zeros(2).dtype is torch.float32
    torch.set_default_tensor_type("torch.DoubleTensor")
    assert torch.get_default_dtype() is torch.float64
