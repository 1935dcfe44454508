"""Linear layers in float32 through oneDNN, where that is faster than torch's usual way.

In float32 torch hands a linear layer to the BLAS that it was built with, which on x86 is MKL, and only 16-bit formats
to oneDNN. How good each is depends on the processor: on an AMD EPYC (Zen 5) one thread of MKL did 90 GFLOP/s and one of
oneDNN 200. A tensor in oneDNN's layout (``Tensor.to_mkldnn``) chooses the second. Both compute in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["PackedLinear", "pack", "pack_if_faster"]

TOKENS, ROUNDS = 512, 5
"""What is timed: a layer's feed-forward part for so many tokens, so many times; some 0.1 s in all."""


class PackedLinear(torch.nn.Module):
    """A linear layer whose weights lie in oneDNN's layout.

    Args:
        linear: whose weights it takes, float32, on the processor.
        stays: the result stays in the layout, for an activation and a layer that can use it as it is.
    """

    def __init__(self, linear: torch.nn.Linear, *, stays: bool = False) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to_mkldnn()
        self.bias = None if linear.bias is None else linear.bias.detach().to_mkldnn()
        self.stays = stays

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (..., inputs) to (..., outputs)."""
        y = torch.nn.functional.linear(x if x.is_mkldnn else x.to_mkldnn(), self.weight, self.bias)
        return y if self.stays else y.to_dense()


def pack(model: Any) -> None:
    """All linear layers of a BERT's blocks, in place; what is between two of them stays in the layout if it can."""
    for block in model.encoder.layer:
        attention = block.attention.self
        for name in ("query", "key", "value"):
            setattr(attention, name, PackedLinear(getattr(attention, name)))
        block.attention.output.dense = PackedLinear(block.attention.output.dense)
        block.intermediate.dense = PackedLinear(block.intermediate.dense, stays=True)
        block.output.dense = PackedLinear(block.output.dense)


def pack_if_faster(model: Any) -> bool:
    """Time a feed-forward part both ways, pack the model if that is faster, and say whether it was.

    Args:
        model: a BERT with GELU as its activation, float32, on the processor.
    """
    block = model.encoder.layer[0]
    up, down = block.intermediate.dense, block.output.dense
    try:
        packed = torch.nn.Sequential(PackedLinear(up, stays=True), torch.nn.GELU(), PackedLinear(down))
    except RuntimeError:  # this torch was built without oneDNN
        return False
    x = torch.ones(1, TOKENS, up.in_features)
    with torch.no_grad():
        usual, other = _in_turns(lambda: down(torch.nn.functional.gelu(up(x))), lambda: packed(x))
    if other < usual:
        pack(model)
    return other < usual


def _in_turns(*ways: Callable[[], object]) -> list[float]:
    """The best seconds of each."""
    best = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for number, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[number] = min(best[number], time.perf_counter() - start)
    return best
