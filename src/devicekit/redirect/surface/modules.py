"""``Module.to`` with a number: what a module does beyond that goes through its tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Spell out the device that a number means, which torch looks up among the accelerators that are really there."""
    module = redirect.torch.nn.Module
    redirect.layer.wrap(module, "to", functools.partial(_spelled_out, redirect))


def _spelled_out(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, torch = redirect.layer, redirect.torch

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.on:
            if args and type(args[0]) is int:
                args = (torch.device("cuda", args[0]), *args[1:])
            if type(kwargs.get("device")) is int:
                kwargs["device"] = torch.device("cuda", kwargs["device"])
        return real(self, *args, **kwargs)

    return to
