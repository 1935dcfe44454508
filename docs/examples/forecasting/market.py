"""Candles of markets that do not exist, with something in them that can be learned; the same ones for the same seed.

Prices drift up and down with the time of day, carry on a part of their last movement, and move more, with more volume,
in some hours than in others. All else is chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forecasting.candles import Candles

__all__ = ["make_candles", "make_series"]

HOUR = 3600
MONDAY = 1_704_067_200
"""2024-01-01 00:00 UTC."""


def make_candles(count: int, seed: int) -> Candles:
    """One market's candles, an hour each."""
    times, values = make_series(1, count, seed)
    return Candles(times, values[0])


def make_series(series: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The times of ``count`` hours, and what several markets did in them, shape (series, count, 6)."""
    chance = np.random.default_rng(seed)
    begin = MONDAY + HOUR * int(chance.integers(0, 24 * 7))
    times = begin + HOUR * np.arange(count)
    day = 2 * np.pi * (times % 86_400) / 86_400
    size = chance.uniform(0.001, 0.01, (series, 1)) * (1.0 + 0.5 * np.cos(day))  # more in some hours
    carried = chance.uniform(0.1, 0.4, series)

    pushes = size * (0.8 * np.sin(day) + 0.7 * chance.standard_normal((series, count)))
    returns = np.zeros((series, count))
    for at in range(count):
        returns[:, at] = pushes[:, at] + (carried * returns[:, at - 1] if at else 0.0)

    closes = np.log(chance.uniform(5.0, 500.0, (series, 1))) + np.cumsum(returns, axis=1)
    opens = closes - returns + 0.1 * size * chance.standard_normal((series, count))
    highs = np.maximum(opens, closes) + 0.4 * size * np.abs(chance.standard_normal((series, count)))
    lows = np.minimum(opens, closes) - 0.4 * size * np.abs(chance.standard_normal((series, count)))
    prices = np.exp(np.stack([opens, highs, lows, closes], axis=-1))

    usual = chance.uniform(10.0, 1e5, (series, 1)) * np.exp(0.6 * np.cos(day))
    volume = usual * np.exp(0.3 * chance.standard_normal((series, count)))
    amount = volume * prices.mean(axis=-1)
    return times, np.concatenate([prices, volume[..., None], amount[..., None]], axis=-1)
