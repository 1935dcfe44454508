"""Forecasts over HTTP.

    python -m forecasting.service --model runs/first --port 8000

``/v1/predict`` forecasts, ``/v1/readyz`` tells whether and where, ``/v1/load-model`` puts another model in its place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

import devicekit as dk
from forecasting import folder
from forecasting.candles import COLUMNS, Candles, ForecastError, as_text
from forecasting.engine import Engine, Loaded, RefusedError
from forecasting.predictor import Forecast, Predictor

__all__ = ["create_app", "main"]

MOST_CANDLES, MOST_SAMPLES = 4096, 64
NAME = r"^\w[\w.-]{0,99}$"
"""Of a model: a folder beside the others, and no way out of there."""


# -- what is asked and answered ------------------------------------------------------------------
class Strict(BaseModel):
    """A number is a number and no text, and a name that means nothing is an error."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Candle(Strict):
    """One candle; its time in ISO 8601, in UTC where it says no zone, in whole seconds."""

    time: datetime = Field(strict=False)
    open: float
    high: float
    low: float
    close: float
    volume: float
    amount: float | None = None


class Question(Strict):
    """What ``Predictor.predict`` takes."""

    candles: list[Candle] = Field(max_length=MOST_CANDLES)
    horizon: int
    samples: int = Field(8, ge=1, le=MOST_SAMPLES)
    seed: int | None = Field(None, ge=0, lt=2**63)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def frame(self) -> Candles:
        """The candles, as the predictor takes them.

        Raises:
            ForecastError: they make no sense.
        """
        with_amount = {candle.amount is not None for candle in self.candles}
        if len(with_amount) > 1:
            raise ForecastError("some candles have an amount and others have none")
        columns = COLUMNS if True in with_amount else COLUMNS[:-1]
        rows = [[getattr(candle, name) for name in columns] for candle in self.candles]
        times = [_seconds(candle.time) for candle in self.candles]
        return Candles(np.array(times, np.int64), np.array(rows, np.float64).reshape(-1, len(columns)))


class Change(Strict):
    """Another model, by the name of its folder, and where it is to run."""

    model: str = Field(pattern=NAME)
    device: str | None = None


def _seconds(time: datetime) -> int:
    return int((time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp())


def _answer(loaded: Loaded, forecast: Forecast) -> dict[str, Any]:
    names = COLUMNS[: forecast.mean.shape[1]]
    rows = zip(as_text(forecast.times), forecast.mean.tolist(), strict=True)
    return {
        "model": loaded.name,
        "device": str(loaded.predictor.device),
        "seed": forecast.seed,
        "candles": [{"time": time, **dict(zip(names, row, strict=True))} for time, row in rows],
        "closes": forecast.paths[:, :, COLUMNS.index("close")].tolist(),
    }


def _about(loaded: Loaded) -> dict[str, Any]:
    """The device in words and figures; asks the runtime, so not for the event loop."""
    predictor = loaded.predictor
    report = predictor.dm.report()
    return {
        "model": loaded.name,
        "device": str(predictor.device),
        "device_warning": predictor.device_warning,
        "memory": report.pop("memory"),
        "report": report,
    }


# -- the application -----------------------------------------------------------------------------
def create_app(
    model: Path | None = None, device: str | dk.DeviceManager | None = None, *, strict: bool = False, limit: int = 16,
    engine: Engine | None = None,
) -> FastAPI:  # fmt: skip
    """The application; with ``uvicorn --factory forecasting.service:create_app`` it waits for ``/v1/load-model``.

    Args:
        model: the folder of the first model; the others lie beside it. Without one, they lie where the process runs.
        device: any name that devicekit knows, or a manager; by default the pinned one, else the best.
        strict: fail rather than take another device.
        limit: forecasts that may wait.
        engine: instead of one that reads folders.
    """
    models = Path.cwd() if model is None else model.resolve().parent

    def load(name: str, wanted: str | None) -> Predictor:
        return Predictor.load(models / name, device if wanted is None else wanted, strict=strict)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = serving = engine or Engine(load, limit=limit)
        first = None if model is None else asyncio.create_task(serving.begin(model.resolve().name))
        yield
        if first is not None:
            await first
        await asyncio.to_thread(serving.close)

    app = FastAPI(title="Forecasts of candlesticks", lifespan=lifespan)
    app.post("/v1/predict")(predict)
    app.get("/v1/readyz")(readyz)
    app.post("/v1/load-model")(load_model)
    app.exception_handler(RefusedError)(_refused)
    app.exception_handler(RequestValidationError)(_misunderstood)
    return app


async def predict(request: Request, question: Question) -> JSONResponse:
    """The mean of the samples as candles, and the closes of each."""

    def work(loaded: Loaded) -> dict[str, Any]:
        forecast = loaded.predictor.predict(
            question.frame(), question.horizon, temperature=question.temperature, top_p=question.top_p,
            top_k=question.top_k, samples=question.samples, seed=question.seed,
        )  # fmt: skip
        return _answer(loaded, forecast)

    return JSONResponse(await _engine(request).run(work))


def readyz(request: Request) -> JSONResponse:
    """Whether forecasts are to be had, and from which device. No coroutine: FastAPI runs it in a thread."""
    engine = _engine(request)
    if engine.loaded is None:
        return JSONResponse({"ready": False, "error": engine.reason}, 503, headers={"Retry-After": "1"})
    return JSONResponse({"ready": True, **_about(engine.loaded)})


async def load_model(request: Request, change: Change) -> JSONResponse:
    """Load another model; until it is there, and if it fails, the one before it serves."""
    loaded = await _engine(request).replace(change.model, change.device)
    return JSONResponse(await asyncio.to_thread(_about, loaded))


def _engine(request: Request) -> Engine:
    return request.app.state.engine  # type: ignore[no-any-return]


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse({"error": str(error)}, error.status, headers=headers)


async def _misunderstood(_: Request, error: Exception) -> JSONResponse:
    """In words only: FastAPI's own answer repeats the value, and NaN cannot be sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"error": f"{place}: {first['msg']}" if place else first["msg"]}, 422)


# -- the command line ----------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; 2 when that cannot begin, with the reason on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        folder.read_config(options.model)
        dm = dk.DeviceManager(options.device, strict=options.strict)
        listener = socket.create_server((options.host, options.port))
    except (dk.DeviceKitError, folder.ModelError, OSError) as error:
        sys.stderr.write(f"forecasting.service: {error}\n")
        return 2
    with listener:
        app = create_app(options.model, dm, strict=options.strict, limit=options.limit)
        sys.stdout.write(f"http://{options.host}:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended by then, and raises the signal once more
            server.run(sockets=[listener])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forecasting.service", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="what forecasting.train has saved")
    parser.add_argument("--host", default="127.0.0.1", help="(127.0.0.1)")
    parser.add_argument("--port", type=_whole(0, 65535), default=8000, help="(8000); 0 for one that is free")
    parser.add_argument(
        "--device", metavar="NAME", help="any name that devicekit knows (the pinned one, else the best)"
    )
    parser.add_argument("--strict", action="store_true", help="fail rather than take another device")
    parser.add_argument("--limit", type=_whole(1, 4096), default=16, metavar="N", help="forecasts that may wait (16)")
    return parser


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return read


if __name__ == "__main__":
    raise SystemExit(main())
