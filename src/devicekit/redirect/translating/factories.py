"""Functions that make tensors: where they name a CUDA device, it is the target's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from devicekit.redirect.marks import mark
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]

NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
MORE = (
    "bartlett_window", "blackman_window", "empty_like", "full_like", "hamming_window", "hann_window", "kaiser_window",
    "normal", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like",
)  # fmt: skip
"""Those that torch's own list of constructors leaves out."""
ALIASING = ("as_tensor", "asarray")
"""They take the memory that they are given, where it lies on the device that they are asked for."""


def install(redirect: Redirect) -> None:
    """Wrap every one of them; what names no device passes through."""
    torch, layer = redirect.torch, redirect.layer
    # torch caches this set when it is first asked, and must not find the replacements in it.
    constructors = redirect.module("torch.utils._device")._device_constructors()
    names = {f.__name__ for f in constructors} | {*MORE}
    for name in sorted(names - {*ALIASING}):
        layer.wrap(torch, name, functools.partial(factory, redirect, f"torch.{name}"))
    for name in ALIASING:
        layer.wrap(torch, name, functools.partial(aliasing, redirect, f"torch.{name}"))
    for name in NEW:
        layer.wrap(torch.Tensor, name, functools.partial(factory, redirect, f"Tensor.{name}"))
    for owner in (torch.fft, redirect.module("torch.signal.windows"), torch.nested):
        for name in owner.__all__:
            if owner is not torch.fft or name in ("fftfreq", "rfftfreq"):
                layer.wrap(owner, name, functools.partial(factory, redirect, f"{owner.__name__}.{name}"))


def factory(redirect: Redirect, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, on the target where it is asked for CUDA."""
    layer, torch = redirect.layer, redirect.torch

    def on_target(*args: Any, **kwargs: Any) -> Any:
        if not kwargs:  # what names no device, made cheap
            return real(*args)
        if not ("device" in kwargs or "pin_memory" in kwargs) or not layer.on:
            return real(*args, **kwargs)
        index = redirect.index(kwargs.get("device"))
        if index is None:
            return real(*args, **(unpinned(kwargs) if redirect.target.on_host else kwargs))
        kwargs["device"] = redirect.target.real(index)
        if kwargs.get("pin_memory"):  # torch itself refuses to pin what is not on the host
            raise RuntimeError("Cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        if torch.compiler.is_compiling():
            return real(*args, **kwargs)
        redirect.note(what)
        return mark(real(*args, **kwargs), index)

    return on_target


def unpinned(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same without pinned memory, which a processor has none of and would not copy faster from."""
    return {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs


def aliasing(redirect: Redirect, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """The same for those that take over memory: what comes from the host is copied, as onto a card."""
    layer, torch = redirect.layer, redirect.torch

    def on_target(data: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs or not layer.on or redirect.index(kwargs.get("device")) is None:
            return real(data, *args, **kwargs)
        device = kwargs.pop("device")
        if isinstance(data, torch.Tensor):
            return real(data.to(device), *args, **kwargs)
        redirect.note(what)
        return real(data, *args, **kwargs, device="cpu").to(device)

    return on_target
