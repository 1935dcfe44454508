"""A tensor's own ways to a device: ``cuda``, ``cpu``, ``to``, ``type``, pinned memory.

On a real card a tensor that goes from the host to the device, or back, is a copy. Where the target is the processor,
torch would return the same tensor, and a snapshot ``{k: v.cpu() for ...}`` would change with further training. So:
where it is not known that a tensor lies where it shall go, it is copied. It is known where the program has sent it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from devicekit.redirect.marks import HOST, mark, mark_of
from devicekit.redirect.naming import BEHIND_DEVICE, cuda_type_name, given, is_device
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


_ABSENT = object()


def install(redirect: Redirect) -> None:
    """Replace the methods that name a device, or mean the host."""
    tensor, layer = redirect.torch.Tensor, redirect.layer
    layer.wrap(tensor, "cuda", functools.partial(_cuda, redirect))
    layer.wrap(tensor, "to", functools.partial(_to, redirect))
    layer.wrap(tensor, "type", functools.partial(_type, redirect))
    if redirect.target.on_host:
        layer.wrap(tensor, "cpu", functools.partial(_cpu, redirect))
        layer.wrap(tensor, "pin_memory", functools.partial(_pin_memory, redirect))


def moved(redirect: Redirect, tensor: Any, place: Any, real_to: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """The tensor at a place: HOST, or the number of a device. ``kwargs`` are those of ``Tensor.to``, without device."""
    target = redirect.target
    device = redirect.host_device if place == HOST else target.real(place)
    if not target.on_host:
        return real_to(tensor, device, **kwargs)
    if redirect.torch.compiler.is_compiling():  # no marks are seen there
        return real_to(tensor, device, **{**kwargs, "copy": True})
    if mark_of(tensor) != place:
        kwargs["copy"] = True
    kwargs.pop("non_blocking", None)  # the host's own copies are done when they return
    return mark(real_to(tensor, device, **kwargs), place)


def _cuda(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, real_to = redirect.layer, redirect.torch.Tensor.to

    def cuda(self: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = None) -> Any:
        if not layer.on:
            return real(self, device, non_blocking, **_only(memory_format=memory_format))
        index = redirect.index("cuda" if device is None else device)
        if index is None:
            raise RuntimeError("Invalid device, must be cuda device")
        redirect.note("Tensor.cuda")
        return moved(redirect, self, index, real_to, _only(memory_format=memory_format, non_blocking=non_blocking))

    return cuda


def _cpu(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, real_to = redirect.layer, redirect.torch.Tensor.to

    def cpu(self: Any, memory_format: Any = None) -> Any:
        options = _only(memory_format=memory_format)
        if not layer.on or mark_of(self) == HOST:
            return real(self, **options)
        return moved(redirect, self, HOST, real_to, options)

    return cpu


def _to(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    dtype, anywhere = redirect.torch.dtype, _to_anywhere(redirect, real)

    def to(self: Any, what: Any = _ABSENT, /, *rest: Any, **kwargs: Any) -> Any:
        if what.__class__ is dtype and not rest and not kwargs:  # the usual way to name no device, made cheap
            return real(self, what)
        return anywhere(self, *(() if what is _ABSENT else (what,)), *rest, **kwargs)

    return to


def _to_anywhere(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, torch, on_host = redirect.layer, redirect.torch, redirect.target.on_host

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not layer.on:
            return real(self, *args, **kwargs)
        if args and is_device(torch, args[0]):
            device, rest = args[0], args[1:]
        elif kwargs and kwargs.get("device") is not None:
            device, rest = kwargs["device"], args
        else:
            other = args[0] if args else kwargs.get("other")
            return real(self, *args, **kwargs) if not on_host or other is None else _to_other(real, self, args, kwargs)
        index = redirect.index(device)
        if index is not None:
            redirect.note("Tensor.to")
        elif not on_host or torch.device(device) != redirect.host_device:
            return real(self, *args, **kwargs)
        options = given(BEHIND_DEVICE, rest, {k: v for k, v in kwargs.items() if k != "device"})
        if index is not None:
            return moved(redirect, self, index, real, options)
        if isinstance(device, str) or device is redirect.host_device:
            return moved(redirect, self, HOST, real, options)
        return _to_read_off(real, self, device, options)

    return to


def _to_read_off(real: Any, tensor: Any, device: Any, options: dict[str, Any]) -> Any:
    """To ``other.device``, which does not say whether that is the host or the target: what is on the target stays."""
    if not isinstance(mark_of(tensor), int):
        options["copy"] = True
    return real(tensor, device, **options)


def _to_other(real: Any, tensor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``x.to(other)``: to where the other lies, if that is known."""
    other = args[0] if args else kwargs["other"]
    place = mark_of(other) if hasattr(other, "untyped_storage") else None
    if place is None or place == mark_of(tensor):
        return real(tensor, *args, **kwargs)
    return mark(real(tensor, *args, **{**kwargs, "copy": True}), place)


def _type(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, torch = redirect.layer, redirect.torch

    def type(self: Any, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:  # noqa: A001
        if dtype is None or not layer.on:
            return real(self, dtype, non_blocking, **kwargs) if dtype is not None else real(self)
        name = cuda_type_name(dtype)
        if name is None:
            return real(self, dtype, non_blocking, **kwargs)
        return self.to("cuda", getattr(torch, name).dtype, non_blocking=non_blocking)

    return type


def _pin_memory(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def pin_memory(self: Any, device: Any = None) -> Any:
        """There is nothing that would copy faster from it."""
        if not layer.on:
            return real(self) if device is None else real(self, device)
        redirect.note("Tensor.pin_memory")
        return self.clone()

    return pin_memory


def _only(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
