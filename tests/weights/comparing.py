"""Tensors of every pattern of bits, and what it takes to call two of them the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from devicekit.weights.formats import FORMATS

FLOATS = [getattr(torch, known.torch) for known in FORMATS.values() if known.floating and hasattr(torch, known.torch)]
DTYPES = [getattr(torch, known.torch) for known in FORMATS.values() if known.torch and hasattr(torch, known.torch)]
"""All that the format and this torch have in common."""


def drawn(dtype: torch.dtype, shape: tuple[int, ...] = (3, 4), seed: int = 0) -> torch.Tensor:
    """Every pattern of bits may come up, NaN and infinity included; a bool has only two."""
    generator = torch.Generator().manual_seed(seed)
    nbytes = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (nbytes,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes, in the order of its elements."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same dtype, shape and bytes."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def same_numbers(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same, bit for bit, but for which NaN it is: torch's own kernels do not agree on that."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not one.dtype.is_floating_point or torch.equal(bits(one), bits(other)):
        return same(one, other)
    nan = [tensor.double().isnan() for tensor in (one, other)]
    differ = (bits(one) != bits(other)).reshape(*one.shape, one.dtype.itemsize).any(-1)
    return torch.equal(*nan) and not bool((differ & ~nan[0]).any())


def same_dicts(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """The same names, and the same under each."""
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def saved(folder: Path, tensors: Mapping[str, torch.Tensor], name: str = "w.safetensors", **options: Any) -> Path:
    """A file, as safetensors itself writes it."""
    path = folder / name
    held = {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    safetensors.torch.save_file(held, path, **options)
    return path
