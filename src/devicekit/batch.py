"""Find the largest batch that fits, by running it: an estimate chooses nothing here.

What other finders get wrong is what this one is held to: it answers only with a size that ran, finds exactly the
largest, and drops the tensors of a failed attempt before it clears the cache (they live in the frames of the traceback
as long as the exception does, pytorch/pytorch#18853).
"""

from __future__ import annotations

import functools
import gc
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

from devicekit.backend import Backend
from devicekit.errors import BatchSizeError, DeviceKitError
from devicekit.memory import chain, is_out_of_memory

__all__ = ["Finder", "Watch", "search"]

MOST = 1 << 20
"""Without a limit the search ends here: whatever runs with a million needs no search."""

Watch: TypeAlias = "Callable[[int, bool], object] | bool | None"
"""Called after each attempt with the size and whether it fitted; True: a line on stderr for each; False: nothing;
None: lines where a person watches."""


def search(runs: Callable[[int], bool], start: int, limit: int) -> int:
    """The largest size from 1 to ``limit`` that runs, if smaller ones run wherever a larger one does; 0: none."""
    fits, fails, size = 0, limit + 1, start
    while fails - fits > 1:
        if runs(size):
            fits = size
            # Double until something fails, then halve the distance.
            size = min(2 * size, limit) if fails > limit else (fits + fails) // 2
        else:
            fails = size
            size = (fits + fails) // 2
    return fits


class Finder:
    """A search on one device, which can be asked for several steps.

    Args:
        backend: whose memory it is.
        device: the device, for what is to be kept free on it.
        index: the device's number.
        start: the first size; one that is near the answer saves attempts.
        limit: the largest size to try.
        headroom: the part of the device's memory that stays free while a size runs, 0 to 1.
        watch: who is told of the attempts.
    """

    def __init__(
        self, backend: Backend, device: Any, index: int, start: int, limit: int | None, headroom: float, watch: Watch
    ) -> None:
        self._backend = backend
        self._device = device
        self._index = index
        self._start = _whole("start", start)
        self._limit = MOST if limit is None else _whole("limit", limit)
        if self._start > self._limit:
            raise DeviceKitError(f"start={start} is larger than limit={limit}.", try_="start=1")
        if not isinstance(headroom, int | float) or not 0 <= headroom < 1:
            raise DeviceKitError(f"{headroom!r} is no headroom.", try_="headroom=0.1, for a tenth of the memory")
        self._headroom = float(headroom)
        self._tell = _teller(watch)
        self._last: BaseException | None = None

    def largest(self, step: Callable[[int], object]) -> int:
        """The largest size that ran.

        Raises:
            BatchSizeError: not even 1 ran.
        """
        found = search(lambda size: self._runs(step, size), self._start, self._limit)
        if found:
            return found
        last, self._last = self._last, None
        why = str(last).strip().partition("\n")[0] if last is not None else ""
        stats = self._backend.memory_stats(self._index)
        left = "" if stats.available is None else f" ({stats.available / 2**30:.1f} GiB are free)"
        raise BatchSizeError(
            f"Not even a batch of 1 fits on {self._device}.",
            why=(why or "memory ran out") + left,
            try_="a smaller model or dtype, dm.empty_cache() before, or another device",
        ) from last

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a batch size and more, to one of the rest: the size is found at the first call, and kept."""

        @functools.wraps(function)
        def found(*args: Any, **kwargs: Any) -> Any:
            if found.batch_size is None:  # type: ignore[attr-defined]  # a function has attributes
                found.batch_size = self.largest(lambda size: function(size, *args, **kwargs))  # type: ignore[attr-defined]
            return function(found.batch_size, *args, **kwargs)  # type: ignore[attr-defined]

        found.batch_size = None  # type: ignore[attr-defined]
        return found

    def _runs(self, step: Callable[[int], object], size: int) -> bool:
        failure = self._attempt(step, size)
        if failure is not None:
            _forget(failure)
            self._last = failure
            gc.collect()  # what lies in circles is freed by nothing else
        self._backend.empty_cache(self._index)  # so that every size starts from the same memory
        self._tell(size, failure is None)
        return failure is None

    def _attempt(self, step: Callable[[int], object], size: int) -> BaseException | None:
        try:
            with self._backend.keeping_free(self._headroom, self._device, self._index):
                step(size)
                self._backend.synchronize(self._index)  # some say only now that memory ran out
        except Exception as exc:
            if is_out_of_memory(exc):
                return exc
            raise
        return None


def _forget(failure: BaseException) -> None:
    """Let go of what the frames hold in which it was raised, and of those it came from."""
    for each in chain(failure):
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None


def _whole(name: str, value: Any) -> int:
    if type(value) is int and value >= 1:
        return value
    raise DeviceKitError(f"{name}={value!r} is no batch size.", try_="a whole number from 1 on")


def _teller(watch: Watch) -> Callable[[int, bool], object]:
    if callable(watch):
        return watch
    if watch is False or not (watch or (sys.stderr is not None and sys.stderr.isatty())):
        return lambda *_: None
    return _say


def _say(size: int, fitted: bool) -> None:
    sys.stderr.write(f"batch size {size}: {'fits' if fitted else 'out of memory'}\n")
