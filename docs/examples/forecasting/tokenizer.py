"""A candle becomes one token: an autoencoder whose few middle numbers are rounded to a grid.

Finite scalar quantisation (Mentzer et al., 2023, arXiv:2309.15505): tanh, then rounding, whose gradient is taken to be
1. It needs no codebook and no further loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forecasting.features import FEATURES

__all__ = ["CandleTokenizer"]


class CandleTokenizer(nn.Module):
    """Features of candles to tokens and back.

    Args:
        levels: steps of each rounded number, all odd, so that 0 is one of them; their product is the vocabulary.
        width: of the hidden layers.
    """

    reach: Tensor
    base: Tensor

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.vocabulary = math.prod(levels)
        self.encoder = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, len(levels)))
        self.decoder = nn.Sequential(nn.Linear(len(levels), width), nn.GELU(), nn.Linear(width, FEATURES))
        # Buffers, so that they go where the module goes, and are saved with it.
        self.register_buffer("reach", torch.tensor([(level - 1) // 2 for level in levels]))
        self.register_buffer("base", torch.tensor([math.prod(levels[:place]) for place in range(len(levels))]))

    def forward(self, features: Tensor) -> Tensor:
        """What is left of features of shape (..., 6) after rounding; gradients pass."""
        bounded = torch.tanh(self.encoder(features)) * self.reach
        rounded = bounded + (bounded.round() - bounded).detach()
        return self.decoder(rounded / self.reach)  # type: ignore[no-any-return]

    def encode(self, features: Tensor) -> Tensor:
        """Features of shape (..., 6) as tokens of shape (...)."""
        steps = (torch.tanh(self.encoder(features)) * self.reach).round().long() + self.reach
        return (steps * self.base).sum(-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens of shape (...) as features of shape (..., 6)."""
        steps = tokens[..., None] // self.base % (2 * self.reach + 1) - self.reach
        return self.decoder(steps / self.reach)  # type: ignore[no-any-return]
