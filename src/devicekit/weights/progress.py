"""Tell how far a long load is: a bar for a person who watches, a callback for a program."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

__all__ = ["Progress", "following"]

Progress: TypeAlias = "Callable[[int, int], object] | bool | None"
"""Called with the bytes done and the bytes in all; True: a bar; False: nothing; None: a bar where a person watches."""

PATIENCE = 1.0
"""Seconds without a bar: what is over by then needs none."""


@contextlib.contextmanager
def following(
    progress: Progress, total: int, clock: Callable[[], float] = time.monotonic, *, words: str = "loading weights"
) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes as they arrive, by one thread at a time."""
    with contextlib.ExitStack() as stack:
        if callable(progress):
            told = progress
        elif progress is False or not (progress or _is_watched()):
            yield _nobody
            return
        else:
            told = _Bar(stack, clock, words)
        done = 0

        def tell(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            told(done, total)

        yield tell


def _is_watched() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()  # None: a Windows program without a console
    except ValueError:  # it is closed
        return False


def _nobody(nbytes: int) -> None:
    """Nobody watches."""


class _Bar:
    """A bar on stderr, once the load turns out to be long; rich is imported only then."""

    def __init__(self, stack: contextlib.ExitStack, clock: Callable[[], float], words: str) -> None:
        self._stack = stack
        self._clock = clock
        self._words = words
        self._began = clock()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if self._clock() - self._began < PATIENCE or done >= total:
                return
            self._bar, self._task = self._made(total)
        self._bar.update(self._task, completed=done)

    def _made(self, total: int) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        bar = Progress(self._words, *columns, console=Console(stderr=True), transient=True)
        self._stack.enter_context(bar)
        return bar, bar.add_task("", total=total)
