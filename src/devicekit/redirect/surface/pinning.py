"""``DataLoader(pin_memory=True)`` where the target is the processor: nothing copies faster from pinned memory."""

from __future__ import annotations

from typing import Any

from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Elsewhere torch pins, as it does for its own accelerator."""
    if redirect.target.on_host:
        loaders = redirect.module("torch.utils.data.dataloader")
        redirect.layer.wrap(loaders._BaseDataLoaderIter, "__init__", lambda real: _unpinned(redirect, real))


def _unpinned(redirect: Redirect, real: Any) -> Any:
    layer = redirect.layer

    def __init__(self: Any, loader: Any) -> Any:  # noqa: N807
        if not layer.on or not loader.pin_memory:
            return real(self, loader)
        redirect.note("DataLoader.pin_memory")
        asked = loader.pin_memory, loader.pin_memory_device
        loader.pin_memory, loader.pin_memory_device = False, ""
        try:
            return real(self, loader)
        finally:
            loader.pin_memory, loader.pin_memory_device = asked

    return __init__
