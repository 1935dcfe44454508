"""``torch.device`` and the default device: a number means CUDA, and a device written down is told from one read off."""

from __future__ import annotations

from typing import Any

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import in_place_of

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Replace ``torch.device`` by a class that makes real devices, and translate where one becomes the default."""
    torch, layer = redirect.torch, redirect.layer
    redirect.host_device = torch.device("cpu")
    layer.stand_in(torch, "device", in_place_of(torch.device, _made(redirect, torch.device)))

    # `with torch.device("cuda")` and set_default_device put one of these onto the stack of modes.
    def init(before: Any) -> Any:
        def __init__(self: Any, device: Any) -> None:  # noqa: N807
            index = redirect.index(device) if layer.on else None
            if index is None:
                before(self, device)
            else:
                redirect.note("default device")
                before(self, redirect.target.real(index))
                self.device = redirect.default_device(index)

        return __init__

    layer.wrap(redirect.module("torch.utils._device").DeviceContext, "__init__", init)


def _made(redirect: Redirect, real: Any) -> Any:
    layer, host = redirect.layer, redirect.host_device

    def device(*args: Any, **kwargs: Any) -> Any:
        if not layer.on:
            return real(*args, **kwargs)
        if not kwargs and len(args) == 1 and type(args[0]) is int:
            return real("cuda", args[0])
        made = real(*args, **kwargs)
        return host if made == host else made

    return device
