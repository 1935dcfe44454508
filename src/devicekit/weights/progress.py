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
def following(progress: Progress, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes as they arrive, by one thread at a time."""
    with contextlib.ExitStack() as stack:
        if callable(progress):
            told = progress
        elif progress is False or not (progress or sys.stderr.isatty()):
            yield _nobody
            return
        else:
            told = _Bar(stack)
        done = 0

        def tell(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            told(done, total)

        yield tell


def _nobody(nbytes: int) -> None:
    """Nobody watches."""


class _Bar:
    """A bar on stderr, once the load turns out to be long; rich is imported only then."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._began < PATIENCE or done >= total:
                return
            self._bar, self._task = self._made(total)
        self._bar.update(self._task, completed=done)

    def _made(self, total: int) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        bar = Progress("loading weights", *columns, console=Console(stderr=True), transient=True)
        self._stack.enter_context(bar)
        return bar, bar.add_task("", total=total)
