"""Candlesticks as they come in: checked, with an answer in words, before a model sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "Candles", "ForecastError", "as_text", "following"]

COLUMNS = ("open", "high", "low", "close", "volume", "amount")
"""The last one, the money that changed hands, may be missing."""

LATEST = 10**11
"""Seconds since 1970, in the year 5138; a time in milliseconds lies behind it."""


class ForecastError(ValueError):
    """Candles, or what is asked about them, make no sense; the text says where and why."""


@dataclass(frozen=True)
class Candles:
    """A series of candles, oldest first.

    Lists, arrays and tensors on the host are taken; what is kept is NumPy's.

    Raises:
        ForecastError: a value is missing, impossible or out of order.
    """

    times: Any
    """When each candle begins: whole seconds since 1970 (UTC) or NumPy's datetime64; kept as int64, shape (n,)."""
    values: Any
    """The columns of ``COLUMNS``, with or without the last; kept as float64, shape (n, 5) or (n, 6)."""

    def __post_init__(self) -> None:
        values = _as_floats(self.values)
        times = _as_seconds(self.times)
        if times.shape != values.shape[:1]:
            raise ForecastError(f"there are {values.shape[0]} candles, and times of the shape {times.shape}")
        _check_order(times)
        _check_values(values)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.times)

    def last(self, count: int) -> Candles:
        """The newest ``count`` of them, or all where there are fewer."""
        return Candles(self.times[-count:], self.values[-count:])


def following(times: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ``count`` times after these, as far apart as most of these are: nights and holidays are not skipped."""
    step = max(1, round(float(np.median(np.diff(times)))))
    after: NDArray[np.int64] = times[-1] + step * np.arange(1, count + 1)
    return after


def as_text(times: NDArray[np.int64]) -> list[str]:
    """ISO 8601, in UTC."""
    return [str(text) for text in np.datetime_as_string(times.astype("datetime64[s]"), timezone="UTC")]


# -- what is given -----------------------------------------------------------------------------
def _as_floats(values: Any) -> NDArray[np.float64]:
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors that are elsewhere or need gradients
        raise ForecastError(f"the candles are no table of numbers on the host: {error}") from error
    if found.dtype.kind not in "fiu":
        raise ForecastError(f"the candles are no numbers, but {found.dtype}")
    if found.ndim != 2 or found.shape[1] not in (5, 6):
        raise ForecastError(f"candles have the shape (n, 5) or (n, 6), not {found.shape}: {', '.join(COLUMNS)}")
    return found.astype(np.float64)


def _as_seconds(times: Any) -> NDArray[np.int64]:
    try:
        found = np.asarray(times)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ForecastError(f"the times are no list of numbers on the host: {error}") from error
    if found.dtype.kind == "M" and not np.isnat(found).any():
        found = found.astype("datetime64[s]").astype(np.int64)
    if found.dtype.kind not in "iu" and found.size:
        raise ForecastError(f"times are whole seconds since 1970, or datetime64, not {found.dtype}")
    if found.size and not -LATEST < int(found.min()) <= int(found.max()) < LATEST:
        raise ForecastError("times are seconds since 1970; these lie thousands of years away. Are they milliseconds?")
    return found.astype(np.int64)


def _check_order(times: NDArray[np.int64]) -> None:
    early = np.flatnonzero(np.diff(times) <= 0)
    if early.size:
        at = int(early[0]) + 1
        before, now = as_text(times[at - 1 : at + 1])
        raise ForecastError(f"times must increase, and candle {at} ({now}) is not later than the one before ({before})")


# -- what cannot be ----------------------------------------------------------------------------
Table = NDArray[np.float64]
LARGEST = 1e30
"""Sums of such numbers still are numbers."""


def _outside(values: Table) -> NDArray[np.bool_]:
    first, last = values[:, 0], values[:, 3]
    return (np.maximum(first, last) > values[:, 1]) | (np.minimum(first, last) < values[:, 2])


FAULTS: tuple[tuple[str, Callable[[Table], Any]], ...] = (
    ("holds a number that is not finite", lambda v: ~np.isfinite(v).all(axis=1)),
    ("holds a number above 1e30", lambda v: (v > LARGEST).any(axis=1)),
    ("has a price that is not above 0", lambda v: (v[:, :4] <= 0).any(axis=1)),
    ("has a high below its low", lambda v: v[:, 1] < v[:, 2]),
    ("opens or closes outside its low and high", _outside),
    ("has a negative volume", lambda v: v[:, 4] < 0),
    ("has a negative amount", lambda v: (v[:, 5:] < 0).any(axis=1)),
)


def _check_values(values: Table) -> None:
    for words, faulty in FAULTS:
        found = np.flatnonzero(faulty(values))
        if found.size:
            row = zip(COLUMNS, values[found[0]], strict=False)
            shown = ", ".join(f"{name} {value:g}" for name, value in row)
            raise ForecastError(f"candle {found[0]} {words}: {shown}")
