"""What was redirected, where and how often: for ``--report``."""

from __future__ import annotations

import threading
from collections import Counter
from types import FrameType
from typing import NamedTuple

__all__ = ["Place", "Record", "place_of"]

_OWN = ("torch", "devicekit")


class Place(NamedTuple):
    """Something that was redirected, and the line of the program that asked for it."""

    what: str
    file: str
    line: int


class Record:
    """Counts by place. Safe in threads."""

    def __init__(self) -> None:
        self.counts: Counter[Place] = Counter()
        self._lock = threading.Lock()

    def count(self, what: str, frame: FrameType | None) -> None:
        """One more, asked for by the innermost frame that is neither torch's nor ours."""
        place = place_of(what, frame)
        with self._lock:
            self.counts[place] += 1


def place_of(what: str, frame: FrameType | None) -> Place:
    """The place in the program; in torch itself where no frame is the program's."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _OWN:
            return Place(what, frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return Place(what, "", 0)
