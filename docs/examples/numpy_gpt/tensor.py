"""Arrays that remember what they were computed from, so that a gradient can flow back: reverse-mode differentiation.

Each operation hands over its result and, for every tensor that it was computed from, a function that turns the gradient
of the result into the gradient of that tensor. ``backward`` calls these functions in the reverse of the order in which
the results came about. The results refer to their sources and never the other way round, so all that was remembered
goes when the last result goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Pull", "Tensor", "forgetting", "record"]

Array: TypeAlias = NDArray[Any]
Pull: TypeAlias = Callable[[Array], Array]
"""From the gradient of a result to the gradient of one of its sources, before broadcasting is undone."""

_remembering: ContextVar[bool] = ContextVar("remembering", default=True)


class Tensor:
    """An array, its gradient, and what it was computed from.

    Args:
        data: the numbers; not copied.
        trainable: ``backward`` is to leave a gradient here.
    """

    __slots__ = ("data", "grad", "sources", "tracked")
    __array_ufunc__ = None  # so that ``array + tensor`` is a tensor, too

    def __init__(self, data: Array, *, trainable: bool = False) -> None:
        self.data = data
        self.grad: Array | None = None
        self.tracked = trainable
        self.sources: tuple[tuple[Tensor, Pull], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self.data.shape

    def __repr__(self) -> str:
        return f"Tensor({self.data!r})"

    def backward(self, gradient: Array | None = None) -> None:
        """Add to the ``grad`` of every trainable tensor what this one's gradient comes to there.

        Args:
            gradient: of this tensor's shape; by default one, which only a single number has.

        Raises:
            ValueError: there is nothing to go back to, or ``gradient`` does not fit.
        """
        if not self.tracked:
            raise ValueError("no trainable tensor had a part in this one")
        if gradient is None and self.data.size != 1:
            raise ValueError(f"a gradient is needed for a tensor of shape {self.shape}")
        start = np.ones_like(self.data) if gradient is None else np.asarray(gradient, self.data.dtype)
        if start.shape != self.shape:
            raise ValueError(f"the gradient has shape {start.shape}, the tensor {self.shape}")
        arrived = {id(self): start}
        for tensor in reversed(_in_order(self)):
            flowing = arrived.pop(id(tensor))
            if not tensor.sources:
                tensor.grad = flowing if tensor.grad is None else tensor.grad + flowing
            for source, pull in tensor.sources:
                part = _unbroadcast(pull(flowing), source.shape)
                # Never in place: what flows back may be one array for several tensors.
                arrived[id(source)] = arrived[id(source)] + part if id(source) in arrived else part

    # -- arithmetic ------------------------------------------------------------------------------
    def __add__(self, other: Tensor | Array | float) -> Tensor:
        b = self._like(other)
        return record(self.data + b.data, (self, lambda g: g), (b, lambda g: g))

    def __sub__(self, other: Tensor | Array | float) -> Tensor:
        b = self._like(other)
        return record(self.data - b.data, (self, lambda g: g), (b, lambda g: -g))

    def __mul__(self, other: Tensor | Array | float) -> Tensor:
        b = self._like(other)
        return record(self.data * b.data, (self, lambda g: g * b.data), (b, lambda g: g * self.data))

    def __truediv__(self, other: Tensor | Array | float) -> Tensor:
        b = self._like(other)
        quotient = self.data / b.data
        return record(quotient, (self, lambda g: g / b.data), (b, lambda g: -g * quotient / b.data))

    def __neg__(self) -> Tensor:
        return record(-self.data, (self, lambda g: -g))

    def __radd__(self, other: Array | float) -> Tensor:
        return self._like(other) + self

    def __rsub__(self, other: Array | float) -> Tensor:
        return self._like(other) - self

    def __rmul__(self, other: Array | float) -> Tensor:
        return self._like(other) * self

    def __rtruediv__(self, other: Array | float) -> Tensor:
        return self._like(other) / self

    def __matmul__(self, other: Tensor) -> Tensor:
        """Products of the last two dimensions, ``(..., n, k) @ (..., k, m)``; those before are broadcast."""
        a, b = self.data, other.data
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(f"a matrix product needs two dimensions: {a.shape} @ {b.shape}")
        return record(
            a @ b, (self, lambda g: g @ b.swapaxes(-1, -2)), (other, lambda g: a.swapaxes(-1, -2) @ g)
        )  # fmt: skip

    def _like(self, other: Tensor | Array | float) -> Tensor:
        return other if isinstance(other, Tensor) else Tensor(np.asarray(other, self.data.dtype))

    # -- sums ------------------------------------------------------------------------------------
    def sum(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Tensor:
        """Over these dimensions, or all."""

        def pull(g: Array) -> Array:
            if axis is not None and not keepdims:
                g = np.expand_dims(g, axis)
            return np.broadcast_to(g, self.shape)

        return record(self.data.sum(axis, keepdims=keepdims), (self, pull))

    def mean(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Tensor:
        """Over these dimensions, or all."""
        total = self.sum(axis, keepdims=keepdims)
        return total * (total.data.size / self.data.size)

    # -- shapes ----------------------------------------------------------------------------------
    def reshape(self, *shape: int) -> Tensor:
        """The same numbers in the same order; one dimension may be -1."""
        return record(self.data.reshape(shape), (self, lambda g: g.reshape(self.shape)))

    def transpose(self, *axes: int) -> Tensor:
        """The dimensions in this order, or in reverse."""
        order = axes or tuple(reversed(range(self.data.ndim)))
        back = tuple(np.argsort([axis % self.data.ndim for axis in order]))
        return record(self.data.transpose(order), (self, lambda g: g.transpose(back)))

    def __getitem__(self, key: Any) -> Tensor:
        """As an array is indexed; what is taken twice gets both gradients."""

        def pull(g: Array) -> Array:
            whole = np.zeros_like(self.data)
            np.add.at(whole, key, g)
            return whole

        return record(np.asarray(self.data[key]), (self, pull))


def record(data: Array, *sources: tuple[Tensor, Pull]) -> Tensor:
    """The result of an operation, with those of its sources that a gradient is wanted for.

    Args:
        data: the result.
        sources: what it was computed from; with each, the way back.
    """
    made = Tensor(np.asarray(data))
    if _remembering.get():
        made.sources = tuple(source for source in sources if source[0].tracked)
        made.tracked = bool(made.sources)
    return made


@contextmanager
def forgetting() -> Iterator[None]:
    """A block, of this thread, in which nothing is remembered: to use a model and not to train it."""
    before = _remembering.set(False)
    try:
        yield
    finally:
        _remembering.reset(before)


def _in_order(last: Tensor) -> list[Tensor]:
    """Every tensor behind its sources, without recursion: a long sum is deeper than Python's stack."""
    ordered: list[Tensor] = []
    seen: set[int] = set()
    ahead: list[tuple[Tensor, bool]] = [(last, False)]
    while ahead:
        tensor, complete = ahead.pop()
        if complete:
            ordered.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            ahead.append((tensor, True))
            ahead += [(source, False) for source, _ in tensor.sources]
    return ordered


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Summed over what broadcasting has repeated."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    repeated = tuple(axis for axis, size in enumerate(shape) if size == 1 != gradient.shape[axis])
    return gradient.sum(repeated, keepdims=True) if repeated else gradient
