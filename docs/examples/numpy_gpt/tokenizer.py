"""Text as numbers: one for each character."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from numpy_gpt.errors import BadInput
from numpy_gpt.tensor import Array

__all__ = ["Tokenizer"]


class Tokenizer:
    """The characters that a model knows.

    Args:
        characters: each once; the place in it is the number.

    Raises:
        BadInput: there is none, or one comes twice.
    """

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise BadInput("an alphabet is a text in which every character comes once")
        self.characters = characters
        self._numbers = {character: number for number, character in enumerate(characters)}

    @classmethod
    def of(cls, text: str) -> Tokenizer:
        """Of all the characters of a text."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Array:
        """Numbers, one a character.

        Raises:
            BadInput: the model does not know a character.
        """
        strange = sorted(set(text) - self._numbers.keys())
        if strange:
            raise BadInput(f"the model has never seen {''.join(strange[:20])!r}; it knows {self.characters!r}")
        return np.array([self._numbers[character] for character in text], np.int64)

    def decode(self, numbers: Iterable[int]) -> str:
        """The characters again."""
        return "".join(self.characters[number] for number in numbers)
