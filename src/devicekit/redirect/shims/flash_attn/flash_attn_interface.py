"""The functions by flash-attn's names, arguments and layouts.

``deterministic`` and ``num_splits`` choose among the package's kernels, and change nothing here.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from .formula import How, Result, attention
from .layers.rotary import apply_rotary_emb

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

Window = tuple[int, int]
Answer = Tensor | tuple[Any, ...]
"""The output, or with ``return_attn_probs`` also the logarithms of the rows' sums, and the probabilities."""


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Answer:
    """Of ``q`` (batch, length, heads, dimension), and ``k`` and ``v`` with as many heads, or a divisor of that."""
    result = attention(
        q, k, v, How(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs)
    )
    return tuple(result) if return_attn_probs else result.out


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Answer:
    """Of (batch, length, 3, heads, dimension)."""
    masks = (causal, window_size, softcap, alibi_slopes)
    options: Any = (dropout_p, softmax_scale, *masks, deterministic, return_attn_probs)
    q, k, v = qkv.unbind(2)
    return flash_attn_func(q, k, v, *options)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Answer:
    """Of ``q`` (batch, length, heads, dimension) and ``kv`` (batch, keys, 2, heads, dimension)."""
    masks = (causal, window_size, softcap, alibi_slopes)
    options: Any = (dropout_p, softmax_scale, *masks, deterministic, return_attn_probs)
    k, v = kv.unbind(2)
    return flash_attn_func(q, k, v, *options)


# -- sequences behind one another ------------------------------------------------------------------
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Answer:
    """Of (total, heads, dimension), each sequence by itself; ``cu_seqlens`` (batch + 1,) says where they begin.

    With ``block_table`` (batch, blocks), keys and values lie in blocks (blocks, size, heads, dimension).
    """
    if return_attn_probs and dropout_p:
        _refuse("return_attn_probs with dropout_p, for sequences of different lengths")
    starts, of_keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    results = []
    for n in range(len(starts) - 1):
        slopes = alibi_slopes[n] if alibi_slopes is not None and alibi_slopes.dim() == 2 else alibi_slopes
        how = How(dropout_p, softmax_scale, causal, window_size, softcap, slopes, return_attn_probs)
        if block_table is None:
            keys, values = (x[of_keys[n] : of_keys[n + 1]] for x in (k, v))
        else:
            keys, values = (x[block_table[n]].flatten(0, 1)[: of_keys[n + 1] - of_keys[n]] for x in (k, v))
        results.append(attention(q[starts[n] : starts[n + 1]][None], keys[None], values[None], how))
    return _behind_one_another(q, results, return_attn_probs)


def _behind_one_another(q: Tensor, results: list[Result], with_scores: bool) -> Answer:
    outs = [result.out[0] for result in results]
    beyond = q.shape[0] - sum(out.shape[0] for out in outs)
    out = torch.cat([*outs, q.new_zeros(beyond, *q.shape[1:])])
    if not with_scores:
        return out
    sums = [result.log_sum[0] for result in results if result.log_sum is not None]
    return out, torch.cat(sums, -1), q.new_empty(0)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Answer:
    """Of (total, 3, heads, dimension)."""
    masks = (causal, window_size, softcap, alibi_slopes)
    options: Any = (dropout_p, softmax_scale, *masks, deterministic, return_attn_probs)
    q, k, v = qkv.unbind(1)
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    return flash_attn_varlen_func(q, k, v, *lengths, *options)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Answer:
    """Of ``q`` (total, heads, dimension) and ``kv`` (total of the keys, 2, heads, dimension)."""
    masks = (causal, window_size, softcap, alibi_slopes)
    options: Any = (dropout_p, softmax_scale, *masks, deterministic, return_attn_probs)
    k, v = kv.unbind(1)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return flash_attn_varlen_func(q, k, v, *lengths, *options)


# -- generating: a cache of keys and values --------------------------------------------------------
@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Answer:
    """Attention to what is in a cache (batch, length, heads, dimension), or in blocks of it with ``block_table``.

    New keys and values are written into the cache first, behind the ``cache_seqlens`` that are in it. With a rotary
    embedding they are turned before that, and so are the queries: each at its own position where the mask is causal or
    a window, else all at the first new one. There is no backward pass, as in the package.
    """
    turns = rotary_cos is not None and k is not None
    results = []
    for n in range(q.shape[0]):
        row = n if cache_batch_idx is None else int(cache_batch_idx[n])
        cache = _Cache(k_cache, v_cache, row, None if block_table is None else block_table[n])
        length = _of(cache_seqlens, n, cache.capacity)
        query, key = q[n : n + 1], None if k is None else k[n : n + 1]
        if turns:
            each = causal or tuple(window_size) != (-1, -1)
            query = _turned(query, rotary_cos, rotary_sin, rotary_interleaved, length, each)
            key = _turned(key, rotary_cos, rotary_sin, rotary_interleaved, length, True)
        if key is not None and v is not None:
            cache.write(length, key[0], v[n])
            length += key.shape[1]
        slopes = alibi_slopes[n] if alibi_slopes is not None and alibi_slopes.dim() == 2 else alibi_slopes
        how = How(0.0, softmax_scale, causal, window_size, softcap, slopes, return_softmax_lse)
        results.append(attention(query, *cache.read(_of(cache_leftpad, n, 0), length), how))
    out = torch.cat([result.out for result in results])
    sums = [result.log_sum for result in results if result.log_sum is not None]
    return (out, torch.cat(sums)) if return_softmax_lse else out


class _Cache:
    """One sequence's part of a cache, whether its positions lie behind one another or in blocks."""

    def __init__(self, keys: Tensor, values: Tensor, row: int, blocks: Tensor | None) -> None:
        self._both = (keys, values)
        self._row = row
        self._blocks = blocks
        self.capacity = keys.shape[1] * (1 if blocks is None else len(blocks))

    def _at(self, start: int, stop: int) -> tuple[Any, Tensor]:
        keys, _ = self._both
        positions = torch.arange(start, stop, device=keys.device)
        if self._blocks is None:
            return self._row, positions
        return self._blocks[positions // keys.shape[1]], positions % keys.shape[1]

    def write(self, start: int, *new: Tensor) -> None:
        where = self._at(start, start + new[0].shape[0])
        for cache, tensor in zip(self._both, new, strict=True):
            cache[where] = tensor

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        where = self._at(start, stop)
        keys, values = (cache[where][None] for cache in self._both)
        return keys, values


def _of(given: int | Tensor | None, n: int, otherwise: int) -> int:
    """The figure for one of a batch."""
    if given is None:
        return otherwise
    return int(given[n]) if isinstance(given, Tensor) else given


def _turned(x: Any, cos: Any, sin: Any, interleaved: bool, start: int, each: bool) -> Tensor:
    if each:
        return apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=start)
    # As heads of one position: all queries stand at the same place.
    return apply_rotary_emb(x.flatten(1, 2)[:, None], cos, sin, interleaved, seqlen_offsets=start).view_as(x)


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"devicekit's stand-in for flash-attn has no {what}.")
