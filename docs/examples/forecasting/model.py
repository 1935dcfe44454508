"""What comes next: a causal transformer on the tokens of candles, and how tokens are drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as all of torch's users call it

from forecasting.features import STAMPS

__all__ = ["CandleModel", "Config", "Sampling", "sample"]

Memory = tuple[Tensor, Tensor]
"""Keys and values of the tokens so far, each of shape (batch, heads, tokens, width / heads)."""


@dataclass(frozen=True)
class Config:
    """How large tokenizer and model are."""

    levels: tuple[int, ...] = (7, 5, 5, 5)
    """Of the tokenizer; their product is the number of tokens."""
    width: int = 96
    layers: int = 2
    heads: int = 4
    context: int = 64
    """The most candles that are looked at."""
    horizon: int = 24
    """The most candles that are forecast."""


class Block(nn.Module):
    """Attention to what came before, then a layer for each token by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.queries = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.alone = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Tokens of shape (batch, n, width): the first n, or one that comes after those in the memory."""
        batch, n, width = x.shape
        parts = self.queries(self.before(x)).view(batch, n, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if memory is not None:
            key, value = torch.cat([memory[0], key], dim=2), torch.cat([memory[1], value], dim=2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=memory is None)
        x = x + self.mixed(seen.transpose(1, 2).reshape(batch, n, width))
        return x + self.alone(x), (key, value)


class CandleModel(nn.Module):
    """How likely each token is to come next, given those before it and the time of the one that comes."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.places = nn.Embedding(config.context + config.horizon, config.width)
        self.times = nn.Linear(STAMPS, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.last = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary)

    def forward(self, tokens: Tensor, stamps: Tensor) -> Tensor:
        """Logits of shape (batch, n, vocabulary), for what follows each of the tokens.

        Args:
            tokens: shape (batch, n).
            stamps: of the times of the tokens that follow, shape (batch, n, 4).
        """
        return self.advance(tokens, stamps)[0]

    def advance(
        self, tokens: Tensor, stamps: Tensor, memory: list[Memory] | None = None
    ) -> tuple[Tensor, list[Memory]]:
        """The same, with what was computed: given again with one more token, nothing is computed twice."""
        begin = 0 if memory is None else memory[0][0].shape[2]
        places = torch.arange(begin, begin + tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(places) + self.times(stamps)
        kept = []
        for at, block in enumerate(self.blocks):
            x, made = block(x, None if memory is None else memory[at])
            kept.append(made)
        return self.head(self.last(x)), kept


@dataclass(frozen=True)
class Sampling:
    """How boldly the next token is drawn."""

    temperature: float = 1.0
    """Below 1 the likely tokens become likelier."""
    top_k: int | None = None
    """Only this many of the likeliest."""
    top_p: float = 1.0
    """Only the likeliest that together have this probability."""


@torch.inference_mode()
def sample(model: CandleModel, tokens: Tensor, stamps: Tensor, noise: Tensor, how: Sampling) -> Tensor:
    """Draw what follows, shape (samples, horizon).

    Args:
        model: in evaluation mode.
        tokens: what came before, shape (n,).
        stamps: of the times of all tokens but the first, shape (n + horizon - 1, 4).
        noise: standard normal numbers, shape (samples, horizon); the only chance in it.
        how: to draw.
    """
    count, (samples, horizon) = len(tokens), noise.shape
    chances = torch.special.ndtr(noise)  # uniform in 0 to 1
    logits, memory = model.advance(tokens[None], stamps[None, :count])
    # What came before is the same for all samples: computed once, then shared.
    memory = [(key.expand(samples, -1, -1, -1), value.expand(samples, -1, -1, -1)) for key, value in memory]
    drawn = [_draw(logits[:, -1].expand(samples, -1), chances[:, 0], how)]
    for step in range(1, horizon):
        stamp = stamps[count + step - 1].expand(samples, 1, -1)
        logits, memory = model.advance(drawn[-1][:, None], stamp, memory)
        drawn.append(_draw(logits[:, -1], chances[:, step], how))
    return torch.stack(drawn, dim=1)


def _draw(logits: Tensor, chance: Tensor, how: Sampling) -> Tensor:
    """A token for each row of logits, of shape (samples, vocabulary), by a number in 0 to 1 for each."""
    ordered, tokens = torch.sort(logits.float() / how.temperature, dim=-1, descending=True, stable=True)
    ordered, tokens = ordered[:, : how.top_k], tokens[:, : how.top_k]
    likely = torch.softmax(ordered, dim=-1)
    before = likely.cumsum(-1) - likely
    likely = likely * (before < how.top_p)  # never the first one away
    reached = likely.cumsum(-1)
    place = (reached < chance[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    return tokens.gather(-1, place)[:, 0]
