"""What a file holds, by name: tensors, plain values beside them, and what has to be left out.

Names are the keys on the way to a tensor, joined by dots: ``{"model": {"fc.weight": ...}}`` gives ``model.fc.weight``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from devicekit.errors import WeightsError
from devicekit.pickles.known import is_script
from devicekit.pickles.stand_ins import Array, Dense, Dtype, Global, Odd, Opaque, Piece, Refused, Storage
from devicekit.weights.header import LONGEST, UnbelievableError, shown

__all__ = ["Contents", "contents", "part"]

DEEPEST = 100
"""Containers within each other."""
SPARE_VISITS = 100_000
VISITS_A_STEP = 4
"""Values that are looked at for each instruction of the pickle. An instruction makes at most one, but a few that share
their parts can unfold to any number."""
LONGEST_NAMES = LONGEST
"""Letters of all names together: more than a header holds."""
LONGEST_TEXTS = 10_000_000
"""Letters of all texts together; only few of them are kept."""
ALONE = "tensor"
"""What a tensor is called that is all the file holds."""
NOTHING = object()
"""No plain value."""


class Contents:
    """What was found.

    Args:
        most: how many values are looked at before the file is refused.
    """

    def __init__(self, most: int) -> None:
        self.tensors: dict[str, Dense] = {}
        self.values: Any = NOTHING
        """Numbers, texts, lists and dictionaries, as JSON has them; ``NOTHING`` where there are none."""
        self.left_out: Counter[str] = Counter()
        """In words, and how many."""
        self._left = most
        self._letters_of_names = LONGEST_NAMES
        self._letters_of_texts = LONGEST_TEXTS
        self._open: set[int] = set()
        """Containers that are being looked at."""
        self._seen: set[int] = set()
        """What was looked at in what is left out."""

    def visit(self, value: Any, name: str, depth: int = 0) -> Any:
        """Keep the tensors, and give what is left: a plain value, or ``NOTHING``."""
        self._left -= 1
        if self._left < 0:
            raise UnbelievableError("its values unfold to many times what the file holds")
        if depth > DEEPEST or id(value) in self._open:
            raise UnbelievableError(f"its values lie more than {DEEPEST} deep in each other, or in themselves")
        self._letters_of_names -= len(name)
        if self._letters_of_names < 0:
            raise UnbelievableError(f"its names have more than {LONGEST_NAMES} letters")
        children = _children(value)
        if children is None:
            return self._leaf(value, name)
        self._open.add(id(value))
        kept: dict[str, Any] = {}
        for key, child in children:
            text = _text(key)
            if text is None:
                self._leave(f"a value under a key that is no text ({_kind(key)})", child)
            elif text in kept:
                raise UnbelievableError(f"it has two keys that both read {shown(text)}")
            else:
                kept[text] = self.visit(child, f"{name}.{text}" if name else text, depth + 1)
        self._open.discard(id(value))
        plain = {key: made for key, made in kept.items() if made is not NOTHING}
        if isinstance(value, Opaque):
            self._leave("the class and the settings of a module, whose tensors are kept", *_settings(value))
        elif len(plain) == len(kept) and isinstance(value, list | tuple):
            return list(plain.values())
        return plain if plain or not (kept or isinstance(value, Opaque)) else NOTHING

    def _leaf(self, value: Any, name: str) -> Any:
        if isinstance(value, Array):
            value = value.content
            if not isinstance(value, Dense | Refused):
                self.left_out[value or "an array without content"] += 1
                return NOTHING
        if isinstance(value, Storage):
            value = _flat(value)
        if isinstance(value, Refused):
            raise WeightsError(f"{shown(name)} cannot be converted.", why=value.why, try_=value.fix)
        if isinstance(value, Dense):
            name = name or ALONE
            if name in self.tensors:
                raise UnbelievableError(f"two of its tensors would be called {shown(name)}")
            self.tensors[name] = value
            return NOTHING
        plain = _plain(value)
        if isinstance(plain, str):
            self._letters_of_texts -= len(plain)
            plain = plain if self._letters_of_texts >= 0 else NOTHING
        if plain is NOTHING:
            self._leave(_kind(value), value)
        return plain

    def _leave(self, what: str, *values: Any) -> None:
        self.left_out[what] += 1
        lost = self._tensors_in(values)
        if lost:
            self.left_out["a tensor in an object that is left out"] += lost

    def _tensors_in(self, values: Iterable[Any]) -> int:
        """How many there are; each object of the file is looked at once, whoever holds it."""
        found, waiting = 0, list(values)
        while waiting:
            here = waiting.pop()
            if id(here) in self._seen:
                continue
            self._seen.add(id(here))
            found += isinstance(here, Dense | Refused | Storage | Array)
            if isinstance(here, Opaque):
                waiting += here.given
            elif isinstance(here, dict):
                waiting += here.values()
            elif isinstance(here, list | tuple):
                waiting += here
        return found


def contents(root: Any, steps: int) -> Contents:
    """What a file holds, whose pickles had so many instructions.

    Raises:
        UnbelievableError: it has no end, or two tensors of one name.
        WeightsError: it holds a tensor that cannot be converted.
    """
    made = Contents(SPARE_VISITS + VISITS_A_STEP * steps)
    made.values = made.visit(root, "")
    return made


def part(root: Any, key: str) -> Any:
    """What lies under a key, or under several that are joined by dots.

    Raises:
        KeyError: there is none; with the keys that are there.
    """
    children = {_text(known) or "": child for known, child in _children(root) or ()}
    if key in children:
        return children[key]
    for first, child in children.items():
        if key.startswith(f"{first}."):
            return part(child, key[len(first) + 1 :])
    raise KeyError(*children)


# -- kinds of values -------------------------------------------------------------------------------
def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """What is in it, with its keys; None: it is no container."""
    if isinstance(value, list | tuple) and not isinstance(value, Piece):
        return list(enumerate(value))
    held = _layer(value) if isinstance(value, Opaque) else value
    return list(held.items()) if isinstance(held, dict) else None


_GROUPS = ("_parameters", "_buffers", "_modules")


def _state(value: Opaque) -> dict[Any, Any] | None:
    """The attributes of a module; None: it is none."""
    states = [given for given in value.given if isinstance(given, dict)]
    if is_script(value.of):
        return states[-1] if states else {}
    return next((state for state in states if state.keys() >= set(_GROUPS)), None)


def _layer(value: Opaque) -> dict[Any, Any] | None:
    """Parameters, lasting buffers and layers of a module that was saved whole; None: it is none."""
    state = _state(value)
    if state is None or is_script(value.of):
        return None if state is None else {key: child for key, child in state.items() if not _is_setting(child)}
    passing = state.get("_non_persistent_buffers_set")
    made: dict[Any, Any] = {}
    for group in _GROUPS:
        held = state[group] if isinstance(state[group], dict) else {}
        made |= {key: child for key, child in held.items() if child is not None}
    return {key: child for key, child in made.items() if not (isinstance(passing, list) and key in passing)}


def _settings(value: Opaque) -> list[Any]:
    """All else in a module."""
    state, layer = _state(value) or {}, _layer(value) or {}
    buffers = state.get("_buffers")
    fleeting = [b for key, b in buffers.items() if key not in layer] if isinstance(buffers, dict) else []
    return [child for key, child in state.items() if key not in layer and key not in _GROUPS] + fleeting


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _flat(storage: Storage) -> Dense | Refused:
    """A storage by itself."""
    if storage.format is None:
        return Refused(f"safetensors has no format for a {storage.kind}", "another dtype")
    return Dense(storage, storage.format, (storage.nbytes // storage.itemsize,), (1,))


def _text(key: Any) -> str | None:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):  # of Python 2
        return key.decode("utf-8", "backslashreplace")
    if key is None or isinstance(key, bool | float):
        return str(key)
    return str(key) if isinstance(key, int) and key.bit_length() <= 64 else None


def _plain(value: Any) -> Any:
    """As JSON has it; ``NOTHING`` where it has no such thing."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 1024 else NOTHING
    return str(value) if isinstance(value, Global) else NOTHING


def _kind(value: Any) -> str:
    """What is left out, in words."""
    if isinstance(value, Odd):
        value = value.key
    if isinstance(value, Opaque):
        return f"an object of the class {str(value.of)!a:.120}"
    if isinstance(value, bytes | Piece):
        return "a value of raw bytes"
    if isinstance(value, Dtype):
        return "a dtype of NumPy"
    return {int: "a number of more than 300 digits", complex: "a complex number", str: "a long text"}.get(
        type(value), "a value"
    )
