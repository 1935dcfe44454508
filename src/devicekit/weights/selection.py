"""Which tensors of a checkpoint are wanted, under which names, and in which dtype."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from devicekit.errors import WeightsError
from devicekit.weights.arrays import Arrays
from devicekit.weights.checkpoint import Checkpoint, Stored
from devicekit.weights.header import shown
from devicekit.weights.reading import Request

__all__ = ["Keys", "Rename", "Wanted", "aliases", "requests", "selected", "selects"]

Keys: TypeAlias = "str | Iterable[str] | Callable[[str], bool] | None"
Rename: TypeAlias = "Mapping[str, str] | Callable[[str], str] | None"
Wanted: TypeAlias = "Callable[[str, Any], Any]"
"""A tensor's name and its dtype in the file, to the dtype that is wanted; None: as it is."""


def selects(keys: Keys) -> Callable[[str], bool]:
    """A predicate for names, from glob patterns (``*.lora_A.*``) or a predicate."""
    if keys is None:
        return lambda _: True
    if callable(keys):
        return lambda name: bool(keys(name))
    patterns = (keys,) if isinstance(keys, str) else tuple(keys)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def selected(found: Checkpoint, keys: Keys, rename: Rename) -> dict[str, Stored]:
    """The wanted tensors under their new names.

    Raises:
        WeightsError: ``keys`` fits none, or two get the same name.
    """
    wanted, new_name = selects(keys), _renaming(rename)
    chosen: dict[str, Stored] = {}
    for name, stored in found.tensors.items():
        if not wanted(name):
            continue
        called = new_name(name)
        if not isinstance(called, str):
            why = f"rename= gives {called!r:.40} for {shown(name)}, which is no name"
            raise WeightsError(f"{found.label} cannot be loaded.", why=why)
        if called in chosen:
            why = f"{shown(chosen[called].entry.name)} and {shown(name)} would both be called {shown(called)}"
            raise WeightsError(f"{found.label} cannot be loaded.", why=why, try_="another rename=")
        chosen[called] = stored
    if keys is not None and found.tensors and not chosen:
        some = ", ".join(shown(name) for name in list(found.tensors)[:3])
        why = f"keys= fits none of its {len(found.tensors)} tensors, such as {some}"
        raise WeightsError(f"{found.label} has no such weights.", why=why, try_="a pattern such as '*.weight'")
    return chosen


def _renaming(rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return lambda name: name
    if callable(rename):
        return rename
    return lambda name: rename.get(name, name)


def aliases(found: Checkpoint, keys: Keys, rename: Rename) -> dict[str, str]:
    """Second names of tied tensors, and the first ones: safetensors keeps them in the metadata (``save_model``)."""
    wanted, new_name = selects(keys), _renaming(rename)
    return {
        new_name(alias): new_name(kept)
        for alias, kept in found.metadata.items()
        if kept in found.tensors and alias not in found.tensors and wanted(alias) and wanted(kept)
    }


def requests(chosen: Mapping[str, Stored], arrays: Arrays, wanted: Wanted) -> dict[str, Request]:
    """Each tensor with its dtype in the file and the one that is wanted.

    Raises:
        WeightsError: the framework has no dtype for what the file holds.
    """
    made: dict[str, Request] = {}
    dtypes: dict[str, Any] = {}
    for name, stored in chosen.items():
        held = stored.entry.format
        if held.name not in dtypes:
            dtypes[held.name] = _dtype(arrays, stored)
        dtype = dtypes[held.name]
        made[name] = Request(name, stored, dtype, wanted(name, dtype) if held.floating else dtype)
    return made


def _dtype(arrays: Arrays, stored: Stored) -> Any:
    try:
        return arrays.dtype(stored.entry.format)
    except WeightsError as exc:
        what = f"{stored.source.label} cannot be loaded."
        raise WeightsError(what, why=f"{exc.why}, the format of {shown(stored.entry.name)}", try_=exc.try_) from None
