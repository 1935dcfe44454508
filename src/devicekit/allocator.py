"""How torch's caching allocators count bytes and tell of them: for all that simulates one, or answers in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["BLOCK", "SEGMENT", "checked_fraction", "flat", "in_words", "round_up"]

BLOCK = 512
"""What sizes are rounded up to, in bytes (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize; torch_npu has the same)."""
SEGMENT = 2 << 20
"""What is taken from the driver at once (kSmallBuffer)."""


def round_up(size: int, step: int) -> int:
    """The next multiple of ``step``, or ``size`` where it is one."""
    return -(-size // step) * step


def in_words(size: int) -> str:
    """A size in bytes as the allocators write it: ``1.50 GiB``."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"


def flat(prefix: str, value: Any) -> Iterator[tuple[str, int]]:
    """The nested figures of ``memory_stats_as_nested_dict`` under the keys of ``memory_stats``."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from flat(f"{prefix}.{key}" if prefix else key, inner)


def checked_fraction(fraction: float) -> float:
    """The part of a device's memory that a process may take.

    Raises:
        TypeError: it is no float.
        ValueError: it is not between 0 and 1; both in torch's words (torch/cuda/memory.py).
    """
    if not isinstance(fraction, float):
        raise TypeError("Invalid type for fraction argument, must be `float`")
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    return fraction
