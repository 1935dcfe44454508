"""A forecast: through the facade, and with torch alone.

By hand the device is named, tensors are moved to it, and the noise is drawn from a generator and moved. All else, the
model, the checks of what is asked and the way back to prices, is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from _systems import Pair

HORIZON, SAMPLES, SEED = 24, 16, 7


def pair() -> Pair:
    """The pair; docs/examples is on the path. The weights are random, which takes as long as trained ones."""
    from forecasting import folder
    from forecasting.candles import following
    from forecasting.features import Scale, stamps
    from forecasting.market import make_candles
    from forecasting.model import Config, Sampling, sample
    from forecasting.predictor import Predictor, _check

    config = Config()
    torch.manual_seed(0)
    model, tokenizer = folder.build(config)
    candles = make_candles(config.context, seed=1)
    predictor = Predictor(model, tokenizer, "cpu")
    device = torch.device("cpu")
    model, tokenizer = model.to(device).eval(), tokenizer.to(device).eval()

    def facade() -> Any:
        return predictor.predict(candles, HORIZON, samples=SAMPLES, seed=SEED).paths

    @torch.inference_mode()
    def by_hand() -> Any:
        _check(len(candles), HORIZON, config.horizon, 1.0, 1.0, None, SAMPLES)
        frame = candles.last(config.context)
        after = following(frame.times, HORIZON)
        scale = Scale.of(frame.values)
        tokens = tokenizer.encode(torch.from_numpy(scale.features(frame.values)).to(device))
        times = torch.from_numpy(stamps(np.concatenate([frame.times[1:], after]))).to(device)
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn((SAMPLES, HORIZON), generator=generator).to(device)
        features = tokenizer.decode(sample(model, tokens, times, noise, Sampling())).cpu().numpy()
        return scale.candles(features, frame.values.shape[1])

    def same(ours: Any, theirs: Any) -> bool:
        return bool(np.array_equal(ours, theirs))

    return Pair(f"{SAMPLES} forecasts of {HORIZON} candles from {config.context}", facade, by_hand, same)
