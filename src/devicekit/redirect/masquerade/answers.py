"""What a tensor says of itself: the program is told "cuda:0", torch's own code where the tensor really lies."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

from devicekit.redirect.marks import NAME, WILD
from devicekit.redirect.masquerade.mode import Base, Masquerade, asked_by_torch, getter, setter

__all__ = ["install"]

DLPACK_CUDA = 2
"""kDLCUDA of dlpack.h."""
_SUFFIXES = re.compile(r"((?:,\s+(?:size|dtype|requires_grad|grad_fn|nnz|layout|names)=(?:[^()]|\([^()]*\))*)*\))$")


def install(mode: Masquerade) -> None:
    """Handle the questions."""
    answers = Answers(mode)
    for name in ("device", "is_cuda", "is_cpu"):
        mode.handle(getter(name), getattr(answers, name))
    mode.handle(Base.get_device, answers.get_device)
    mode.handle(getattr(torch._C._VariableFunctions, "get_device", None), answers.get_device)
    mode.handle(Base.numpy, answers.numpy)
    mode.handle(torch.Tensor.__array__, answers.array)
    mode.handle(torch.Tensor.__repr__, answers.repr)
    mode.handle(torch.Tensor.__format__, answers.format)
    mode.handle(torch.Tensor.__dlpack_device__, answers.dlpack_device)
    mode.handle(setter("grad"), answers.set_grad)
    storage: Any = torch.UntypedStorage
    real: Any = inspect.getattr_static(storage, "device")
    layer, places = mode.layer, answers.of_storage

    def device(self: Any) -> Any:
        index = places(self) if layer.on and not asked_by_torch(2) else None
        return real.__get__(self) if index is None else answers.devices(index)

    def is_cuda(self: Any) -> bool:
        return layer.on and places(self) is not None and not asked_by_torch(2)

    layer.replace(storage, "device", property(device))
    layer.replace(storage, "is_cuda", property(is_cuda))


class Answers:
    """Handlers."""

    def __init__(self, mode: Masquerade) -> None:
        self.mode = mode
        self.places = mode.places
        self._devices: dict[int, Any] = {}

    def devices(self, index: int) -> Any:
        """``torch.device("cuda", index)``, made once."""
        if index not in self._devices:
            self._devices[index] = torch.device("cuda", index)
        return self._devices[index]

    def told(self, tensor: torch.Tensor) -> int | None:
        """The device's number, if it is the program that asks and the tensor is on one.

        What autograd has made just now has no mark yet; it is where the backward pass started.
        """
        place = self.places.of(tensor)
        if place is None:
            place = self.mode.thread.backward
        return place if isinstance(place, int) and not asked_by_torch(4) else None

    def device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The device."""
        index = self.told(args[0])
        return func(*args) if index is None else self.devices(index)

    def is_cuda(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it is on one."""
        return self.told(args[0]) is not None or bool(func(*args))

    def is_cpu(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """The other half."""
        return self.told(args[0]) is None and bool(func(*args))

    def get_device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Its number; -1 on the host, as torch has it."""
        index = self.told(args[0])
        return int(func(*args, **kwargs)) if index is None else index

    def numpy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """NumPy works with the host's memory only (torch/csrc/utils/tensor_numpy.cpp)."""
        index = self.told(args[0])
        if index is not None and not kwargs.get("force"):
            raise _no_numpy(index)
        return func(*args, **kwargs)

    def array(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``np.asarray(tensor)`` calls."""
        index = self.told(args[0])
        if index is not None:
            raise _no_numpy(index)
        return func(*args, **kwargs)

    def repr(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """With the device, where torch writes it: before all other suffixes."""
        text = str(func(*args, **kwargs))
        index = self.places.index(args[0])
        if index is None:
            return text
        return _SUFFIXES.sub(lambda found: f", device='cuda:{index}'{found[1]}", text, count=1)

    def format(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """A number is formatted as a number; anything else as its repr."""
        if args[0].dim() == 0 or self.places.index(args[0]) is None:
            return str(func(*args, **kwargs))
        return object.__format__(self.repr(torch.Tensor.__repr__, args[:1], {}), "")

    def dlpack_device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """DLPack's number of CUDA, and the device's."""
        index = self.told(args[0])
        return func(*args, **kwargs) if index is None else (DLPACK_CUDA, index)

    def set_grad(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A gradient lies where its tensor is."""
        tensor, grad = args
        if isinstance(grad, torch.Tensor) and self.mode.thread.backward is None:
            places = self.places.of(tensor), self.places.of(grad)
            if places[0] != places[1] and WILD not in places:
                raise RuntimeError(_wrong_gradient(*places))
        return func(*args)

    @staticmethod
    def of_storage(storage: Any) -> int | None:
        """A storage's own mark."""
        place = storage.__dict__.get(NAME)
        return place if isinstance(place, int) else None


def _wrong_gradient(tensor: int | None, grad: int | None) -> str:
    """In torch's words (torch/csrc/autograd/python_variable.cpp)."""
    if None not in (tensor, grad):
        return "assigned grad has data located on a different device"
    own, other = ("cpu" if place is None else "cuda" for place in (tensor, grad))
    return (
        f"attempting to assign a gradient with device type '{other}' to a tensor with device type '{own}'. "
        "Please ensure that the gradient and the tensor are on the same device"
    )


def _no_numpy(index: int) -> TypeError:
    return TypeError(
        f"can't convert cuda:{index} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
        "first."
    )
