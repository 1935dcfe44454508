"""Mixed precision that says what it does: torch calls enabled what changes nothing, or drops it silently."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

from devicekit.backend import Backend
from devicekit.contexts import Repeatable
from devicekit.errors import DeviceKitError

__all__ = ["Autocast", "autocast", "grad_scaler", "switched_off"]

log = logging.getLogger("devicekit")


class Autocast(Repeatable):
    """A context, or a decorator, in which matrix products and convolutions run in 16 bits; or one that does nothing.

    It can be entered again, also inside of itself.
    """

    __slots__ = ("dtype", "reason")

    dtype: Any
    """The dtype that is computed in; None: there is no autocast inside."""
    reason: str
    """Why there is none; empty when there is."""

    def __init__(self, start: Callable[[], Any] | None, dtype: Any, reason: str = "") -> None:
        super().__init__(start or contextlib.nullcontext)
        self.dtype = dtype
        self.reason = reason

    @property
    def enabled(self) -> bool:
        """It changes something."""
        return self.dtype is not None

    def __repr__(self) -> str:
        return f"<autocast to {self.dtype}>" if self.enabled else f"<no autocast: {self.reason}>"


def autocast(backend: Backend, index: int, dtype: Any, *, asked: bool) -> Autocast:
    """Autocast to this dtype where the device computes it.

    Args:
        backend: of the device.
        index: of the device.
        dtype: what to compute in.
        asked: the caller named the dtype, so one warning says when it cannot be.

    Raises:
        DeviceKitError: no autocast to such a dtype exists.
    """
    reason = _reason_against(backend, index, dtype)
    if not reason:
        start = functools.partial(backend.torch.autocast, backend.device_type, dtype=dtype)
        return Autocast(start, dtype)
    if asked and not _is_float32(backend, dtype):
        warnings.warn(f"autocast to {dtype} changes nothing here: {reason}", stacklevel=3)
    log.debug("no autocast: %s", reason)
    return Autocast(None, None, reason)


def switched_off(backend: Backend) -> Autocast:
    """A context without autocast: inside of another one it switches that off, as torch's ``enabled=False`` does."""
    known = backend.needs_torch and backend.torch.amp.is_autocast_available(backend.device_type)
    start = functools.partial(backend.torch.autocast, backend.device_type, enabled=False) if known else None
    return Autocast(start, None, "switched off by the caller")


def _reason_against(backend: Backend, index: int, dtype: Any) -> str:
    if _is_float32(backend, dtype):
        return "float32 is what is computed in without autocast"
    if not backend.needs_torch:
        return f"{backend.name} has none"
    torch = backend.torch
    if dtype not in (torch.float16, torch.bfloat16):
        raise DeviceKitError(f"There is no autocast to {dtype}.", try_="torch.bfloat16, torch.float16")
    there = backend.autocast_dtypes(index)
    if dtype in there:
        return ""
    has = f"only {there[0]}".replace("torch.", "") if there else "none"
    return f"of the 16-bit types this {backend.name} device computes {has} itself"


def _is_float32(backend: Backend, dtype: Any) -> bool:
    return str(dtype).removeprefix("torch.") == "float32" if backend.needs_torch else True


def grad_scaler(backend: Backend, index: int, dtype: Any, options: dict[str, Any]) -> Any:
    """A gradient scaler that scales where float16 is computed in, and passes everything through elsewhere.

    bfloat16 and float32 have the exponents that small gradients need.

    Raises:
        DeviceKitError: there is no torch.
    """
    if not backend.needs_torch:
        raise DeviceKitError(f"The {backend.name} backend has no gradients to scale.")
    torch = backend.torch
    useful = dtype is torch.float16 and dtype in backend.autocast_dtypes(index)
    enabled = bool(options.pop("enabled", True)) and useful
    return torch.amp.GradScaler(backend.device_type, enabled=enabled, **options)
