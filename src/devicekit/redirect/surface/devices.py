"""``torch.device`` and the default device: a number means CUDA, and a device written down is told from one read off."""

from __future__ import annotations

from typing import Any

from devicekit.redirect.naming import cuda_index
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Replace ``torch.device`` by a class that makes real devices, and translate where one becomes the default."""
    torch, layer = redirect.torch, redirect.layer
    real = torch.device
    host = redirect.host_device = real("cpu")

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if not layer.on:
                return real(*args, **kwargs)
            if not kwargs and len(args) == 1 and type(args[0]) is int:
                return real("cuda", args[0])
            made = real(*args, **kwargs)
            return host if made == host else made

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return subclass is cls or issubclass(subclass, real)

    device = Meta("device", (), {"__module__": "torch", "__doc__": real.__doc__, "__slots__": ()})
    layer.stand_in(torch, "device", device)

    # `with torch.device("cuda")` and set_default_device put one of these onto the stack of modes.
    def init(before: Any) -> Any:
        def __init__(self: Any, device: Any) -> None:  # noqa: N807
            if layer.on and cuda_index(device) is not None:
                redirect.note("default device")
                device = redirect.real(device)
            before(self, device)

        return __init__

    layer.wrap(redirect.module("torch.utils._device").DeviceContext, "__init__", init)
