"""The operations on NumPy's arrays: what the numpy backend runs, and in float64 what all others are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from kernels.graph import Graph
from kernels.steps import Link, Step

__all__ = ["KERNELS", "Arrays", "reference"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

TILE = 128 * 1024
"""Bytes of an array that a fused step works on at once: a few of them fit into a core's own cache."""


# -- one by one --------------------------------------------------------------------------------
def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # e^-x is infinite for a very negative x, and the quotient 0, as it should be
        return x / (1 + np.exp(-x))


def _gelu(x: Array) -> Array:
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    return x.dtype.type(0.5) * x * (1 + np.tanh(inner))


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    square = np.mean(np.square(x), axis=-1, keepdims=True)
    return x / np.sqrt(square + x.dtype.type(epsilon)) * weight


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _attention(query: Array, key: Array, value: Array, causal: bool) -> Array:
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    if causal:
        later = np.triu(np.ones(scores.shape[-2:], dtype=bool), 1)
        scores = np.where(later, scores.dtype.type(-math.inf), scores)
    return _softmax(scores) @ value


KERNELS: Mapping[str, Callable[..., Array]] = {
    "add": np.add,
    "multiply": np.multiply,
    "silu": _silu,
    "gelu": _gelu,
    "matmul": np.matmul,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
    "attention": _attention,
    "total": np.sum,
    "mean": np.mean,
    "reshape": np.reshape,
    "transpose": np.transpose,
}


def reference(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs in float64, one operation after the other: slow, and nothing to go wrong."""
    known: dict[Any, Array] = {}
    for value in graph.values:
        if value.operation == "input":
            known[value] = np.asarray(inputs[value.name], dtype=np.float64)
        else:
            known[value] = KERNELS[value.operation](*(known[a] for a in value.arguments), **value.settings)
    return {name: known[value] for name, value in graph.outputs.items()}


# -- steps -------------------------------------------------------------------------------------
class Arrays:
    """Runs steps; of a fused one several threads do a tile each, for NumPy lets go of Python's lock in its loops.

    Args:
        workers: threads; with 1 the caller's own does the work.
    """

    def __init__(self, workers: int = 1) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tile") if workers > 1 else None

    def __enter__(self) -> Arrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, step: Step, sources: Sequence[Array]) -> Array:
        """The step's result."""
        if len(step.links) > 1 and step.shape:
            return self._in_tiles(step, sources)
        return _through(step.links, sources)

    def _in_tiles(self, step: Step, sources: Sequence[Array]) -> Array:
        result = np.empty(step.shape, dtype=np.result_type(*sources))
        rows = result.reshape(-1, step.shape[-1])
        views = [_as_rows(source, step.shape) for source in sources]
        height = max(1, TILE // (rows.shape[1] * rows.itemsize))

        def tile(start: int) -> None:
            here = slice(start, start + height)
            rows[here] = _through(step.links, [view[here] if len(view) > 1 else view for view in views])

        starts = range(0, len(rows), height)
        share = map if self._pool is None or len(starts) == 1 else self._pool.map
        for _ in share(tile, starts):
            pass
        return result


def _through(links: Sequence[Link], sources: Sequence[Array]) -> Array:
    values = list(sources)
    for link in links:
        values.append(KERNELS[link.operation](*(values[number] for number in link.operands), **link.settings))
    return values[-1]


def _as_rows(source: Array, shape: tuple[int, ...]) -> Array:
    """Two axes; a source that is the same for all rows stays one row, and only another broadcasting is written out."""
    if source.shape == shape:
        return source.reshape(-1, shape[-1])
    if math.prod(source.shape[:-1]) == 1:
        return source.reshape(1, -1)
    return np.broadcast_to(source, shape).reshape(-1, shape[-1])
