"""A GPT: characters in, for each place the scores of the character that comes next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from numpy_gpt.errors import BadInput
from numpy_gpt.functions import dropout, embedding, gelu, softmax
from numpy_gpt.layers import LayerNorm, Linear, Parameters
from numpy_gpt.tensor import Array, Tensor

__all__ = ["GPT", "Cache", "Shape"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Raises:
        BadInput: there is no such model.
    """

    vocabulary: int
    """Different characters."""
    context: int = 64
    """Characters that it sees at once."""
    layers: int = 2
    heads: int = 4
    width: int = 64
    """Numbers for each character; a multiple of ``heads``."""
    dropout: float = 0.0
    """The part that is left out while it learns, from 0 to below 1."""
    tied: bool = True
    """The scores come from the table that the characters go in by."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise BadInput(f"{name} must be a whole number from 1, and is {size!r}")
        if self.width % self.heads:
            raise BadInput(f"a width of {self.width} cannot be divided among {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"dropout must be from 0 to below 1, and is {self.dropout}")


class Cache:
    """Keys and values of the characters that were read already, so that the next one costs one step and not all.

    Args:
        shape: the model's sizes.
        dtype: the model's number format.
    """

    def __init__(self, shape: Shape, dtype: np.dtype[np.floating]) -> None:
        self.length = 0
        """Characters that were read."""
        self._held = np.zeros((2, shape.layers, 1, shape.heads, shape.context, shape.width // shape.heads), dtype)

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a layer so far with the new ones, each ``(1, heads, so far, size)``."""
        end = self.length + keys.shape[2]
        here = self._held[:, layer, :, :, :end]
        here[0, :, :, self.length :], here[1, :, :, self.length :] = keys.data, values.data
        return Tensor(here[0]), Tensor(here[1])


class Attention:
    """Each character looks back at those before it and at itself."""

    def __init__(self, parameters: Parameters, layer: int, shape: Shape) -> None:
        self.layer, self.shape = layer, shape
        name, width = f"blocks.{layer}.attention", shape.width
        self.query = Linear(parameters, f"{name}.query", width, width)
        self.key = Linear(parameters, f"{name}.key", width, width)
        self.value = Linear(parameters, f"{name}.value", width, width)
        self.out = Linear(parameters, f"{name}.out", width, width, deviation=_narrow(shape))

    def __call__(
        self, x: Tensor, mask: Array, generator: np.random.Generator | None = None, cache: Cache | None = None
    ) -> Tensor:
        """``(batch, length, width)`` from the same; ``mask`` is minus infinity where nobody may look."""
        size = self.shape.width // self.shape.heads
        query = self._heads(self.query(x) * (1 / math.sqrt(size)))
        key, value = self._heads(self.key(x)), self._heads(self.value(x))
        if cache is not None:
            key, value = cache.extended(self.layer, key, value)
        weights = softmax(query @ key.transpose(0, 1, 3, 2) + mask)
        mixed = dropout(weights, self.shape.dropout, generator) @ value
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(*x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """``(batch, heads, length, width / heads)``."""
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.shape.heads, -1).transpose(0, 2, 1, 3)


class Block:
    """Attention, then two layers on each character alone; each adds to what it was given in normal form."""

    def __init__(self, parameters: Parameters, layer: int, shape: Shape) -> None:
        name, width = f"blocks.{layer}", shape.width
        self.rate = shape.dropout
        self.before_attention = LayerNorm(parameters, f"{name}.before_attention", width)
        self.attention = Attention(parameters, layer, shape)
        self.before_wide = LayerNorm(parameters, f"{name}.before_wide", width)
        self.wide = Linear(parameters, f"{name}.wide", width, 4 * width)
        self.back = Linear(parameters, f"{name}.back", 4 * width, width, deviation=_narrow(shape))

    def __call__(
        self, x: Tensor, mask: Array, generator: np.random.Generator | None = None, cache: Cache | None = None
    ) -> Tensor:
        """``(batch, length, width)`` from the same."""
        x = x + dropout(self.attention(self.before_attention(x), mask, generator, cache), self.rate, generator)
        return x + dropout(self.back(gelu(self.wide(self.before_wide(x)))), self.rate, generator)


class GPT:
    """A transformer that reads from left to right.

    Args:
        shape: its sizes.
        parameters: an empty collection; the model's parameters are in it afterwards.

    Raises:
        BadInput: stored ones are not those of a model of these sizes.
    """

    def __init__(self, shape: Shape, parameters: Parameters) -> None:
        self.shape, self.parameters = shape, parameters
        self.tokens = parameters.normal("tokens", (shape.vocabulary, shape.width))
        self.positions = parameters.normal("positions", (shape.context, shape.width))
        self.blocks = [Block(parameters, layer, shape) for layer in range(shape.layers)]
        self.norm = LayerNorm(parameters, "norm", shape.width)
        self.head = None if shape.tied else Linear(parameters, "head", shape.width, shape.vocabulary, bias=False)
        parameters.complete()
        self.mask = np.triu(np.full((shape.context, shape.context), -np.inf, parameters.dtype), 1)

    def __call__(self, ids: Array, generator: np.random.Generator | None = None, cache: Cache | None = None) -> Tensor:
        """The scores ``(batch, length, vocabulary)`` of what follows each character.

        Args:
            ids: characters by number, ``(batch, length)``.
            generator: for dropout; without it nothing is dropped.
            cache: what was read before; it takes up what is read now. For a batch of one, and not for training.

        Raises:
            ValueError: with what was read before it is longer than the context.
        """
        begin = 0 if cache is None else cache.length
        end = begin + ids.shape[1]
        if end > self.shape.context:
            raise ValueError(f"{end} characters are more than the context of {self.shape.context}")
        x = dropout(embedding(self.tokens, ids) + self.positions[begin:end], self.shape.dropout, generator)
        for block in self.blocks:
            x = block(x, self.mask[begin:end, :end], generator, cache)
        if cache is not None:
            cache.length = end
        x = self.norm(x)
        if self.head is not None:
            return self.head(x)
        scores = x.reshape(-1, self.shape.width) @ self.tokens.transpose()
        return scores.reshape(*ids.shape, self.shape.vocabulary)


def _narrow(shape: Shape) -> float:
    """The deviation of what adds to the stream: so many times that it would otherwise grow (GPT-2's section 2.3)."""
    return 0.02 / math.sqrt(2 * shape.layers)
