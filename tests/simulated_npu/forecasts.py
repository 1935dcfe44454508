"""The forecasting of docs/examples trains and forecasts on the simulated npu as on the CPU, and outlives its memory."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))

import numpy as np
import pytest
import torch

import devicekit as dk
from devicekit.testing.simulated_npu import install
from forecasting import folder
from forecasting.engine import Engine, RefusedError
from forecasting.market import make_candles
from forecasting.model import Config
from forecasting.predictor import Predictor
from forecasting.train import Plan, train

torch.set_num_threads(1)
install("256MiB", float64=False)
NPU = dk.DeviceManager("npu", strict=True)
SMALL = Config(levels=(5, 5, 3), width=32, layers=1, heads=2, context=32, horizon=8)
CANDLES = make_candles(40, seed=1)


def predictors() -> tuple[Predictor, Predictor]:
    """The same weights on the CPU and on the npu, by way of a folder."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as path:
        folder.save(Path(path), *folder.build(SMALL), {})
        return Predictor.load(path, "cpu"), Predictor.load(path, NPU)


def check_training() -> None:
    """It runs on the device, and gives what the CPU gives."""
    losses = []
    for dm in (dk.DeviceManager("cpu"), NPU):
        model, _, told = train(dm, SMALL, Plan(steps=6))
        assert {parameter.device for parameter in model.parameters()} == {dm.device}
        losses.append(told["held_out_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)


def check_a_forecast_is_the_same() -> None:
    """The same seed, the same paths; the weights are on npu:0."""
    here, there = predictors()
    assert {str(weight.device) for weight in there.model.parameters()} == {"npu:0"}
    one, other = (each.predict(CANDLES, 8, seed=3).paths for each in (here, there))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def check_memory_that_runs_out() -> None:
    """A request that does not fit is refused in words, what it held is given back, and the next one is answered."""
    _, there = predictors()
    engine = Engine(lambda name, device: there)

    async def ask(samples: int) -> np.ndarray:
        return await engine.run(lambda loaded: loaded.predictor.predict(CANDLES, 8, samples=samples, seed=1).paths)

    async def all_of_it() -> None:
        await engine.replace("there", None)
        before = await ask(4)
        NPU.empty_cache()
        reserved = NPU.memory_stats().reserved
        with pytest.raises(RefusedError, match="not enough memory") as refused:
            await ask(200_000)
        assert refused.value.status == 507
        assert NPU.memory_stats().reserved == reserved
        assert np.array_equal(await ask(4), before)

    asyncio.run(all_of_it())
    engine.close()


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
