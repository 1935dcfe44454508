"""What child processes tell their parent of what they counted: one file each, in a folder of the parent's.

A process can end in several ways. Python's own end runs what ``atexit`` knows. A child that ``multiprocessing`` forks
ends by ``os._exit`` after its own finalizers, and it forgets those that were registered before it began. So both are
used. A child that is killed tells nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devicekit.redirect.recording import Place, Record

__all__ = ["finally_leave", "read", "when_a_child_ends", "write"]

_SHARED: weakref.WeakSet[Record] = weakref.WeakSet()
_LAST = -1000
"""The priority of a finalizer: after the program's own."""


def when_a_child_ends(record: Record) -> None:
    """Have the record's ``leave`` called when this process ends as Python ends, and when those do that it forks."""
    from multiprocessing import util  # torch imports it as well

    if not _SHARED:
        _watch_forks()
    _SHARED.add(record)
    util.register_after_fork(record, finally_leave)
    ended = weakref.WeakMethod(record.leave)
    atexit.register(lambda: (ended() or _nothing)())


def finally_leave(record: Record) -> None:
    """The same for a process that multiprocessing has begun, and ends."""
    from multiprocessing import util

    util.Finalize(None, record.leave, exitpriority=_LAST)


def _nothing() -> None:
    pass


def _watch_forks() -> None:
    global _watched
    if not _watched and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_as_children)
        _watched = True


_watched = False


def _begin_as_children() -> None:
    for record in list(_SHARED):
        record.begin_as_child()


# -- files -----------------------------------------------------------------------------------------
def write(folder: Path, counts: Mapping[Place, int]) -> None:
    """A file that is there whole or not at all; nothing where the parent has ended, and its folder with it."""
    name = f"{os.getpid()}-{uuid.uuid4().hex}"
    unfinished = folder / f"{name}.part"
    with contextlib.suppress(FileNotFoundError):
        unfinished.write_text(json.dumps([[*place, count] for place, count in counts.items()]), encoding="utf-8")
        unfinished.replace(folder / f"{name}.json")


def read(folder: Path) -> Iterator[list[list[Any]]]:
    """What is there, which is taken away: what was told is told once."""
    for file in sorted(folder.glob("*.json")):
        yield json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
