"""Rotary position embeddings: pairs of a head's first dimensions are turned by angles that grow with the position."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rotary_emb", "apply_rotary_emb_func"]


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """Turn the first dimensions of each head, twice as many as ``cos`` has columns.

    Args:
        x: (batch, length, heads, dimension), or (total, heads, dimension) with ``cu_seqlens``.
        cos: (positions, half the turned dimensions).
        sin: alike.
        interleaved: pairs are neighbours; else the one is half the turned dimensions behind the other.
        inplace: write into ``x`` and return it.
        seqlen_offsets: the position at which sequences begin, or (batch,) of them.
        cu_seqlens: (batch + 1,), where sequences begin that stand behind one another.
        max_seqlen: not needed here.
    """
    positions = _positions(x, seqlen_offsets, cu_seqlens)
    turned = _turned(x, cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2), interleaved)
    return x.copy_(turned) if inplace else turned


apply_rotary_emb_func = apply_rotary_emb


def _positions(x: Tensor, offsets: int | Tensor, starts: Tensor | None) -> Tensor:
    if starts is None:
        places = torch.arange(x.shape[1], device=x.device)
        return places + (offsets[:, None] if isinstance(offsets, Tensor) else offsets)
    lengths = starts.diff().long()
    first = starts[:-1] - offsets
    return torch.arange(x.shape[0], device=x.device) - first.repeat_interleave(lengths)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """In float32 at least, as the package's kernel computes."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = 2 * cos.shape[-1]
    cos, sin, moving = cos.to(wide), sin.to(wide), x[..., :size].to(wide)
    if interleaved:
        one, other = moving[..., ::2], moving[..., 1::2]
        moved = torch.stack((one * cos - other * sin, one * sin + other * cos), -1).flatten(-2)
    else:
        one, other = moving.chunk(2, -1)
        moved = torch.cat((one * cos - other * sin, one * sin + other * cos), -1)
    return torch.cat((moved.to(x.dtype), x[..., size:]), -1)
