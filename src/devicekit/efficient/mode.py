"""What was switched on, what was not and why, and the way back: nothing optional raises or is left half done."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from devicekit.backend import Backend
from devicekit.errors import DeviceKitError
from devicekit.values import MemoryStats

__all__ = ["EfficientMode", "Here", "Steps", "in_words"]

log = logging.getLogger("devicekit")


@dataclass(frozen=True, slots=True)
class EfficientMode:
    """What came of it, in sentences. True when something was switched on."""

    done: tuple[str, ...]
    """What was switched on, and what it does."""
    not_done: tuple[str, ...]
    """What was not, and why: it is on already, it would only cost time, it does not exist here, or it failed."""
    _back: list[tuple[str, Callable[[], object]]] = field(default_factory=list, repr=False, compare=False)

    def undo(self) -> None:
        """Bring back what was before, the last step first. Once more does nothing.

        Raises:
            DeviceKitError: a step could not be taken back; all others were.
        """
        failed: list[tuple[str, Exception]] = []
        while self._back:
            label, back = self._back.pop()
            try:
                back()
            except Exception as exc:  # the steps before it must be taken back all the same
                failed.append((label, exc))
        if failed:
            why = "; ".join(f"{label}: {_told(exc)}" for label, exc in failed)
            raise DeviceKitError("Not everything could be undone.", why=why) from failed[0][1]

    def __bool__(self) -> bool:
        return bool(self.done)

    def __str__(self) -> str:
        return "\n".join([*(f"on   {each}" for each in self.done), *(f"off  {each}" for each in self.not_done)])


@dataclass(frozen=True, slots=True)
class Here:
    """Where things are to run."""

    backend: Backend
    device: Any
    index: int
    memory: Callable[[], MemoryStats]
    """The device's figures now; it never raises."""


class Steps:
    """Switches one thing after the other on, and keeps what happened."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._not_done: list[str] = []
        self._back: list[tuple[str, Callable[[], object]]] = []

    def leave(self, sentence: str) -> None:
        """Say why something is not switched on."""
        self._not_done.append(sentence)

    @contextlib.contextmanager
    def telling(self, label: str) -> Iterator[None]:
        """Inside, what is raised while something is decided becomes a reason why it was left."""
        try:
            yield
        except Exception as exc:  # a driver that fails, a component that cannot be asked
            log.debug("%s failed", label, exc_info=True)
            self.leave(f"{label}: {_told(exc)}")

    def switch(self, label: str, words: str, on: Callable[[], object], back: Callable[[], object]) -> None:
        """Switch it on; where that fails, take back what it had begun, and keep the reason."""
        try:
            on()
        except Exception as exc:  # optional: the steps before it stay, and those after it are tried
            log.debug("%s failed", label, exc_info=True)
            self.leave(f"{label}: {_told(exc)}{_taken_back(back)}")
            return
        self._done.append(f"{label}: {words}")
        self._back.append((label, back))

    def mode(self) -> EfficientMode:
        """What came of it all."""
        return EfficientMode(tuple(self._done), tuple(self._not_done), self._back)


def _taken_back(back: Callable[[], object]) -> str:
    try:
        back()
    except Exception as exc:
        return f"; what it had begun could not be taken back: {_told(exc)}"
    return ""


def _told(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".rstrip(": ").replace("\n", " ")


def in_words(size: int) -> str:
    """A size in bytes as ``23.8 GiB`` or, where that says more, ``512.0 MiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
