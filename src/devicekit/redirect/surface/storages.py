"""A storage's own ways to a device: they are those of a tensor that shows its bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from devicekit.redirect.redirect import Redirect

__all__ = ["bytes_of", "install"]


def install(redirect: Redirect) -> None:
    """Replace the methods of ``UntypedStorage``; those of the typed ones go through them."""
    makers = {"cuda": _cuda, "to": _to, **({"cpu": _cpu} if redirect.target.on_host else {})}
    for name, make in makers.items():
        redirect.layer.wrap(redirect.torch.UntypedStorage, name, functools.partial(make, redirect))


def bytes_of(redirect: Redirect, storage: Any) -> Any:
    """A tensor over the same memory; torch.package has typed storages."""
    plain = getattr(storage, "_untyped_storage", storage)
    return redirect.torch.empty(0, dtype=redirect.torch.uint8, device=plain.device).set_(plain)


def _cuda(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def cuda(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
        if not layer.on:
            return real(self, device, non_blocking)
        return bytes_of(redirect, self).cuda(device, non_blocking).untyped_storage()

    return cuda


def _to(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        if not layer.on or redirect.index(device) is None:
            return real(self, device=device, non_blocking=non_blocking)
        return bytes_of(redirect, self).to(device, non_blocking=non_blocking).untyped_storage()

    return to


def _cpu(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def cpu(self: Any) -> Any:
        return bytes_of(redirect, self).cpu().untyped_storage() if layer.on else real(self)

    return cpu
