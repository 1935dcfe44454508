"""Processes that work together: "nccl" means the target's collective, a mesh of CUDA devices one of the target's.

What was made says the truth: ``get_backend()`` answers ``gloo`` where that is what moves the tensors.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from devicekit.redirect.imports import when_imported
from devicekit.redirect.redirect import Redirect, inside
from devicekit.redirect.target import Target

__all__ = ["collective_of", "install"]

NCCL = "nccl"


def install(redirect: Redirect) -> None:
    """Nothing where torch was built without it; ``import torch`` has loaded what is replaced here."""
    distributed = redirect.torch.distributed
    if not distributed.is_available():
        return
    layer = redirect.layer
    c10d = redirect.module("torch.distributed.distributed_c10d")
    mesh = redirect.module("torch.distributed.device_mesh")
    for name in ("init_process_group", "new_group"):
        layer.wrap_in((c10d, distributed, mesh), name, functools.partial(_group, redirect))
    for name in ("is_nccl_available", "is_backend_available"):
        layer.wrap_in((c10d, distributed), name, functools.partial(_available, redirect))
    layer.wrap_in((mesh, distributed), "init_device_mesh", functools.partial(_mesh, redirect, 0))
    layer.wrap(mesh.DeviceMesh, "__init__", functools.partial(_mesh, redirect, 1))
    if redirect.target.on_host:
        layer.wrap_in((c10d, distributed), "barrier", functools.partial(_barrier, redirect))
        for name in AVERAGING:
            layer.wrap_in((c10d, distributed), name, functools.partial(_averaging, redirect))
    when_imported(layer, "torch.distributed.run", functools.partial(_per_gpu, redirect))


# -- groups ----------------------------------------------------------------------------------------
def collective_of(target: Target, backend: str) -> str:
    """The name of a backend as it must be said here: ``nccl``, ``cuda:nccl,cpu:gloo``."""
    alone, pairs, host = "", {}, {}
    for part in backend.lower().split(","):
        device, colon, name = part.strip().rpartition(":")
        name = target.collective if name == NCCL else name
        if not colon:
            alone = name
        elif device == "cuda":
            pairs[target.device_type] = name
        else:
            host[device] = name  # what the program says of another device stays, also of the processor
    pairs.update(host)
    if alone or not pairs:
        return alone
    if len(pairs) == 1 and target.on_host:
        return next(iter(pairs.values()))
    return ",".join(f"{device}:{name}" for device, name in pairs.items())


def _group(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """``init_process_group(backend=None, ...)`` and ``new_group(ranks=None, timeout=None, backend=None, ...)``."""
    layer, target = redirect.layer, redirect.target
    place = 0 if real.__name__ == "init_process_group" else 2

    def group(*args: Any, **kwargs: Any) -> Any:
        if not layer.on:
            return real(*args, **kwargs)
        backend = args[place] if len(args) > place else kwargs.get("backend")
        if isinstance(backend, str) and (NCCL in backend.lower() or "cuda" in backend.lower()):
            redirect.note(f"torch.distributed.{real.__name__}")
            # Options are those of one collective; nobody else takes NCCL's.
            kwargs = {name: value for name, value in kwargs.items() if name != "pg_options"}
            backend = collective_of(target, backend)
        elif backend is None and place == 0 and target.on_host:
            backend = target.collective  # torch would take that of the accelerator that is really here
        args, kwargs = _with(args, kwargs, place, "backend", backend)
        if redirect.index(kwargs.get("device_id")) is not None:
            # torch takes the numbers of accelerators only.
            kwargs["device_id"] = None if target.on_host else redirect.real(kwargs["device_id"])
        return real(*args, **kwargs)

    return group


def _with(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another value at a place, or under its name."""
    if len(args) > place:
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: value}


def _available(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """The program has NCCL, because it can ask for it; torch's own code does without."""
    layer = redirect.layer

    def available(*backend: Any, **named: Any) -> Any:
        if not layer.on or inside(str(sys._getframe(1).f_globals.get("__name__", ""))):
            return real(*backend, **named)
        return True if {*backend, *named.values()} <= {NCCL} else real(*backend, **named)

    return available


def _mesh(redirect: Redirect, place: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """``init_device_mesh(device_type, ...)`` and ``DeviceMesh(device_type, ...)``."""
    layer, target = redirect.layer, redirect.target

    def mesh(*args: Any, **kwargs: Any) -> Any:
        device_type = args[place] if len(args) > place else kwargs.get("device_type")
        if layer.on and device_type == "cuda":
            redirect.note("torch.distributed.init_device_mesh")
            args, kwargs = _with(args, kwargs, place, "device_type", target.device_type)
        return real(*args, **kwargs)

    return mesh


def _barrier(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def barrier(group: Any = None, async_op: bool = False, device_ids: Any = None, **more: Any) -> Any:
        """Which card waits makes no difference where there is none."""
        return real(group, async_op, None if layer.on else device_ids, **more)

    return barrier


# -- averages --------------------------------------------------------------------------------------
AVERAGING = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single")
"""The last is the newer name of the one before."""


def _averaging(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, also for ``ReduceOp.AVG``.

    Gloo of older versions refuses it, or gives the sum under its name (reduce_scatter_tensor of torch 2.6). NCCL scales
    what it is given, and then sums up; so does this, and the work that it returns can be waited for as ever. Whole
    numbers must be divided at the end, so those are waited for here.
    """
    layer, torch = redirect.layer, redirect.torch
    distributed = torch.distributed
    names = tuple(inspect.signature(real).parameters)
    result = names[0]
    source = names[1] if result == "output" else result

    def averaging(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        wanted = layer.on and given.get("op") == distributed.ReduceOp.AVG
        size = distributed.get_world_size(given.get("group")) if wanted else 0
        if size < 1:  # -1: this process is not in the group
            return real(*args, **kwargs)
        given["op"] = distributed.ReduceOp.SUM
        if names[1] == "dst" and not _receives(distributed, given):
            given[result] = given[result].clone()  # who does not get the result keeps what it has
        tensor = given[result]
        if tensor.is_floating_point() or tensor.is_complex():
            given[source] = tensor.detach().div_(size) if source == result else _scaled(given[source], size)
            return real(**given)
        work = real(**{**given, "async_op": True})
        work.wait()
        tensor.div_(size, rounding_mode="trunc")
        return work if given.get("async_op") else None

    return averaging


def _receives(distributed: Any, given: dict[str, Any]) -> bool:
    """The result is this process's; ``dst`` counts all processes, ``group_dst`` those of the group."""
    if given.get("dst") is not None:
        return bool(given["dst"] == distributed.get_rank())
    return bool(given.get("group_dst") == distributed.get_rank(given.get("group")))


def _scaled(given: Any, size: int) -> Any:
    return [each / size for each in given] if isinstance(given, (list, tuple)) else given / size


# -- the launcher ----------------------------------------------------------------------------------
def _per_gpu(redirect: Redirect, run: Any) -> None:
    """``torchrun --nproc-per-node=gpu``: as many processes as "cuda" stands for; torch counts cards."""
    layer, target = redirect.layer, redirect.target

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def determine_local_world_size(nproc_per_node: str) -> Any:
            return real(str(target.count) if layer.on and nproc_per_node == "gpu" else nproc_per_node)

        return determine_local_world_size

    layer.wrap(run, "determine_local_world_size", counted)
