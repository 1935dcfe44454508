"""What is computed: a block of a language model with a head behind it, as a graph, and numbers to feed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.graph import (
    Graph,
    GraphError,
    Value,
    attention,
    mean,
    placeholder,
    reshape,
    rms_norm,
    silu,
    softmax,
    transpose,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HEAD", "Size", "block", "draw"]

HEAD = 64
"""Numbers in a head of attention."""
CLASSES = 32


@dataclass(frozen=True)
class Size:
    """How large: ``4x128x256`` is 4 texts of 128 tokens, each token 256 numbers."""

    batch: int
    length: int
    width: int

    @classmethod
    def of(cls, text: str) -> Size:
        """Read ``BATCHxLENGTHxWIDTH``.

        Raises:
            GraphError: it is none, or the width cannot be cut into heads.
        """
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise GraphError(f"{text!r} is no size: BATCHxLENGTHxWIDTH, such as 4x128x256")
        size = cls(*map(int, parts))
        if size.width % HEAD:
            raise GraphError(f"the width {size.width} is no multiple of {HEAD}, the size of a head")
        return size

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}x{self.width}"


def block(size: Size) -> Graph:
    """Attention and a gated layer, each behind a norm and added to what came in; then a class for each text."""
    tokens = (size.batch, size.length, size.width)
    width, hidden = size.width, 4 * size.width

    def heads(x: Value) -> Value:  # (batch, length, width) to (batch, heads, length, HEAD)
        return transpose(reshape(x, (*tokens[:2], width // HEAD, HEAD)), (0, 2, 1, 3))

    x = placeholder("x", tokens)
    normed = rms_norm(x, placeholder("norm_1", (width,)))
    query, key, value = (heads(normed @ placeholder(name, (width, width))) for name in ("query", "key", "value"))
    mixed = reshape(transpose(attention(query, key, value, causal=True), (0, 2, 1, 3)), tokens)
    x = x + mixed @ placeholder("mix", (width, width))
    normed = rms_norm(x, placeholder("norm_2", (width,)))
    gate = silu(normed @ placeholder("gate", (width, hidden)) + placeholder("gate_bias", (hidden,)))
    x = x + (gate * (normed @ placeholder("up", (width, hidden)))) @ placeholder("down", (hidden, width))
    scores = softmax(mean(x, 1) @ placeholder("head", (width, CLASSES)))
    return Graph({"tokens": x, "scores": scores})


def draw(graph: Graph, seed: int) -> dict[str, NDArray[Any]]:
    """Numbers for every input, in float32; the weights so small that what goes through them stays about as large."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for name, value in graph.inputs.items():
        scale = value.shape[0] ** -0.5 if len(value.shape) == 2 else 1.0
        drawn[name] = (generator.standard_normal(value.shape) * scale).astype(np.float32)
    return drawn
