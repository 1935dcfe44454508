"""Where tensors hide: dicts, lists, tuples and dataclasses of them, however deep."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from devicekit.backend import Backend

__all__ = ["place"]


def place(backend: Backend, x: Any, device: Any, dtype: Any = None) -> Any:
    """Put every tensor in ``x`` on the device. Containers come back new and of the same type, the rest as it is."""
    if isinstance(x, dict):
        return _place_dict(backend, x, device, dtype)
    if isinstance(x, (list, tuple)) and not hasattr(x, "to"):  # torch's PackedSequence is a tuple with its own `to`
        return _place_sequence(backend, x, device, dtype)
    if hasattr(type(x), "__dataclass_fields__") and not callable(getattr(x, "to", None)):
        return _place_fields(backend, x, device, dtype)
    return backend.put(x, device, dtype)


def _place_dict(backend: Backend, x: dict[Any, Any], device: Any, dtype: Any) -> Any:
    moved = {key: place(backend, value, device, dtype) for key, value in x.items()}
    if type(x) is dict:
        return moved
    twin = copy.copy(x)  # keeps what a subclass holds besides: a defaultdict's factory, an output's attributes
    for key, value in moved.items():
        twin[key] = value
    return twin


def _place_sequence(backend: Backend, x: Any, device: Any, dtype: Any) -> Any:
    moved = [place(backend, item, device, dtype) for item in x]
    if hasattr(x, "_fields"):
        return type(x)(*moved)
    return moved if type(x) is list else type(x)(moved)


def _place_fields(backend: Backend, x: Any, device: Any, dtype: Any) -> Any:
    twin = copy.copy(x)
    for field in dataclasses.fields(x):
        if hasattr(x, field.name):
            # object.__setattr__, because the dataclass may be frozen
            object.__setattr__(twin, field.name, place(backend, getattr(x, field.name), device, dtype))
    return twin
