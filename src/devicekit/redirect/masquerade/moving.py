"""A tensor's ways between places: between two of them it is always copied."""

from __future__ import annotations

from typing import Any

import torch

from devicekit.redirect.marks import WILD
from devicekit.redirect.masquerade.factories import cuda_type
from devicekit.redirect.masquerade.mode import Base, Masquerade, asked_by_torch, plain
from devicekit.redirect.masquerade.places import size
from devicekit.redirect.naming import BEHIND_DEVICE, cuda_type_name, given, is_device

__all__ = ["install"]


def install(mode: Masquerade) -> None:
    """Handle ``cuda``, ``cpu``, ``to``, ``type`` and ``type_as``."""
    ways = Ways(mode)
    mode.handle(Base.cuda, ways.cuda)
    mode.handle(Base.cpu, ways.cpu)
    mode.handle(Base.to, ways.to)
    mode.handle(Base.type, ways.type)
    mode.handle(Base.type_as, ways.type_as)
    mode.handle(Base.copy_, plain)  # what is written to stays where it is


class Ways:
    """Handlers."""

    def __init__(self, mode: Masquerade) -> None:
        self.mode = mode
        self.places = mode.places
        self.redirect = mode.redirect

    def cuda(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """To a device, by default the current one."""
        named = given(("device", "non_blocking", "memory_format"), args[1:], kwargs)
        device = named.get("device")
        index = self.redirect.index("cuda" if device is None else device)
        if index is None:
            raise RuntimeError("Invalid device, must be cuda device")
        self.redirect.note("Tensor.cuda")
        return self.moved(args[0], index, memory_format=named.get("memory_format"))

    def cpu(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """To the host."""
        return self.moved(args[0], None, memory_format=(args[1] if len(args) > 1 else kwargs.get("memory_format")))

    def to(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """All its spellings."""
        tensor, rest = args[0], args[1:]
        other = rest[0] if rest else kwargs.get("other")
        if isinstance(other, torch.Tensor):
            place = self.places.of(other)
            options = given(BEHIND_DEVICE[1:], rest[1:], {k: v for k, v in kwargs.items() if k != "other"})
            return self.moved(tensor, None if place is WILD else place, dtype=other.dtype, **options)
        device = kwargs.get("device")
        if rest and is_device(torch, rest[0]):
            device, rest = rest[0], rest[1:]
        elif rest and rest[0] is None and device is None:
            rest = rest[1:]
        elif device is None:
            return self.mode.compute(func, args, kwargs)
        options = given(BEHIND_DEVICE, rest, {k: v for k, v in kwargs.items() if k != "device"})
        if device is None:
            return self.moved(tensor, self.places.of(tensor), **options)
        index = self.redirect.index(device)
        if index is not None:
            self.redirect.note("Tensor.to")
            return self.moved(tensor, index, **options)
        if torch.device(device).type != self.redirect.target.device_type:
            return func(tensor, device, **options)
        if not isinstance(device, str) and asked_by_torch():
            return self._where_torch_works(tensor, options)
        return self.moved(tensor, None, **options)

    def _where_torch_works(self, tensor: torch.Tensor, options: dict[str, Any]) -> Any:
        """Sent by torch's own code to where another tensor really lies, which may be any of the devices."""
        place = self.places.of(tensor)
        if place is None:
            return self.places.settle(Base.to(tensor, **{**options, "copy": True}), WILD)
        return self.moved(tensor, place, **options)

    def type(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What it is, or another one of a type, which may be one of CUDA's."""
        tensor = args[0]
        dtype = args[1] if len(args) > 1 else kwargs.get("dtype")
        place = self.places.index(tensor)
        if dtype is None:
            return func(tensor) if place is None or asked_by_torch() else cuda_type(tensor)
        name = cuda_type_name(dtype)
        if name is not None:
            index = self.redirect.index("cuda") if place is None else place
            return self.moved(tensor, index, dtype=getattr(torch, name).dtype)
        if isinstance(dtype, torch.dtype):
            return self.moved(tensor, place, dtype=dtype)
        out = func(*args, **kwargs)  # a type of the host, as "torch.FloatTensor"
        return self.moved(tensor, None, dtype=out.dtype)

    def type_as(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The other's dtype, where the other is."""
        tensor, other = args[0], args[1] if len(args) > 1 else kwargs["other"]
        return self.moved(tensor, self.places.index(other), dtype=other.dtype)

    def moved(self, tensor: torch.Tensor, place: Any, **options: Any) -> torch.Tensor:
        """The tensor at a place: a device's number, or None for the host. ``options`` are those of ``Tensor.to``."""
        options = {name: value for name, value in options.items() if value is not None}
        options.pop("non_blocking", None)  # the host's own copies are done when they return
        if self.places.of(tensor) != place:
            options["copy"] = True
            if isinstance(place, int):
                self.redirect.target.real(place)
                self.places.require(place, size(tensor))
        device = {} if tensor.device.type == self.redirect.target.device_type else {"device": self.redirect.device}
        out = Base.to(tensor, **{**device, **options}) if device or options else tensor
        return out if place is None else self.places.settle(out, place)
