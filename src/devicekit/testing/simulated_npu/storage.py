"""Storages on the device: ``UntypedStorage(n, device="npu")``, and a storage that knows its place.

A Python backend has no allocator in C++, and without this file torch calls the missing one and the
process dies (SIGSEGV), in ``torch.load(map_location="npu")`` too. Here a device storage is a host
storage that the device's memory counts, and it answers ``.device`` accordingly; torch.save,
torch.load, pickle and deepcopy need no more than that.
"""

from __future__ import annotations

from typing import Any

import torch

from devicekit.testing.simulated_npu import rules
from devicekit.testing.simulated_npu.machine import NAME, machine

__all__ = ["answer_torch_storage"]


def answer_torch_storage() -> None:
    """Teach torch.UntypedStorage about the device. Host storages stay as they are."""
    storage: Any = torch.UntypedStorage
    storage.__new__ = _new
    storage.device = property(_device)


def _new(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
    make: Any = torch._C.StorageBase.__new__
    if device is None or torch.device(device).type != NAME:
        return make(cls, *args, **kwargs, **({} if device is None else {"device": device}))
    machine().start()
    rules.refuse_index(torch.device(device))
    if args and isinstance(args[0], int):
        machine().memory.require(args[0])
    made = make(cls, *args, **kwargs)
    machine().memory.take(made)
    return made


def _device(storage: Any) -> torch.device:
    if machine().memory.holds(storage):
        return torch.device(NAME, 0)
    place: torch.device = torch._C.StorageBase.device.__get__(storage)  # type: ignore[attr-defined]  # a C descriptor
    return place
