"""Candles of any market in numbers of one size, and back again; on the host, in double precision.

A candle becomes six numbers: the gap to the close before it, its body, its two wicks, its volume and its average price.
Prices are taken as logarithms and divided by how much this market moves. So what a model gives always is a candle: the
high is the highest, and no price is negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecasting.candles import ForecastError

__all__ = ["FEATURES", "STAMPS", "Scale", "stamps"]

FEATURES = 6
"""Numbers of a candle."""
STAMPS = 4
"""Numbers of a time."""

STEADIEST = 1e-6
"""The least movement that is told apart, as a part of the price: below it a market stands still."""
FARTHEST = 6.0
"""Where an outlier is cut, in movements."""
FARTHEST_PRICE = 1e300
"""Beyond it the mean of several could not be told."""
NO_VOLUME = 0.01
"""What stands for no volume under the logarithm, as a part of the mean volume."""
DAY, WEEK = 86_400, 604_800

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """What one market's candles are measured by; each field has the shape (..., 1) of the series that it is about."""

    close: Table
    """The last close."""
    movement: Table
    """How much a candle moves, as a part of the price."""
    volume: Table
    """The mean volume."""
    average: Table
    """The mean of log(average price / close), where there is an amount: its currency and its units."""

    @classmethod
    def of(cls, values: Table) -> Scale:
        """The scale of candles of shape (..., n, 5 or 6)."""
        opens, highs, lows, closes = np.moveaxis(np.log(values[..., :4]), -1, 0)
        returns = np.diff(closes, axis=-1, prepend=opens[..., :1])
        movement = np.sqrt((returns**2).mean(-1)) + (highs - lows).mean(-1)
        return cls(
            close=values[..., -1:, 3],
            movement=np.maximum(movement, STEADIEST)[..., None],
            volume=values[..., 4].mean(-1, keepdims=True),
            average=_average_price(values).mean(-1, keepdims=True),
        )

    def features(self, values: Table) -> NDArray[np.float32]:
        """Candles of shape (..., n, 5 or 6) as numbers of shape (..., n, 6); the first has no gap."""
        opens, highs, lows, closes = np.moveaxis(np.log(values[..., :4]), -1, 0)
        before = np.concatenate([opens[..., :1], closes[..., :-1]], axis=-1)
        upper, lower = highs - np.maximum(opens, closes), np.minimum(opens, closes) - lows
        prices = np.stack([opens - before, closes - opens, upper, lower], axis=-1) / self.movement[..., None]
        some = np.where(self.volume > 0, self.volume, 1.0)
        volume = np.log(values[..., 4] / some + NO_VOLUME)
        average = (_average_price(values) - self.average) / self.movement
        found = np.concatenate([prices, volume[..., None], average[..., None]], axis=-1)
        cut: NDArray[np.float32] = np.clip(found, -FARTHEST, FARTHEST).astype(np.float32)
        return cut

    def candles(self, features: NDArray[np.float32], columns: int) -> Table:
        """The other way: numbers of shape (paths, n, 6) as candles of shape (paths, n, ``columns``) after the last one.

        Raises:
            ForecastError: the prices leave what a double can hold.
        """
        numbers = features.astype(np.float64)
        gap, body, upper, lower = np.moveaxis(numbers[..., :4], -1, 0) * self.movement
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            closes = np.log(self.close) + np.cumsum(gap + body, axis=-1)
            opens = closes - body
            highs = np.maximum(opens, closes) + np.maximum(upper, 0.0)
            lows = np.minimum(opens, closes) - np.maximum(lower, 0.0)
            prices = np.exp(np.stack([opens, highs, lows, closes], axis=-1))
            volume = self.volume * np.maximum(np.exp(numbers[..., 4]) - NO_VOLUME, 0.0)
            amount = volume * prices[..., 3] * np.exp(self.average + numbers[..., 5] * self.movement)
        made = np.concatenate([prices, volume[..., None], amount[..., None]], axis=-1)[..., :columns]
        if not ((made < FARTHEST_PRICE).all() and (prices > 0).all()):  # so neither are those that are no numbers
            raise ForecastError("these candles move so much that a forecast of them leaves what numbers can hold")
        return made


def stamps(times: NDArray[np.int64]) -> NDArray[np.float32]:
    """Where in the day and in the week seconds since 1970 lie, as points on two circles, shape (n, 4)."""
    angles = 2 * np.pi * np.stack([times % DAY / DAY, times % WEEK / WEEK], axis=-1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def _average_price(values: Table) -> Table:
    """The logarithm of amount / volume / close; 0 where one of them says nothing."""
    if values.shape[-1] < 6:
        return np.zeros(values.shape[:-1])
    closes, volume, amount = values[..., 3], values[..., 4], values[..., 5]
    known = (volume > 0) & (amount > 0)
    money, pieces, price = (np.log(np.where(known, part, 1.0)) for part in (amount, volume, closes))
    return money - pieces - price
