"""A transformer in plain torch, of GPT-2's shape, with random weights: what a model costs, without anybody's library.

The shapes are those of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019); its medium size,
hidden 1024 and 24 layers, has 354 million parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["HEAD", "Shape", "Transformer"]

HEAD = 64
"""The width of an attention head; the hidden size is a multiple of it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a transformer is."""

    hidden: int = 1024
    layers: int = 24
    vocabulary: int = 50257
    positions: int = 1024

    @property
    def parameters(self) -> int:
        """How many numbers its weights have."""
        return 12 * self.hidden**2 * self.layers + (self.vocabulary + self.positions) * self.hidden

    def flops(self, batch: int, seq: int) -> int:
        """Floating-point operations of a forward: products only, a multiplication and an addition counted as two.

        Attention is counted whole, though half of it is masked.
        """
        tokens = batch * seq
        layer = 24 * tokens * self.hidden**2 + 4 * tokens * seq * self.hidden
        return layer * self.layers + 2 * batch * self.hidden * self.vocabulary


class Transformer:
    """Tokens (batch, seq) to the logits of each row's last token (batch, vocabulary).

    Args:
        torch: the torch module.
        shape: how large.
        normal: makes a tensor of normal numbers: shape, standard deviation.
    """

    def __init__(self, torch: Any, shape: Shape, normal: Callable[[tuple[int, ...], float], Any]) -> None:
        self._torch = torch
        self.shape = shape
        hidden = shape.hidden
        self._tokens = normal((shape.vocabulary, hidden), 0.02)
        self._positions = normal((shape.positions, hidden), 0.02)
        sides = ((3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden))
        self._layers = [tuple(normal(side, 0.02) for side in sides) for _ in range(shape.layers)]

    def cast(self, dtype: Any) -> Transformer:
        """The same with its weights in this dtype."""
        made = object.__new__(Transformer)
        made._torch, made.shape = self._torch, self.shape
        made._tokens, made._positions = self._tokens.to(dtype), self._positions.to(dtype)
        made._layers = [tuple(weight.to(dtype) for weight in layer) for layer in self._layers]
        return made

    def __call__(self, tokens: Any) -> Any:
        """The logits of each row's last token."""
        linear, embedding = self._torch.nn.functional.linear, self._torch.nn.functional.embedding
        x = embedding(tokens, self._tokens) + self._positions[: tokens.shape[1]]
        for layer in self._layers:
            x = self._through(layer, x)
        return linear(self._norm(x[:, -1]), self._tokens)

    def _through(self, layer: tuple[Any, ...], x: Any) -> Any:
        functional = self._torch.nn.functional
        joint, out, up, down = layer
        batch, seq, hidden = x.shape
        split = functional.linear(self._norm(x), joint).view(batch, seq, 3, hidden // HEAD, HEAD)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + functional.linear(seen.transpose(1, 2).reshape(batch, seq, hidden), out)
        return x + functional.linear(functional.gelu(functional.linear(self._norm(x), up)), down)

    def _norm(self, x: Any) -> Any:
        return self._torch.nn.functional.layer_norm(x, (self.shape.hidden,))
