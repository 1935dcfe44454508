"""Tensor types of ``torch.cuda``, such as ``torch.cuda.FloatTensor``: to make tensors, to ask, and as the default."""

from __future__ import annotations

from typing import Any

from devicekit.redirect.marks import HOST, mark_of
from devicekit.redirect.naming import TYPES, cuda_type_name
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Replace every one of them, and the setting of a default."""
    torch, layer = redirect.torch, redirect.layer
    for name in dir(torch.cuda):
        if name.endswith("Tensor") and hasattr(torch, name):
            layer.stand_in(torch.cuda, name, _typed(redirect, name))
    layer.wrap(torch, "set_default_tensor_type", lambda real: _default(redirect, real))


def _typed(redirect: Redirect, name: str) -> Any:
    torch, layer = redirect.torch, redirect.layer
    real, host = getattr(torch.cuda, name), getattr(torch, name)

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if not layer.on:
                return real(*args, **kwargs)
            redirect.note(TYPES + name)
            if args and isinstance(args[0], torch.Tensor):  # another name for a tensor of this type
                if not isinstance(args[0], cls):
                    raise TypeError(f"expected {TYPES}{name} (got {args[0].type()})")
                return args[0].view_as(args[0])
            return host(*args).to(kwargs.get("device", "cuda"))

        def __instancecheck__(cls, instance: Any) -> bool:
            if not layer.on:
                return isinstance(instance, real)
            return isinstance(instance, torch.Tensor) and instance.dtype is host.dtype and _there(redirect, instance)

    return Meta(
        name,
        (),
        {
            "__module__": "torch.cuda",
            "cuda_name": TYPES + name,
            "dtype": host.dtype,
            "layout": torch.strided,
            "is_cuda": True,
            "is_sparse": False,
        },
    )


def _there(redirect: Redirect, tensor: Any) -> bool:
    """Whether the tensor lies on the target; on a processor that is so unless it is known to be the host's."""
    place = mark_of(tensor)
    if redirect.strict:
        return isinstance(place, int)
    return place != HOST if redirect.target.on_host else bool(tensor.device.type == redirect.target.device_type)


def _default(redirect: Redirect, real: Any) -> Any:
    """The default dtype, and the device that factories take where they are not told another."""
    layer, torch = redirect.layer, redirect.torch
    ours: list[bool] = []

    def forget() -> None:
        if ours:
            ours.clear()
            torch.set_default_device(None)

    def set_default_tensor_type(t: Any) -> Any:
        if not layer.on:
            return real(t)
        name = cuda_type_name(t)
        forget()
        if name is None:
            return real(t)
        redirect.note("torch.set_default_tensor_type")
        real(f"torch.{name}")
        if redirect.strict or not redirect.target.on_host:
            torch.set_default_device("cuda")
            ours.append(True)
            if "__new__" not in vars(torch.Tensor):
                layer.replace(torch.Tensor, "__new__", staticmethod(_constructor(redirect, torch.Tensor.__new__, ours)))
        return None

    layer.at_the_end(forget)
    return set_default_tensor_type


def _constructor(redirect: Redirect, real: Any, ours: list[bool]) -> Any:
    """``torch.Tensor(...)`` makes tensors of the default type; it is no factory, so it has no default device."""
    layer, tensor = redirect.layer, redirect.torch.Tensor

    def __new__(*args: Any, **kwargs: Any) -> Any:  # noqa: N807  # no name before them: dynamo compares signatures
        if not (layer.on and ours and args[0] is tensor):
            return real(*args, **kwargs)
        device = kwargs.pop("device", None)
        return real(*args, **kwargs).to("cuda" if device is None else device)

    return __new__
