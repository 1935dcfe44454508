"""Functions that make tensors: on the device that they name, on the default one, or where what they are given is."""

from __future__ import annotations

import re
from typing import Any

import torch

from devicekit.redirect.marks import WILD
from devicekit.redirect.masquerade.mode import Base, Masquerade, asked_by_torch
from devicekit.redirect.translating.factories import ALIASING, MORE, NEW

__all__ = ["install"]

FROM_DATA = ("tensor", *ALIASING)
"""Their size is that of the data, which there is already."""
SMALL = 1 << 24
"""Bytes from which it is asked beforehand whether the device has them, before the host is."""


def install(mode: Masquerade) -> None:
    """Handle every one of them."""
    factories = Factories(mode)
    constructors = mode.redirect.module("torch.utils._device")._device_constructors()
    for func in constructors:
        name = getattr(func, "__name__", "")
        mode.handle(func, factories.from_data if name in FROM_DATA else factories.made)
    functions = torch._C._VariableFunctions
    for name in MORE:
        mode.handle(getattr(functions, name, None), factories.made)
    for name in NEW:
        mode.handle(getattr(Base, name), factories.made)
    mode.handle(Base.pin_memory, factories.pinned)
    mode.handle(Base.is_pinned, factories.is_pinned)


class Factories:
    """Handlers."""

    def __init__(self, mode: Masquerade) -> None:
        self.mode = mode
        self.redirect = mode.redirect

    def made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor of a size that is given."""
        place = self._place(args, kwargs)
        if place is NOWHERE:
            return self._pinned_if_asked(func, args, kwargs)
        if place is None or place is WILD:
            self.mode.check_generator(kwargs, None)
            out = self._pinned_if_asked(func, args, kwargs)
            return out if place is None else self.mode.places.settle(out, WILD)
        if kwargs.get("pin_memory"):
            raise RuntimeError("Cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        self.mode.check_generator(kwargs, place)
        self._require(func, args, kwargs, place)
        try:
            out = func(*args, **kwargs)
        except RuntimeError as exc:
            raise self._told_by_device(exc, place) from exc
        return self.mode.places.settle(out, place)

    def from_data(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor with the numbers of something else; on a device always in memory of its own."""
        data = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, torch.Tensor):
            return self._from_tensor(func, data, args, kwargs)
        place = self._place((), kwargs)
        if place is NOWHERE or place is None or place is WILD:
            out = self._pinned_if_asked(func, args, kwargs)
            return self.mode.places.settle(out, WILD) if place is WILD else out
        return self.mode.places.settle(func(*args, **kwargs).clone(), place)

    def _from_tensor(self, func: Any, data: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self.mode.places.of(data)
        place = self._place((data,), kwargs)
        place = before if place is NOWHERE else place
        out = func(*args, **kwargs)
        if place != before and out.untyped_storage()._cdata == data.untyped_storage()._cdata:
            out = out.clone()
        return out if place is None else self.mode.places.settle(out, place)

    def _place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A device's number, None for the host, WILD for torch's own; NOWHERE: another device, such as meta.

        What names CUDA in ``kwargs`` is replaced by the real device.
        """
        device = kwargs.get("device")
        if device is None:
            like = args[0] if args and isinstance(args[0], torch.Tensor) else None
            return self._default(kwargs) if like is None else self.mode.places.of(like)
        index = self.redirect.index(device)
        if index is not None:
            kwargs["device"] = self.redirect.target.real(index)
            self.redirect.note("device=")
            return index
        known = self.redirect.default_index(device)
        if known is not None:
            return known
        if torch.device(device).type != self.redirect.target.device_type:
            return NOWHERE
        return WILD if not isinstance(device, str) and asked_by_torch(5) else None

    def _default(self, kwargs: dict[str, Any]) -> Any:
        device = self.redirect.module("torch.utils._device").CURRENT_DEVICE
        if device is None:
            return None
        index = self.redirect.default_index(device)
        if index is None:
            return None if device.type == "cpu" else NOWHERE
        kwargs["device"] = self.redirect.target.real(index)
        return index

    def _require(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> None:
        """Ask the device before the host: a tensor that fits on neither must be the device's error."""
        try:
            with_meta = {k: v for k, v in kwargs.items() if k not in ("generator", "out")} | {"device": "meta"}
            size = func(*args, **with_meta).nbytes if "out" not in kwargs else 0
        except (RuntimeError, TypeError, NotImplementedError):
            return  # it is no such function, or its arguments are wrong, which it says itself
        if size >= SMALL:
            self.mode.places.require(place, size)

    def _told_by_device(self, exc: RuntimeError, place: int) -> Exception:
        """The host's own lack of memory, in CUDA's words."""
        asked = re.search(r"allocate (\d+) bytes", str(exc))
        if asked is None or not self.mode.places.memory:
            return exc
        return self.mode.places.memory[place].out_of_memory(int(asked[1]))

    def _pinned_if_asked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not kwargs.get("pin_memory"):
            return func(*args, **kwargs)
        kwargs["pin_memory"] = False
        return pin(func(*args, **kwargs))

    # -- pinned memory ---------------------------------------------------------------------------
    def pinned(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A copy that says it is pinned; only the host's tensors can be."""
        if self.mode.places.index(args[0]) is not None:
            raise RuntimeError(f"cannot pin '{cuda_type(args[0])}' only dense CPU tensors can be pinned")
        return args[0] if is_pinned(args[0]) else pin(args[0].clone())

    def is_pinned(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it was pinned by the program."""
        return is_pinned(args[0])


NOWHERE = "nowhere"
_PINNED = "_devicekit_pinned"


def cuda_type(tensor: torch.Tensor) -> str:
    """What ``Tensor.type()`` calls it on CUDA."""
    return tensor.type().replace("torch.", "torch.cuda.", 1)


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Say of the tensor's memory that it is pinned."""
    setattr(tensor.untyped_storage(), _PINNED, True)
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether that was said."""
    try:
        return _PINNED in tensor.untyped_storage().__dict__
    except (NotImplementedError, RuntimeError):
        return False
