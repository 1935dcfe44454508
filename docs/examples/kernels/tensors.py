"""The operations on torch's tensors, for every backend that has them; which device it is, they do not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from kernels.steps import Step

__all__ = ["KERNELS", "run", "threads"]


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, epsilon)


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=-1)


def _attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)


def _transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.permute(axes)


def _silu_in_place(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=True)


KERNELS: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "multiply": torch.mul,
    "silu": functional.silu,
    "gelu": _gelu,
    "matmul": torch.matmul,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
    "attention": _attention,
    "total": torch.sum,
    "mean": torch.mean,
    "reshape": torch.reshape,
    "transpose": _transpose,
}
IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    "add": Tensor.add_,
    "multiply": Tensor.mul_,
    "silu": _silu_in_place,
}
"""The same, writing over the first operand."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch shares the processor's work among so many threads; it does not ask the container itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(step: Step, sources: Sequence[Tensor]) -> Tensor:
    """The step's result; what a link before has made has no other reader, so it is written over."""
    values = list(sources)
    for link in step.links:
        made_here = link.operands[0] >= len(sources)
        kernel = IN_PLACE.get(link.operation) if made_here else None
        operands = (values[number] for number in link.operands)
        values.append((kernel or KERNELS[link.operation])(*operands, **link.settings))
    return values[-1]
