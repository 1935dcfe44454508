"""The mode that sees every operation of the program: what takes part decides where the result is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from devicekit.redirect.marks import NAME, WILD
from devicekit.redirect.masquerade import mixing
from devicekit.redirect.masquerade.places import Places, storages
from devicekit.redirect.redirect import Redirect, inside

__all__ = ["Base", "Handler", "Masquerade", "asked_by_torch", "gathered", "getter", "plain", "setter"]

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""What is done instead of calling a function, given with its arguments."""

Base: Any = torch._C.TensorBase
"""Holds torch's own methods, also where torch.Tensor has been given others."""

PLAIN = (
    "__bool__", "__contains__", "__float__", "__int__", "__index__", "__len__", "data_ptr", "dim", "element_size",
    "is_complex", "is_contiguous", "is_floating_point", "item", "ndimension", "numel", "nelement", "requires_grad_",
    "size", "storage_offset", "stride", "tolist", "untyped_storage",
)  # fmt: skip
PLAIN_PROPERTIES = (
    "dtype", "grad_fn", "is_leaf", "is_sparse", "itemsize", "layout", "nbytes", "ndim", "requires_grad", "shape",
)  # fmt: skip
"""What is the same wherever a tensor is, and asked often."""
FOR_PROGRAMS = "torch.testing"
"""The part of torch that asks what the program would."""


class Masquerade(TorchFunctionMode):
    """Each operation on tensors of a device has its result there; one that mixes devices raises what CUDA raises."""

    def __init__(self, redirect: Redirect) -> None:
        super().__init__()
        self.redirect = redirect
        self.layer = redirect.layer
        self.places = Places(getattr(redirect.target, "memory", []))
        self.thread = OfThread()
        self.handlers: dict[Any, Handler] = {}
        for name in PLAIN:
            self.handle(getattr(Base, name, None) or getattr(torch.Tensor, name), plain)
        for name in PLAIN_PROPERTIES:
            self.handle(getter(name), plain)

    def handle(self, func: Any, handler: Handler) -> None:
        """Call this instead, whenever the program calls ``func``."""
        if func is not None:
            self.handlers[func] = handler

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch, with this mode off meanwhile."""
        if not self.layer.on:
            return func(*args, **(kwargs or {}))
        try:
            handler = self.handlers.get(func)
        except TypeError:  # some functions that C++ has made cannot be looked up
            handler = None
        if handler is not None:
            return handler(func, args, kwargs or {})
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation: its result is where its tensors are."""
        tensors = gathered(args)
        if kwargs:
            tensors += gathered(tuple(kwargs.values()))
        index, wild, host, mixed = self._survey(tensors)
        if host and index is not None and (mixed or mixing.takes_no_number(self, func, args)):
            mixing.check(self, func, args, tensors)
        if kwargs:
            self.check_generator(kwargs, index)
        out = func(*args, **kwargs)
        if index is not None:
            self.places.settle_all(out, index, self._addresses(tensors, index) if host else NONE)
        elif wild and not host:
            self.places.settle_all(out, WILD)
        return out

    def _survey(self, tensors: list[torch.Tensor]) -> tuple[int | None, bool, bool, bool]:
        """The first device among places; whether some is WILD; whether some is elsewhere; and whether such a one has a
        dimension: CUDA lets single numbers of the host take part.
        """
        index, wild, host, mixed = None, False, False, False
        for tensor in tensors:
            try:
                place = tensor.untyped_storage().__dict__.get(NAME)
            except (NotImplementedError, RuntimeError):
                place = self.places.of(tensor)
            if place is None:
                host = True
                mixed = mixed or tensor.dim() > 0
            elif place is WILD:
                wild = True
            elif index is None:
                index = place
            elif place != index:
                mixed = host = True
        return index, wild, host, mixed

    def _addresses(self, tensors: list[torch.Tensor], index: int) -> frozenset[int]:
        """Of the storages that are not the device's: views of them stay where they are."""
        return frozenset(s._cdata for t in tensors for s in storages(t) if s.__dict__.get(NAME) != index)

    def check_generator(self, kwargs: dict[str, Any], index: int | None) -> None:
        """A generator of another device than the tensors is an error, in torch's words."""
        generator = kwargs.get("generator")
        if generator is None:
            return
        found = generator.device.type
        expected = "cpu" if index is None else "cuda"
        if found in ("cpu", "cuda") and found != expected:
            raise RuntimeError(f"Expected a '{expected}' device type for generator but found '{found}'")


class OfThread(threading.local):
    """What is going on in a thread."""

    backward: int | None = None
    """The device on which gradients are computed now; tensors that autograd makes have no mark yet."""


NONE: frozenset[int] = frozenset()


def plain(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As it is."""
    return func(*args, **kwargs)


def gathered(values: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors among arguments, also in tuples and lists."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += gathered(tuple(value))
    return found


def getter(name: str) -> Any:
    """What the mode is given when a property of a tensor is read. It is made anew each time, so it must be compared."""
    found = getattr(Base, name, None) or vars(torch.Tensor).get(name)
    return None if found is None else found.__get__


def setter(name: str) -> Any:
    """The same for writing."""
    found = getattr(Base, name, None) or vars(torch.Tensor).get(name)
    return None if found is None else found.__set__


def asked_by_torch(depth: int = 3) -> bool:
    """Whether torch's own code has called what a handler is about. C functions have no frame; torch's Python functions
    come through torch.overrides and have one of their own.

    Args:
        depth: 3 in a handler, 2 in what it was called by.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.overrides":
            frame = frame.f_back and frame.f_back.f_back
        elif frame.f_code.co_name == "__torch_function__":  # of a mode above this one
            frame = frame.f_back
        else:
            name = str(frame.f_globals.get("__name__", ""))
            return inside(name) and not name.startswith(FOR_PROGRAMS)
    return False
