"""``DataLoader(pin_memory=True)`` where the target is the processor: nothing copies faster from pinned memory.

Under masquerade its batches look as if they were pinned.
"""

from __future__ import annotations

import weakref
from typing import Any

from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Elsewhere torch pins, as it does for its own accelerator."""
    if redirect.target.on_host:
        loaders = redirect.module("torch.utils.data.dataloader")
        asked: weakref.WeakSet[Any] = weakref.WeakSet()
        redirect.layer.wrap(loaders._BaseDataLoaderIter, "__init__", lambda real: _unpinned(redirect, asked, real))
        if redirect.strict:
            redirect.layer.wrap(loaders._BaseDataLoaderIter, "__next__", lambda real: _pinned(redirect, asked, real))


def _unpinned(redirect: Redirect, pinning: weakref.WeakSet[Any], real: Any) -> Any:
    layer = redirect.layer

    def __init__(self: Any, loader: Any) -> Any:  # noqa: N807
        if not layer.on or not loader.pin_memory:
            return real(self, loader)
        redirect.note("DataLoader.pin_memory")
        pinning.add(self)
        asked = loader.pin_memory, loader.pin_memory_device
        loader.pin_memory, loader.pin_memory_device = False, ""
        try:
            return real(self, loader)
        finally:
            loader.pin_memory, loader.pin_memory_device = asked

    return __init__


def _pinned(redirect: Redirect, pinning: weakref.WeakSet[Any], real: Any) -> Any:
    layer, pin = redirect.layer, redirect.module("torch.utils.data._utils.pin_memory").pin_memory

    def __next__(self: Any) -> Any:  # noqa: N807
        batch = real(self)
        return pin(batch) if layer.on and self in pinning else batch

    return __next__
