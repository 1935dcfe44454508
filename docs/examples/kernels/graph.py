"""The graph: operations are written down as they are called, and their shapes are checked at that moment.

A value knows the operation that makes it and the values that go in, so a graph is whatever its outputs need. There are
no circles, for a value can only name values that exist already.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = [
    "ELEMENTWISE", "OPERATIONS", "Graph", "GraphError", "Shape", "Value", "add", "attention", "gelu", "matmul", "mean",
    "multiply", "placeholder", "reshape", "rms_norm", "silu", "softmax", "total", "transpose",
]  # fmt: skip

Shape = tuple[int, ...]

ELEMENTWISE = frozenset({"add", "multiply", "silu", "gelu"})
"""Each number of the result needs one number of each argument; only these can be fused."""
OPERATIONS = ELEMENTWISE | {"matmul", "rms_norm", "softmax", "attention", "total", "mean", "reshape", "transpose"}


class GraphError(ValueError):
    """An operation that cannot be: the message names it, the shapes, and what does not fit."""


@dataclass(frozen=True, eq=False)
class Value:
    """What an operation gives; two are the same only if they are one object."""

    operation: str
    """A name of ``OPERATIONS``, or ``input``."""
    arguments: tuple[Value, ...]
    shape: Shape
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What the operation needs besides arrays: an axis, a small number."""
    name: str = ""
    """Of an input, by which it is fed."""

    def __add__(self, other: Value) -> Value:
        return add(self, other)

    def __mul__(self, other: Value) -> Value:
        return multiply(self, other)

    def __matmul__(self, other: Value) -> Value:
        return matmul(self, other)


# -- what goes in ------------------------------------------------------------------------------
def placeholder(name: str, shape: Sequence[int]) -> Value:
    """An array that is given when the graph runs."""
    sizes = tuple(shape)
    if not name:
        raise GraphError("input: it needs a name, by which it is fed")
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise GraphError(f"input {name!r}: sizes are whole numbers from 1 on, not {sizes}")
    return Value("input", (), sizes, name=name)


# -- number by number --------------------------------------------------------------------------
def add(a: Value, b: Value) -> Value:
    """The sum, by NumPy's broadcasting."""
    return Value("add", (a, b), _broadcast("add", a, b))


def multiply(a: Value, b: Value) -> Value:
    """The product of each number with its partner, by NumPy's broadcasting."""
    return Value("multiply", (a, b), _broadcast("multiply", a, b))


def silu(x: Value) -> Value:
    """The sigmoid unit: x / (1 + e^-x)."""
    return Value("silu", _values("silu", x), x.shape)


def gelu(x: Value) -> Value:
    """The Gaussian error unit, by its usual formula with tanh."""
    return Value("gelu", _values("gelu", x), x.shape)


# -- the rest ----------------------------------------------------------------------------------
def matmul(a: Value, b: Value) -> Value:
    """Matrix products over the last two axes: (..., m, k) @ (..., k, n) gives (..., m, n)."""
    _values("matmul", a, b)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise GraphError(f"matmul: {a.shape} @ {b.shape}: both need two axes at least")
    if a.shape[-1] != b.shape[-2]:
        inner = f"the inner sizes {a.shape[-1]} and {b.shape[-2]} differ"
        raise GraphError(f"matmul: {a.shape} @ {b.shape}: {inner}")
    leading = _broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2], f"{a.shape} @ {b.shape}")
    return Value("matmul", (a, b), (*leading, a.shape[-2], b.shape[-1]))


def rms_norm(x: Value, weight: Value, epsilon: float = 1e-6) -> Value:
    """The last axis divided by the root of its mean square, times ``weight`` of shape (last axis,)."""
    _values("rms_norm", x, weight)
    if weight.shape != x.shape[-1:]:
        raise GraphError(f"rms_norm: {x.shape} needs a weight of {x.shape[-1:]}, not {weight.shape}")
    return Value("rms_norm", (x, weight), x.shape, {"epsilon": epsilon})


def softmax(x: Value) -> Value:
    """Along the last axis; it sums to 1 there."""
    _values("softmax", x)
    _axis("softmax", x, -1)
    return Value("softmax", (x,), x.shape)


def attention(query: Value, key: Value, value: Value, *, causal: bool = False) -> Value:
    """Scaled dot-product attention: (..., m, d), (..., n, d), (..., n, e) give (..., m, e).

    With ``causal`` a position sees those up to its own, so m and n must be the same.
    """
    _values("attention", query, key, value)
    said = f"{query.shape}, {key.shape}, {value.shape}"
    if min(len(query.shape), len(key.shape), len(value.shape)) < 2:
        raise GraphError(f"attention: {said}: each needs two axes at least")
    if query.shape[:-2] != key.shape[:-2] or query.shape[:-2] != value.shape[:-2]:
        raise GraphError(f"attention: {said}: the leading axes differ")
    if query.shape[-1] != key.shape[-1]:
        raise GraphError(f"attention: {said}: query has heads of {query.shape[-1]}, key of {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise GraphError(f"attention: {said}: there are {key.shape[-2]} keys and {value.shape[-2]} values")
    if causal and query.shape[-2] != key.shape[-2]:
        raise GraphError(f"attention: {said}: causal needs as many queries as keys")
    return Value("attention", (query, key, value), (*query.shape[:-1], value.shape[-1]), {"causal": causal})


def total(x: Value, axis: int) -> Value:
    """The sum along an axis, which is gone afterwards."""
    return _reduced("total", x, axis)


def mean(x: Value, axis: int) -> Value:
    """The mean along an axis, which is gone afterwards."""
    return _reduced("mean", x, axis)


def reshape(x: Value, shape: Sequence[int]) -> Value:
    """The same numbers in another shape."""
    _values("reshape", x)
    wanted = tuple(shape)
    if math.prod(wanted) != math.prod(x.shape) or any(size < 1 for size in wanted):
        raise GraphError(f"reshape: the {math.prod(x.shape)} numbers of {x.shape} do not fill {wanted}")
    return Value("reshape", (x,), wanted, {"shape": wanted})


def transpose(x: Value, axes: Sequence[int]) -> Value:
    """The axes in another order."""
    _values("transpose", x)
    order = tuple(axes)
    if sorted(order) != list(range(len(x.shape))):
        raise GraphError(f"transpose: {order} is no order of the {len(x.shape)} axes of {x.shape}")
    return Value("transpose", (x,), tuple(x.shape[axis] for axis in order), {"axes": order})


# -- checks ------------------------------------------------------------------------------------
def _values(operation: str, *arguments: Value) -> tuple[Value, ...]:
    for argument in arguments:
        if not isinstance(argument, Value):
            raise GraphError(f"{operation}: {argument!r:.60} is no value of a graph; wrap data in placeholder()")
    return arguments


def _broadcast(operation: str, a: Value, b: Value) -> Shape:
    _values(operation, a, b)
    return _broadcast_shapes(operation, a.shape, b.shape, f"{a.shape} and {b.shape}")


def _broadcast_shapes(operation: str, a: Shape, b: Shape, said: str) -> Shape:
    longest = max(len(a), len(b))
    pairs = zip((1,) * (longest - len(a)) + a, (1,) * (longest - len(b)) + b, strict=True)
    sizes = []
    for left, right in pairs:
        if left != right and 1 not in (left, right):
            raise GraphError(f"{operation}: {said}: {left} and {right} do not go together")
        sizes.append(max(left, right))
    return tuple(sizes)


def _axis(operation: str, x: Value, axis: int) -> int:
    try:
        return range(len(x.shape))[operator.index(axis)]
    except (IndexError, TypeError):
        raise GraphError(f"{operation}: {x.shape} has no axis {axis!r}") from None


def _reduced(operation: str, x: Value, axis: int) -> Value:
    _values(operation, x)
    position = _axis(operation, x, axis)
    return Value(operation, (x,), x.shape[:position] + x.shape[position + 1 :], {"axis": position})


# -- the whole ---------------------------------------------------------------------------------
class Graph:
    """What the outputs need, each value after those that it needs.

    Args:
        outputs: name to value.

    Raises:
        GraphError: there are no outputs, one is no value, or two inputs have the same name.
    """

    def __init__(self, outputs: Mapping[str, Value]) -> None:
        if not outputs:
            raise GraphError("a graph needs an output")
        self.outputs: dict[str, Value] = dict(outputs)
        self.values: tuple[Value, ...] = _in_order(_values("output", *self.outputs.values()))
        """Every value once, in an order in which they can be computed."""
        self.inputs: dict[str, Value] = {}
        """Name to value."""
        for value in self.values:
            if value.operation == "input":
                if value.name in self.inputs:
                    raise GraphError(f"two inputs are called {value.name!r}")
                self.inputs[value.name] = value


def _in_order(wanted: Sequence[Value]) -> tuple[Value, ...]:
    """Depth first, with a list for a stack: a long chain must not run into Python's limit."""
    done: dict[Value, None] = {}
    waiting = list(reversed(wanted))
    while waiting:
        value = waiting[-1]
        missing = [argument for argument in value.arguments if argument not in done]
        if missing:
            waiting.extend(reversed(missing))
        else:
            done.setdefault(waiting.pop())
    return tuple(done)
