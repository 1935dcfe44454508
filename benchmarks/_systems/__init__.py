"""The example systems, each beside the same work with the device layer written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["NAMES", "Pair"]

NAMES = ("forecasting", "embedding", "kernels", "numpy_gpt", "image_editing")


@dataclass(frozen=True)
class Pair:
    """One piece of work, done twice."""

    what: str
    """The work in words, with its size: ``a forecast of 12 candles from 64``."""
    facade: Callable[[], Any]
    by_hand: Callable[[], Any]
    same: Callable[[Any, Any], bool]
    """Whether what both gave is the same."""
