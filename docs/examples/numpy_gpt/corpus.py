"""The text that a model learns from: a file, or sentences made by a small grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import devicekit as dk
from numpy_gpt.errors import BadInput

__all__ = ["BUILT_IN", "read"]

BUILT_IN = "built-in"
SENTENCES = 2000  # about 80,000 characters
SEED = 1

DESCRIPTIONS = ("small", "old", "brown", "quiet", "hungry", "clever", "tired", "grey")
BEINGS = ("fox", "bird", "farmer", "horse", "child", "goat", "baker", "cat")
MANY = {"fox": "foxes", "child": "children"}
DEEDS = ("see", "follow", "find", "help", "hear", "greet", "feed", "draw")
PLACES = ("near the river", "in the garden", "behind the mill", "at the gate", "in the rain", "under the old tree")


def read(source: str, dm: dk.DeviceManager) -> str:
    """The text of a UTF-8 file, or the built-in one, which is the same every time.

    Raises:
        BadInput: the file cannot be read, or is no text.
    """
    if source == BUILT_IN:
        generator: Any = dm.create_generator(SEED)
        return "".join(_sentence(generator) for _ in range(SENTENCES))
    try:
        return Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{source} is no UTF-8 text: byte {error.start} is not") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadInput(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _sentence(generator: np.random.Generator) -> str:
    """One line: who, does what, to whom, and now and then where. One of them follows, and several follow."""
    several = bool(generator.integers(2))
    words = [_who(generator, several), _one(generator, DEEDS) + ("" if several else "s")]
    words.append(_who(generator, bool(generator.integers(2))))
    if generator.integers(2):
        words.append(_one(generator, PLACES))
    return " ".join(words) + ".\n"


def _who(generator: np.random.Generator, several: bool) -> str:
    being = _one(generator, BEINGS)
    number = _one(generator, ("two", "three", "many")) if several else "the"
    return f"{number} {_one(generator, DESCRIPTIONS)} {MANY.get(being, being + 's') if several else being}"


def _one(generator: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(generator.integers(len(words)))]
