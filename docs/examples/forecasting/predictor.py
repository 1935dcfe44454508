"""``Predictor``: candles in, candles out, on the device that is here."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import devicekit as dk
from forecasting import folder
from forecasting.candles import Candles, ForecastError, following
from forecasting.features import Scale, stamps
from forecasting.model import CandleModel, Sampling, sample
from forecasting.tokenizer import CandleTokenizer

__all__ = ["FEWEST", "Forecast", "Predictor"]

Device = str | torch.device | dk.DeviceManager | None
FEWEST = 16
"""Candles, below which it cannot be told how much a market moves."""


@dataclass(frozen=True)
class Forecast:
    """Several ways in which it may go on."""

    times: NDArray[np.int64]
    """Seconds since 1970, shape (horizon,)."""
    paths: NDArray[np.float64]
    """Candles of shape (samples, horizon, 5 or 6), with the columns that were given."""
    seed: int
    """Given again, with the same candles, it gives the same paths."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the paths, shape (horizon, 5 or 6)."""
        middle: NDArray[np.float64] = self.paths.mean(axis=0)
        return middle


class Predictor:
    """A model and its tokenizer on one device; safe to use from several threads.

    Args:
        model: what comes next.
        tokenizer: the one that the model was trained with.
        device: any name that devicekit knows, or a manager that is there already.
        strict: raise instead of taking another device.

    Raises:
        devicekit.DeviceKitError: the device is unknown, or with ``strict`` not usable here.
    """

    def __init__(
        self,
        model: CandleModel,
        tokenizer: CandleTokenizer,
        device: Device = "auto",
        *,
        strict: bool = False,
    ) -> None:
        self.dm = _manager(device, strict)
        self.model: CandleModel = self.dm.to(model).eval()
        self.tokenizer: CandleTokenizer = self.dm.to(tokenizer).eval()

    @classmethod
    def load(cls, path: str | Path, device: Device = "auto", *, strict: bool = False) -> Predictor:
        """The predictor that ``forecasting.train`` has left in a folder.

        Raises:
            folder.ModelError: there is none, or its configuration makes no sense.
            devicekit.DeviceKitError: its weights cannot be read, or as for the constructor.
        """
        dm = _manager(device, strict)
        model, tokenizer = folder.load(Path(path), dm)
        return cls(model, tokenizer, dm)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.dm.device

    @property
    def device_warning(self) -> str | None:
        """None, or why this is not the device that was asked for."""
        return self.dm.warning

    @torch.inference_mode()
    def predict(
        self,
        frame: Candles,
        horizon: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        samples: int = 8,
        seed: int | None = None,
    ) -> Forecast:
        """The next ``horizon`` candles, drawn ``samples`` times.

        Args:
            frame: at least 16 candles; the newest ``context`` of them count.
            horizon: at most the ``horizon`` that the model was made for.
            temperature: below 1 the likely becomes likelier.
            top_p: draw only from the likeliest tokens that together have this probability.
            top_k: draw only from this many of the likeliest.
            samples: how many paths.
            seed: the same one means the same numbers, on every device, whatever else runs; by default a new one.

        Raises:
            ForecastError: a number makes no sense, or there are too few candles.
        """
        config = self.model.config
        _check(len(frame), horizon, config.horizon, temperature, top_p, top_k, samples)
        seed = secrets.randbits(32) if seed is None else seed
        frame = frame.last(config.context)
        after = following(frame.times, horizon)
        scale = Scale.of(frame.values)
        tokens = self.tokenizer.encode(self.dm.to(torch.from_numpy(scale.features(frame.values))))
        times = self.dm.to(torch.from_numpy(stamps(np.concatenate([frame.times[1:], after]))))
        noise = self.dm.randn((samples, horizon), seed)
        how = Sampling(temperature, None if top_k is None else min(top_k, self.tokenizer.vocabulary), top_p)
        drawn = sample(self.model, tokens, times, noise, how)
        features = self.tokenizer.decode(drawn).cpu().numpy()
        return Forecast(after, scale.candles(features, frame.values.shape[1]), seed)


def _manager(device: Device, strict: bool) -> dk.DeviceManager:
    return device if isinstance(device, dk.DeviceManager) else dk.DeviceManager(device, strict=strict)


def _check(
    given: int, horizon: int, farthest: int, temperature: float, top_p: float, top_k: int | None, samples: int
) -> None:
    sense = (
        (given >= FEWEST, f"{given} candles are too few; at least {FEWEST} are needed"),
        (1 <= horizon <= farthest, f"a horizon of {horizon} candles cannot be forecast; it is 1 to {farthest} here"),
        (0 < temperature < float("inf"), f"a temperature of {temperature} cannot be; it is above 0"),
        (0 < top_p <= 1, f"top_p is a probability above 0, up to 1, not {top_p}"),
        (top_k is None or top_k >= 1, f"top_k is a number of tokens from 1, not {top_k}"),
        (samples >= 1, f"{samples} samples are no forecast; at least 1"),
    )
    for right, words in sense:
        if not right:
            raise ForecastError(words)
