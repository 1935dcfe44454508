"""One model over several devices: data parallelism, with the device numbers that a program gives it.

On a processor a process has one device, whatever numbers it is told; torch asks there that it is told none.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from devicekit.redirect.imports import when_imported
from devicekit.redirect.marks import mark_of
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Replace how they are made; training itself is torch's."""
    torch, layer, on_host = redirect.torch, redirect.layer, redirect.target.on_host

    def wrap(owner: Any, name: str, make: Callable[..., Any], *more: Any) -> None:
        layer.wrap(owner, name, functools.partial(make, redirect, *more))

    ddp = torch.nn.parallel.DistributedDataParallel
    told_a_device: weakref.WeakSet[Any] = weakref.WeakSet()
    wrap(ddp, "__init__", _make_ddp, told_a_device)
    when_imported(
        layer,
        "torch.distributed.fsdp.fully_sharded_data_parallel",
        lambda module: wrap(module.FullyShardedDataParallel, "__init__", _make_fsdp),
    )
    alone = redirect.module("torch.nn.parallel.data_parallel")
    wrap(alone, "_get_available_device_type", _no_devices)
    several: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
    wrap(torch.nn.DataParallel, "__init__", _make_data_parallel, several)
    layer.wrap_in((alone, torch.nn.parallel), "data_parallel", functools.partial(_data_parallel, redirect))
    if on_host:
        wrap(ddp, "_passing_sync_batchnorm_handle", _unchecked)
        wrap(torch.nn.SyncBatchNorm, "forward", _synced)
    if redirect.strict:
        wrap(ddp, "forward", _bringing, told_a_device)
        wrap(torch.nn.DataParallel, "forward", _where_the_first_is, several)
    if redirect.strict or not on_host:
        wrap(torch.nn.DataParallel, "forward", _bringing, None)


def _number(redirect: Redirect, device: Any) -> Any:
    """A device as torch counts it, where its number says all."""
    index = redirect.index(device)
    return device if index is None else index


def _brought(redirect: Redirect, module: Any, given: Any) -> Any:
    """As on cards, what lies elsewhere comes to the module. On a processor only masquerade tells the two apart."""
    parameter = next(module.parameters(), None)
    if parameter is None or (redirect.target.on_host and not redirect.strict):
        return given
    where = parameter.device
    if redirect.strict:
        number = mark_of(parameter)
        where = f"cuda:{number}" if isinstance(number, int) else "cpu"
    tree = redirect.module("torch.utils._pytree")
    return tree.tree_map_only(redirect.torch.Tensor, lambda tensor: tensor.to(where), given)


def _bringing(redirect: Redirect, which: weakref.WeakSet[Any] | None, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        if layer.on and (which is None or self in which):
            inputs, kwargs = (_brought(redirect, self.module, given) for given in (inputs, kwargs))
        return real(self, *inputs, **kwargs)

    return forward


# -- a process for each device -----------------------------------------------------------------------
def _make_ddp(redirect: Redirect, told: weakref.WeakSet[Any], real: Callable[..., Any]) -> Callable[..., Any]:
    layer, on_host = redirect.layer, redirect.target.on_host

    def __init__(  # noqa: N807
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if layer.on and (device_ids or output_device is not None):
            redirect.note("DistributedDataParallel")
            numbers = [_number(redirect, device) for device in device_ids or ()]
            device_ids = None if on_host else numbers
            output_device = None if on_host else _number(redirect, output_device)
            told.add(self)
        real(self, module, device_ids, output_device, *args, **kwargs)

    return __init__


def _unchecked(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """DistributedDataParallel refuses SyncBatchNorm on a processor here, and does nothing else."""
    layer = redirect.layer

    def check(self: Any, module: Any) -> None:
        if not layer.on:
            real(self, module)

    return check


def _make_fsdp(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """On a processor it must be told the processor: by itself it looks for an accelerator, and fails without one."""
    layer, on_host = redirect.layer, redirect.target.on_host

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        device = kwargs.get("device_id")
        if layer.on and (redirect.index(device) is not None or (device is None and on_host)):
            redirect.note("FullyShardedDataParallel")
            kwargs["device_id"] = redirect.torch.device("cpu") if on_host else redirect.real(device)
        real(self, *args, **kwargs)

    return __init__


# -- one process for all devices -----------------------------------------------------------------------
# torch scatters and gathers by functions that it has for CUDA alone. So the module runs on one device, as torch itself
# does it where it finds none.


def _no_devices(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """It would find the accelerator that is really here."""
    layer = redirect.layer

    def _get_available_device_type() -> Any:
        return None if layer.on else real()

    return _get_available_device_type


def _make_data_parallel(redirect: Redirect, several: Any, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, target = redirect.layer, redirect.target

    def __init__(  # noqa: N807
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, dim: int = 0
    ) -> None:
        if layer.on:
            redirect.note("DataParallel")
            numbers = [_number(redirect, device) for device in device_ids or range(target.count)]
            if len(numbers) == 1:
                module.cuda(numbers[0])  # torch moves it then, and only then
        real(self, module, device_ids, output_device, dim)
        if layer.on and len(numbers) > 1:
            several[self] = numbers[0]

    return __init__


def _where_the_first_is(redirect: Redirect, several: Any, real: Callable[..., Any]) -> Callable[..., Any]:
    """A module for several devices must lie on the first of them; torch would see only where it really lies."""
    layer = redirect.layer

    def forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        first = several.get(self)
        if layer.on and first is not None:
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                if mark_of(tensor) != first:
                    raise RuntimeError(
                        f"module must have its parameters and buffers on device cuda:{first} (device_ids[0]) but found "
                        f"one of them on device: {tensor.device}"
                    )
        return real(self, *inputs, **kwargs)

    return forward


def _data_parallel(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def data_parallel(module: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not layer.on:
            return real(module, inputs, *args, **kwargs)
        named = (args[3] if len(args) > 3 else kwargs.get("module_kwargs")) or {}
        given = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
        return module(*_brought(redirect, module, given), **_brought(redirect, module, named))

    return data_parallel


# -- statistics over all processes -------------------------------------------------------------------
def _synced(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """Torch has this for cards only; on a processor it refuses, even a process that is alone."""
    layer, distributed = redirect.layer, redirect.torch.distributed

    def forward(self: Any, input: Any) -> Any:  # noqa: A002  # torch's name
        if not (layer.on and self.training and distributed.is_available() and distributed.is_initialized()):
            return real(self, input)
        synced = redirect.module("devicekit.redirect.surface.synced")
        return synced.batch_norm(self, input, self.process_group or distributed.group.WORLD)

    return forward
