"""What was redirected or refused, where and how often, in this process and in its children: for ``--report``."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from devicekit.redirect import told

__all__ = ["Place", "Record", "Row", "place_of"]

_PASSED_OVER = ("torch", "devicekit", "importlib", "runpy")


class Place(NamedTuple):
    """Something that happened, and the line of the program that asked for it."""

    what: str
    file: str
    line: int
    refused: bool = False
    """It could not be had; else it was redirected."""


class Row(NamedTuple):
    """A place as it is told: its file relative to the working folder where it is below it, and how often."""

    what: str
    file: str
    line: int
    times: int
    refused: bool


class Record:
    """Counts by place. Safe in threads.

    Once it is shared, child processes count as well: what they have counted comes in by :meth:`gather`.
    """

    counts: Counter[Place]
    """What was counted in this process, and came from its children so far."""

    def __init__(self) -> None:
        self.counts = Counter()
        self._home = Path.cwd()
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._reader: int | None = None

    def count(self, what: str, frame: FrameType | None, *, refused: bool = False) -> None:
        """One more, asked for by the innermost frame that is neither torch's nor ours."""
        place = place_of(what, frame, refused=refused)
        with self._lock:
            self.counts[place] += 1

    def add(self, counts: Mapping[Place, int]) -> None:
        """What another process has counted."""
        with self._lock:
            self.counts.update(counts)

    # -- what it says ----------------------------------------------------------------------------
    def rows(self) -> list[Row]:
        """All places, the most frequent first; those of children that have ended are among them."""
        self.gather()
        with self._lock:
            counted = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [Row(p.what, self._relative(p.file), p.line, count, p.refused) for p, count in counted]

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The same as data: ``redirected`` and ``refused``, lists of ``what file line count``."""
        found: dict[str, list[dict[str, Any]]] = {"redirected": [], "refused": []}
        for what, file, line, times, refused in self.rows():
            entry = {"what": what, "file": file, "line": line, "count": times}
            found["refused" if refused else "redirected"].append(entry)
        return found

    def _relative(self, file: str) -> str:
        with contextlib.suppress(ValueError):
            return str(Path(file).relative_to(self._home)) if file else ""
        return file

    # -- between processes -----------------------------------------------------------------------
    def share(self) -> str:
        """The folder into which child processes put their counts, until :meth:`close`."""
        if self._folder is None:
            self._folder, self._reader = Path(tempfile.mkdtemp(prefix="devicekit-report-")), os.getpid()
            told.when_a_child_ends(self)
        return str(self._folder)

    @classmethod
    def of_child(cls, folder: str) -> Record:
        """The record of a child process, which puts what it has counted into its parent's folder when it ends."""
        made = cls()
        made._folder = Path(folder)
        told.when_a_child_ends(made)
        told.finally_leave(made)
        return made

    def begin_as_child(self) -> None:
        """This process was forked: what was counted before is its parent's."""
        self._lock = threading.Lock()  # the other may be held, by a thread that is not here
        self.counts.clear()

    def leave(self) -> None:
        """Put what was counted into the parent's folder, once; nothing in the parent itself."""
        if self._folder is None or os.getpid() == self._reader:
            return
        with self._lock:
            counts, self.counts = self.counts, Counter()
        if counts:
            told.write(self._folder, counts)

    def gather(self) -> None:
        """Add what children have left so far."""
        if self._folder is not None and os.getpid() == self._reader:
            for counts in told.read(self._folder):
                self.add({Place(*place): count for *place, count in counts})

    def close(self) -> None:
        """No child puts anything any more."""
        if self._folder is not None and os.getpid() == self._reader:
            self.gather()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def place_of(what: str, frame: FrameType | None, *, refused: bool = False) -> Place:
    """The place in the program; no file and line 0 where no frame is the program's."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _PASSED_OVER:
            return Place(what, frame.f_code.co_filename, frame.f_lineno, refused)
        frame = frame.f_back
    return Place(what, "", 0, refused)
