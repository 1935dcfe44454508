"""What a checkpoint says of CUDA: ``torch.load`` and ``torch.jit.load`` put it onto the target.

torch asks a list of functions where a storage of some location goes. The first one now takes the locations of CUDA,
whether the file names them (it was saved on a card) or the caller does. What is saved meanwhile is an ordinary file of
the device where it really lies, also where tensors say that they are on CUDA: any torch reads it. So nobody knows where
a card would have put it when it is read back, and under masquerade it goes with any device.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from devicekit.redirect.marks import NAME, WILD
from devicekit.redirect.naming import cuda_index
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.storages import bytes_of

__all__ = ["checked", "install"]

BEFORE_TORCHS = 0
"""The priority of an entry; torch's own begin at 10 (torch/serialization.py, register_package)."""


def install(redirect: Redirect) -> None:
    """Put the entry in front of torch's, and a count around ``torch.load``."""
    layer, torch = redirect.layer, redirect.torch
    told = _Told()

    def restore(storage: Any, location: Any) -> Any:
        if not layer.on:
            return None
        if cuda_index(location) is None:
            if told.unplaced and redirect.strict and location == "cpu":
                setattr(storage, NAME, WILD)
            return None
        told.redirected = True
        return restored(redirect, storage, location)

    serialization, scripted = redirect.module("torch.serialization"), redirect.module("torch.jit._serialization")
    layer.insert(serialization._package_registry, 0, (BEFORE_TORCHS, lambda _storage: None, restore))
    # At home as well, where pickle looks for a function that is sent to another process.
    layer.wrap_in((serialization, torch), "load", functools.partial(_load, redirect, told))
    layer.wrap_in((scripted, torch.jit), "load", functools.partial(_jit_load, redirect))


def restored(redirect: Redirect, storage: Any, location: str) -> Any:
    """What was read from a file into the host's memory, on the device. On a processor it stays where it is."""
    index = checked(redirect, location)
    if not redirect.target.on_host:
        return storage.to(device=redirect.target.real(index))
    redirect.settle(bytes_of(redirect, storage), index)
    return storage


def checked(redirect: Redirect, device: Any) -> int:
    """The number of the CUDA device.

    Raises:
        RuntimeError: there is none of this number; in the words of torch/serialization.py, _validate_device.
    """
    index, target = redirect.index(device), redirect.target
    assert index is not None
    if not target.exists(index):
        raise RuntimeError(
            f"Attempting to deserialize object on CUDA device {index} but torch.cuda.device_count() is {target.count}. "
            "Please use torch.load with map_location to map your storages to an existing device."
        )
    return index


class _Told(threading.local):
    redirected = False
    """Something was, in the ``torch.load`` of this thread that runs now."""
    unplaced = False
    """Its caller has not said where to."""

    @contextlib.contextmanager
    def anew(self, *, unplaced: bool) -> Iterator[None]:
        before = self.redirected, self.unplaced
        self.redirected, self.unplaced = False, unplaced
        try:
            yield
        finally:
            self.redirected, self.unplaced = before


def _load(redirect: Redirect, told: _Told, real: Callable[..., Any]) -> Callable[..., Any]:
    def load(*args: Any, **kwargs: Any) -> Any:
        where = args[1] if len(args) > 1 else kwargs.get("map_location")
        with told.anew(unplaced=where is None):
            loaded = real(*args, **kwargs)
            if told.redirected:
                redirect.note("torch.load")
        return loaded

    return load


def _jit_load(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """C++ reads these, and asks no list.

    Without ``map_location`` each tensor goes to where it was saved. That is known to C++ only, so for a processor all
    go there; for another target the caller has to say it, where something was saved on CUDA.
    """
    layer, target = redirect.layer, redirect.target

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not layer.on:
            return real(f, map_location, *args, **kwargs)
        if cuda_index(map_location) is None:
            on_host = map_location is None and target.on_host
            return real(f, "cpu" if on_host else map_location, *args, **kwargs)
        index = checked(redirect, map_location)
        redirect.note("torch.jit.load")
        loaded = real(f, target.real(index), *args, **kwargs)
        for tensor in (*loaded.parameters(), *loaded.buffers()):
            redirect.settle(tensor, index)
        return loaded

    return load
