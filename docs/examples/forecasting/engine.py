"""One model in service: replaced while others ask, one forecast at a time, and never more waiting than agreed.

Everything here runs on the event loop, but for the work itself: forecasts run in one thread, so that the device has one
master, and a model is read in another, so that the one before it serves meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import devicekit as dk
from forecasting.candles import ForecastError
from forecasting.folder import ModelError
from forecasting.market import make_candles
from forecasting.predictor import FEWEST, Predictor

__all__ = ["Engine", "Loaded", "RefusedError"]

T = TypeVar("T")
Loader = Callable[[str, "str | None"], Predictor]
"""Takes the model's name and the device's; None for the one that the service was started with."""

TOO_MUCH = "the device has not enough memory for this; ask for fewer samples or a shorter horizon"
TOO_LARGE = "the device has not enough memory for this model"

log = logging.getLogger("forecasting.engine")


class RefusedError(Exception):
    """A request that is answered with an error; the text says why.

    Args:
        status: of HTTP.
        words: why.
        retry_after: seconds after which it may go better.
    """

    def __init__(self, status: int, words: str, *, retry_after: int | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Loaded:
    """A model in service; a request keeps to the one that it began with."""

    name: str
    predictor: Predictor


class Engine:
    """Serves one model.

    Args:
        load: reads a model, in a thread.
        limit: forecasts that wait or run; one more is turned away.
    """

    def __init__(self, load: Loader, *, limit: int = 16) -> None:
        self.loaded: Loaded | None = None
        self.reason = "no model has been loaded"
        self._load = load
        self._limit = limit
        self._waiting = 0
        self._seconds = 1.0
        self._loading = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="forecast")

    async def run(self, work: Callable[[Loaded], T]) -> T:
        """What ``work`` makes of the model, in the worker's thread.

        Raises:
            RefusedError: there is no model yet, too many wait, the device has not enough memory, or ``work`` said that
                what was asked makes no sense.
        """
        if self.loaded is None:
            raise RefusedError(503, self.reason, retry_after=1)
        if self._waiting >= self._limit:
            wait = max(1, math.ceil(self._waiting * self._seconds))
            raise RefusedError(503, f"{self._waiting} forecasts are waiting; come back later", retry_after=wait)
        self._waiting += 1
        try:
            return await self._in_worker(lambda: self._timed(work))
        finally:
            self._waiting -= 1

    async def replace(self, name: str, device: str | None) -> Loaded:
        """Load another model, try it, and only then put it in the place of the one that serves.

        Raises:
            RefusedError: it cannot be loaded or used; the one before it still serves.
        """
        async with self._loading:
            before = None if self.loaded is None else self.loaded.predictor.dm
            try:
                predictor = await asyncio.to_thread(_sparing, before, TOO_LARGE, lambda: self._load(name, device))
                await self._in_worker(lambda: _sparing(predictor.dm, TOO_LARGE, lambda: _try_out(predictor)))
            except (dk.DeviceKitError, ModelError) as error:
                raise self._failed(RefusedError(422, str(error))) from error
            except RefusedError as error:
                raise self._failed(error) from None
            self.loaded = loaded = Loaded(name, predictor)
            if before is not None:
                await self._in_worker(before.empty_cache)  # what the former model held is another's now
            log.info("%s serves on %s", name, predictor.device)
            return loaded

    async def begin(self, name: str) -> None:
        """Load the first model; why that failed is kept for those who ask."""
        self.reason = f"{name} is being loaded"
        try:
            await self.replace(name, None)
        except RefusedError as error:
            log.error("%s", error)
        except Exception as error:
            log.exception("%s cannot be loaded", name)
            self.reason = f"{name} cannot be loaded: {type(error).__name__}: {error}"

    def close(self) -> None:
        """End after the forecast that runs; those that wait are dropped."""
        self._worker.shutdown(cancel_futures=True)

    def _failed(self, error: RefusedError) -> RefusedError:
        if self.loaded is None:
            self.reason = str(error)
        return error

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _timed(self, work: Callable[[Loaded], T]) -> T:
        loaded, begin = self.loaded, time.perf_counter()
        assert loaded is not None  # it was there when this began to wait, and is only ever replaced
        try:
            return _sparing(loaded.predictor.dm, TOO_MUCH, lambda: work(loaded))
        except ForecastError as error:
            raise RefusedError(422, str(error)) from error
        finally:
            self._seconds = time.perf_counter() - begin


def _sparing(dm: dk.DeviceManager | None, words: str, work: Callable[[], T]) -> T:
    """Do it; where memory runs out, give back what the device holds for nobody, and say so.

    Raises:
        RefusedError: memory ran out.
    """
    try:
        return work()
    except Exception as error:
        if not dk.is_out_of_memory(error):
            raise
        log.warning("out of memory: %s", error)
    # Behind the block: the error's traceback held what had been computed, and only now can that be given back.
    if dm is not None:
        dm.empty_cache()
    raise RefusedError(507, words)


def _try_out(predictor: Predictor) -> None:
    """A model that loads may still not run on this device; and the first run is slow."""
    predictor.predict(make_candles(FEWEST, seed=0), 1, samples=1, seed=0)
