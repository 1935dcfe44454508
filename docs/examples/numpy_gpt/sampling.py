"""Writing: one character after another, each drawn from what the model expects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import devicekit as dk
from numpy_gpt import checkpoint
from numpy_gpt.errors import BadInput
from numpy_gpt.model import GPT, Cache
from numpy_gpt.tensor import Array, forgetting
from numpy_gpt.tokenizer import Tokenizer

__all__ = ["Writer", "drawn"]


@dataclass(frozen=True)
class Writer:
    """A model that was trained, and its alphabet. It can be used by several threads at once."""

    dm: dk.DeviceManager
    model: GPT
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, dm: dk.DeviceManager) -> Writer:
        """From a folder that was trained into.

        Raises:
            BadInput: there is no model of this program.
            devicekit.WeightsError: the file is broken.
        """
        return cls(dm, *checkpoint.load(folder, dm))

    def write(
        self, prompt: str, count: int, *, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
    ) -> Iterator[str]:
        """Characters that follow the prompt, one at a time.

        Args:
            prompt: at least one character; of a long one the end counts.
            count: how many characters.
            temperature: 0 takes the likeliest; 1 draws as the model expects; more is bolder.
            top_k: draw from so many of the likeliest only.
            seed: the same one gives the same text.

        Raises:
            BadInput: an argument makes no sense; at once, not when the first character is asked for.
        """
        if not prompt:
            raise BadInput("the prompt is empty: it needs at least one character")
        if count < 1:
            raise BadInput(f"the number of characters must be 1 or more, and is {count}")
        if not 0 <= temperature < math.inf:
            raise BadInput(f"the temperature must be zero or more, and is {temperature}")
        if top_k is not None and top_k < 1:
            raise BadInput(f"top-k must be 1 or more, and is {top_k}")
        if not 0 <= seed < 2**64:
            raise BadInput(f"the seed must be a whole number from 0 to 2**64 - 1, and is {seed}")
        ids = self.tokenizer.encode(prompt)
        generator: Any = self.dm.create_generator(seed)
        return self._follow(ids, count, temperature, top_k, generator)

    def _follow(
        self, ids: Array, count: int, temperature: float, top_k: int | None, generator: np.random.Generator
    ) -> Iterator[str]:
        context = self.model.shape.context
        cache, unread = Cache(self.model.shape, self.model.parameters.dtype), ids[-context:]
        for _ in range(count):
            if cache.length + len(unread) > context:
                # Places are counted from the beginning, so what was read counts no more when the beginning moves.
                # It moves by half of the context, to read anew for every so many characters, and not for each.
                cache, unread = Cache(self.model.shape, self.model.parameters.dtype), ids[-(context + 1) // 2 :]
            with forgetting():
                scores = self.model(unread[None], cache=cache).data[0, -1]
            unread = np.array([drawn(scores, temperature, top_k, generator)])
            ids = np.append(ids[-context:], unread)
            yield self.tokenizer.decode(unread)


def drawn(scores: Array, temperature: float, top_k: int | None, generator: np.random.Generator) -> int:
    """A character's number.

    Args:
        scores: one for each, ``(vocabulary,)``.
        temperature: what they are divided by; 0 takes the highest.
        top_k: only so many of the highest count.
        generator: gives one number, also at temperature 0, so that texts of one seed can be compared.
    """
    chance = generator.random()
    if temperature == 0:
        return int(scores.argmax())
    order = np.argsort(-scores, kind="stable")[:top_k]
    # In float64: at a low temperature the quotients grow, and what adds up to 1 has to do so closely.
    with np.errstate(over="ignore"):  # what is endlessly unlikely has the weight zero
        weights = np.exp((scores[order].astype(np.float64) - float(scores.max())) / temperature)
    place = np.searchsorted(np.cumsum(weights), chance * weights.sum(), side="right")
    return int(order[min(place, len(order) - 1)])
