"""Attention by its formula: softmax(scores) @ values, with all that flash-attn can do to the scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["How", "Result", "attention"]

LARGEST_HEAD = 256


@dataclass(frozen=True)
class How:
    """The options of one call, with flash-attn's meanings."""

    dropout: float = 0.0
    scale: float | None = None
    """None: 1 / sqrt(head dimension)."""
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    """Keys to the left and to the right of a query's own that it sees; -1: all."""
    softcap: float = 0.0
    """Above 0: scores are kept below it by tanh."""
    alibi: Tensor | None = None
    """Slopes, (heads,) or (batch, heads): the score falls by slope * distance."""
    wants_scores: bool = False
    """The logarithm of each row's sum, and the probabilities, are wanted too."""

    @property
    def right(self) -> int:
        """As in ``window``; a causal mask ends at the query's own key."""
        return 0 if self.causal else self.window[1]


class Result(NamedTuple):
    """What came out: (batch, length, heads, dimension); (batch, heads, length); (batch, heads, length, keys)."""

    out: Tensor
    log_sum: Tensor | None = None
    probabilities: Tensor | None = None
    """Empty without dropout; negative where dropped."""


def attention(q: Tensor, k: Tensor, v: Tensor, how: How) -> Result:
    """Attention of tensors (batch, length, heads, dimension); fewer heads of keys serve groups of queries' heads.

    The last query stands at the last key. A query that sees no key gives zeros, and infinity for its sum's logarithm.

    Raises:
        RuntimeError: flash-attn takes no such shapes or options either.
    """
    _check(q, k, how)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    queries, keys = q.shape[2], k.shape[2]
    position = torch.arange(queries, device=q.device)[:, None] + (keys - queries)
    distance = position - torch.arange(keys, device=q.device)
    seen = _seen(distance, how)
    blind = _blind(position[:, 0], keys, how)
    if seen is not None and blind is not None:
        seen = seen | blind[:, None]  # a row of nothing would be nan, and its gradient too
    bias = None if how.alibi is None else -how.alibi[..., None, None] * distance.abs()
    with torch.autocast(q.device.type, enabled=False):
        if how.dropout or how.softcap > 0 or how.wants_scores or not keys:
            result = _by_formula(q, k, v, how, seen, bias)
        else:
            mask = seen if bias is None else _as_bias(bias, seen, q)
            result = Result(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=how.scale))
    return _shown(result, blind)


def _check(q: Tensor, k: Tensor, how: How) -> None:
    if q.shape[-1] > LARGEST_HEAD:
        raise RuntimeError(f"FlashAttention forward only supports head dimension at most {LARGEST_HEAD}")
    if q.shape[2] % k.shape[2]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")
    if not 0 <= how.dropout < 1:
        raise RuntimeError(f"p_dropout should be in [0, 1), and it is {how.dropout}")
    if how.dropout and how.softcap > 0:
        raise RuntimeError("Softcapping does not support dropout for now")


def _seen(distance: Tensor, how: How) -> Tensor | None:
    """Which keys each query sees; None: all."""
    left, right = how.window[0], how.right
    if left < 0 and right < 0:
        return None
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    return seen


def _blind(position: Tensor, keys: int, how: How) -> Tensor | None:
    """Which queries see no key: without keys all of them, and those whose last key would stand before the first."""
    if not keys:
        return torch.ones_like(position, dtype=torch.bool)
    first = keys - len(position)
    return position + how.right < 0 if 0 <= how.right < -first else None


def _as_bias(bias: Tensor, seen: Tensor | None, q: Tensor) -> Tensor:
    """Of the scores' dtype and four dimensions, as scaled_dot_product_attention wants it."""
    if seen is not None:
        bias = bias.masked_fill(~seen, -math.inf)
    return (bias if bias.dim() == 4 else bias[None]).expand(q.shape[0], *[-1] * 3).to(q.dtype)


def _by_formula(q: Tensor, k: Tensor, v: Tensor, how: How, seen: Tensor | None, bias: Tensor | None) -> Result:
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if how.scale is None else how.scale
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * scale
    if how.softcap > 0:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    probabilities = scores.softmax(-1)
    if not how.dropout:
        empty = probabilities.new_empty(0, dtype=q.dtype)
        return Result((probabilities @ v.to(wide)).to(q.dtype), scores.logsumexp(-1), empty)
    kept = torch.rand_like(probabilities) >= how.dropout
    out = (probabilities * kept / (1 - how.dropout)) @ v.to(wide)
    signed = torch.where(kept, probabilities, -probabilities)
    return Result(out.to(q.dtype), scores.logsumexp(-1), signed.to(q.dtype))


def _shown(result: Result, blind: Tensor | None) -> Result:
    out, log_sum, probabilities = result
    if blind is not None:
        out = out.masked_fill(blind[:, None], 0)
        log_sum = None if log_sum is None else log_sum.masked_fill(blind, math.inf)
        if probabilities is not None and probabilities.numel():
            probabilities = probabilities.masked_fill(blind[:, None], 0)
    return Result(out.transpose(1, 2), log_sum, probabilities)
