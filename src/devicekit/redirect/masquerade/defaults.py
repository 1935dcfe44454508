"""The default device: what has become the default as "cuda:1" is told as that."""

from __future__ import annotations

from typing import Any

import torch

from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Answer ``torch.get_default_device``."""
    layer = redirect.layer

    def made(real: Any) -> Any:
        def get_default_device() -> Any:
            found = real()
            current = redirect.module("torch.utils._device").CURRENT_DEVICE
            index = redirect.default_index(current) if layer.on and current is not None else None
            return found if index is None else torch.device("cuda", index)

        return get_default_device

    layer.wrap(torch, "get_default_device", made)
