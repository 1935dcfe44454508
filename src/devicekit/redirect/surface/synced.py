"""Batch normalization over the batches of all processes, for a processor, by the formulas of torch.nn.SyncBatchNorm.

torch computes it by kernels of CUDA. Here the sums go to all processes, with their gradients, and autograd does the
rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

__all__ = ["batch_norm"]


class _SumOverAll(torch.autograd.Function):
    """The sum over all processes; each process's gradient reaches all, because its result did."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(gradient, ctx.group), None


def _over_all(value: torch.Tensor, group: Any) -> torch.Tensor:
    return _SumOverAll.apply(value, group)  # type: ignore[no-any-return, no-untyped-call]


def _sum(value: torch.Tensor, group: Any) -> torch.Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total


def batch_norm(module: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
    """What a SyncBatchNorm that trains makes of its input (N, C, ...), in the input's dtype.

    Raises:
        ValueError: all processes together have one value for each channel; as torch.nn.functional.batch_norm.
    """
    module._check_input_dim(x)
    module._check_non_zero_input_channels(x)
    others = [dim for dim in range(x.dim()) if dim != 1]
    over_channels = [1, -1] + [1] * (x.dim() - 2)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))

    sums = torch.cat([wide.sum(others), wide.new_full((1,), x.numel() // x.size(1))])
    total = _over_all(sums, group)
    count = total[-1].detach()
    if count <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    mean = total[:-1] / count
    # From the centred values, because the difference of two large sums would be inexact.
    centred = wide - mean.view(over_channels)
    variance = _over_all(centred.square().sum(others), group) / count
    _remember(module, mean.detach(), variance.detach() * (count / (count - 1)))

    result = centred * torch.rsqrt(variance + module.eps).view(over_channels)
    if module.weight is not None:
        result = result * module.weight.view(over_channels)
    if module.bias is not None:
        result = result + module.bias.view(over_channels)
    return result.to(x.dtype)


def _remember(module: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Move the running figures towards these; without ``momentum`` they are the average of all."""
    if not module.track_running_stats:
        return
    module.num_batches_tracked.add_(1)
    step = 1.0 / module.num_batches_tracked.item() if module.momentum is None else module.momentum
    for running, new in ((module.running_mean, mean), (module.running_var, variance)):
        if running is not None:
            running.lerp_(new.to(running.dtype), step)
