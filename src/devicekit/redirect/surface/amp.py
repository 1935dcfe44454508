"""Mixed precision: autocast and the gradient scaler "for CUDA" are those of the target, whoever asks.

float16 stays float16, also on a processor: what a program computes in is part of what it means. Torch's own helpers
(``custom_fwd``, ``checkpoint``) ask about "cuda" on behalf of the program, so they get the program's answers.
"""

from __future__ import annotations

import functools
from typing import Any

from devicekit.redirect.naming import cuda_index
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import stand_in_everywhere

__all__ = ["install"]

CUDA = "cuda"


def install(redirect: Redirect) -> None:
    """Replace what takes the type of a device, or means CUDA without saying so."""
    torch, layer = redirect.torch, redirect.layer
    modes = redirect.module("torch.amp.autocast_mode")
    state = State(redirect)
    for name in ("is_autocast_enabled", "set_autocast_enabled", "get_autocast_dtype", "set_autocast_dtype"):
        layer.stand_in(torch, name, layer.guarded(getattr(torch, name), getattr(state, name)))
    layer.wrap(torch, "get_autocast_gpu_dtype", lambda real: layer.guarded(real, state.get_autocast_dtype))
    layer.wrap(torch, "set_autocast_gpu_dtype", lambda real: layer.guarded(real, state.set_gpu_dtype))
    available = _translated(state, modes.is_autocast_available, 0)
    stand_in_everywhere(redirect, torch.amp, "is_autocast_available", available)
    layer.wrap(modes, "_cast", lambda real: _translated(state, real, 1))
    layer.wrap(modes.autocast, "__init__", functools.partial(_autocast, state))
    layer.wrap(torch.amp.GradScaler, "__init__", functools.partial(_scaler, state))


class State:
    """This thread's autocast. What is set for CUDA while it is off is only remembered, where torch itself does so."""

    def __init__(self, redirect: Redirect) -> None:
        torch = redirect.torch
        self.redirect = redirect
        self.layer = redirect.layer
        self._enabled, self._set_enabled = torch.is_autocast_enabled, torch.set_autocast_enabled
        self._dtype, self._set_dtype = torch.get_autocast_dtype, torch.set_autocast_dtype

    def type_of(self, device_type: str) -> str:
        """The type of a device; the target's for CUDA."""
        return self.redirect.target.device_type if _is_cuda(device_type) else device_type

    def taken(self, dtype: Any) -> Any:
        """What is computed in for a dtype that the program wants on CUDA."""
        instead = self.redirect.autocast_dtype
        return instead if instead is not None and dtype is self.redirect.torch.float16 else dtype

    def is_autocast_enabled(self, device_type: str = CUDA) -> Any:
        """Without an argument it is about CUDA."""
        return self._enabled(self.type_of(device_type))

    def set_autocast_enabled(self, device_type: Any = CUDA, enabled: bool | None = None) -> None:
        """With one argument it is for CUDA, and says whether."""
        if enabled is None:
            device_type, enabled = CUDA, device_type
        at = self.type_of(device_type)
        if _is_cuda(device_type) and enabled and not self._enabled(at):
            self._set_dtype(at, self.taken(self._dtype(CUDA)))
        self._set_enabled(at, enabled)

    def get_autocast_dtype(self, device_type: str = CUDA) -> Any:
        """For CUDA outside of autocast it is float16, or what was set."""
        at = self.type_of(device_type)
        return self._dtype(at if self._enabled(at) else device_type)

    def set_autocast_dtype(self, device_type: str, dtype: Any) -> None:
        """For CUDA from now on; while autocast is on, for the target, until it ends, as dynamo sets it."""
        if _is_cuda(device_type) and self._enabled(self.type_of(device_type)):
            self._set_dtype(self.type_of(device_type), self.taken(dtype))
        else:
            self._set_dtype(device_type, dtype)

    def set_gpu_dtype(self, dtype: Any) -> None:
        """The older name."""
        self.set_autocast_dtype(CUDA, dtype)


def _is_cuda(device_type: Any) -> bool:
    """Torch takes ``"cuda:1"`` as well, and another thing than a text not at all."""
    return isinstance(device_type, str) and cuda_index(device_type) is not None


def _translated(state: State, real: Any, at: int) -> Any:
    """A function whose argument at this position is the type of a device."""

    @functools.wraps(real)
    def translated(*args: Any, **kwargs: Any) -> Any:
        if state.layer.on:
            args = tuple(state.type_of(arg) if n == at else arg for n, arg in enumerate(args))
            kwargs = {k: state.type_of(v) if k == "device_type" else v for k, v in kwargs.items()}
        return real(*args, **kwargs)

    return translated


def _autocast(state: State, real: Any) -> Any:
    redirect = state.redirect

    def __init__(  # noqa: N807
        self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        if state.layer.on and _is_cuda(device_type):
            redirect.note("torch.autocast")
            device_type = state.type_of(CUDA)
            dtype = state.taken(state.get_autocast_dtype() if dtype is None else dtype)
            # CUDA takes float32 as well, and then leaves float32 as it is; the processor would warn and do the same.
            enabled = enabled and not (dtype is redirect.torch.float32 and redirect.target.on_host)
        real(self, device_type, dtype, enabled, cache_enabled)

    return __init__


def _scaler(state: State, real: Any) -> Any:
    def __init__(self: Any, device: str = CUDA, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if state.layer.on and _is_cuda(device):
            state.redirect.note("torch.amp.GradScaler")
            device = state.type_of(CUDA)
        real(self, device, *args, **kwargs)

    return __init__
