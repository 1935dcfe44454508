"""Which tensors of a checkpoint are wanted, under which names, and in which dtype."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from devicekit.errors import WeightsError
from devicekit.weights.arrays import Arrays
from devicekit.weights.checkpoint import Checkpoint, Stored
from devicekit.weights.formats import Format
from devicekit.weights.header import shown
from devicekit.weights.reading import Request

__all__ = ["Keys", "Rename", "Wanted", "requests", "selected", "selects", "tied"]

Keys: TypeAlias = "str | Iterable[str] | Callable[[str], bool] | None"
Rename: TypeAlias = "Mapping[str, str] | Callable[[str], str] | None"
Wanted: TypeAlias = "Callable[[str, Format, Any], Any]"
"""A tensor's name, its format and the framework's dtype for that, to the dtype that is wanted."""

GLOB = re.compile(r"[*?[]")


def selects(keys: Keys) -> Callable[[str], bool]:
    """A predicate for names, from names, glob patterns (``*.lora_A.*``) or a predicate."""
    if keys is None:
        return lambda _: True
    if callable(keys):
        return lambda name: bool(keys(name))
    exact = frozenset((keys,) if isinstance(keys, str) else keys)
    patterns = [pattern for pattern in exact if GLOB.search(pattern)]  # thousands of plain names cost nothing
    return lambda name: name in exact or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def selected(found: Checkpoint, keys: Keys, rename: Rename) -> dict[str, Stored]:
    """The wanted tensors under their new names; tied ones under each of them.

    Raises:
        WeightsError: ``keys`` fits none, or two get the same name.
    """
    wanted, new_name = selects(keys), _renaming(rename)
    chosen: dict[str, Stored] = {}
    old_names: dict[str, str] = {}
    for name, stored in {**found.tensors, **_aliases(found)}.items():
        if not wanted(name):
            continue
        called = new_name(name)
        if not isinstance(called, str):
            why = f"rename= gives {called!r:.40} for {shown(name)}, which is no name"
            raise WeightsError(f"{found.label} cannot be loaded.", why=why)
        if chosen.get(called, stored) is not stored:
            why = f"{shown(old_names[called])} and {shown(name)} would both be called {shown(called)}"
            raise WeightsError(f"{found.label} cannot be loaded.", why=why, try_="another rename=")
        chosen[called] = stored
        old_names[called] = name
    if keys is not None and found.tensors and not chosen:
        some = ", ".join(shown(name) for name in list(found.tensors)[:3])
        why = f"keys= fits none of its {len(found.tensors)} tensors, such as {some}"
        raise WeightsError(f"{found.label} has no such weights.", why=why, try_="a pattern such as '*.weight'")
    return chosen


def _aliases(found: Checkpoint) -> dict[str, Stored]:
    """Tied tensors by their second names, which safetensors keeps in the metadata (``save_model``)."""
    return {
        alias: found.tensors[kept]
        for alias, kept in found.metadata.items()
        if alias != "format" and kept in found.tensors and alias not in found.tensors
    }


def tied(chosen: Mapping[str, Stored]) -> dict[str, str]:
    """Second names of tensors that the files hold once, and the first ones."""
    first: dict[int, str] = {}
    return {name: kept for name, stored in chosen.items() if (kept := first.setdefault(id(stored), name)) != name}


def _renaming(rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return lambda name: name
    if callable(rename):
        return rename
    return lambda name: rename.get(name, name)


def requests(chosen: Mapping[str, Stored], arrays: Arrays, wanted: Wanted) -> dict[str, Request]:
    """Each tensor with its dtype in the file and the one that is wanted.

    Raises:
        WeightsError: the framework has no dtype for what the file holds, or cannot cast it to the one that is wanted.
    """
    made: dict[str, Request] = {}
    dtypes: dict[str, Any] = {}
    casts: set[tuple[Any, Any]] = set()
    for name, stored in chosen.items():
        held = stored.entry.format
        if held.name not in dtypes:
            dtypes[held.name] = _dtype(arrays, stored)
        dtype = dtypes[held.name]
        target = wanted(name, held, dtype)
        if target != dtype and (dtype, target) not in casts:
            _check_cast(arrays, stored, dtype, target)
            casts.add((dtype, target))
        made[name] = Request(name, stored, dtype, target)
    return made


def _dtype(arrays: Arrays, stored: Stored) -> Any:
    try:
        return arrays.dtype(stored.entry.format)
    except WeightsError as exc:
        what = f"{stored.source.label} cannot be loaded."
        raise WeightsError(what, why=f"{exc.why}, the format of {shown(stored.entry.name)}", try_=exc.try_) from None


def _check_cast(arrays: Arrays, stored: Stored, dtype: Any, target: Any) -> None:
    try:
        arrays.cast(arrays.empty(1, target), arrays.empty(1, dtype))
    except (RuntimeError, TypeError) as exc:  # NotImplementedError is a RuntimeError
        why = f"{shown(stored.entry.name)} cannot be cast from {dtype} to {target}: {exc}"
        raise WeightsError(f"{stored.source.label} cannot be loaded.", why=why, try_="another dtype=") from None
