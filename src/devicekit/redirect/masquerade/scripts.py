"""Functions of TorchScript, which call no mode: what they return is where their arguments are."""

from __future__ import annotations

from typing import Any

import torch

from devicekit.redirect.masquerade.mode import Masquerade

__all__ = ["install"]


def install(mode: Masquerade) -> None:
    """Call them as an operation."""
    layer = mode.layer

    def watched(real: Any) -> Any:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            if not layer.on:
                return real(self, *args, **kwargs)
            return mode.compute(real, (self, *args), kwargs)

        return __call__

    for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        layer.replace(kind, "__call__", watched(kind.__call__))
