"""Read tensors into memory that was made for them, by several threads that take pieces from one queue.

Large tensors are read in pieces, runs of small ones that lie behind each other at once. The pieces are handed out in
the order of the file, so that a cold file is read from front to back. Nothing but these pieces is ever held twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from devicekit.errors import WeightsError
from devicekit.staging import Staging
from devicekit.weights.arrays import Arrays
from devicekit.weights.checkpoint import Stored
from devicekit.weights.header import shown
from devicekit.weights.pages import fresh
from devicekit.weights.source import BLOCK, Source

__all__ = [
    "PIECE",
    "ROOM",
    "Filler",
    "HostFiller",
    "Part",
    "Piece",
    "Request",
    "StagedFiller",
    "at",
    "fill",
    "neighbours",
    "pieces",
]

PIECE = 4 << 20
"""Bytes read at once: they stay in the cache between reading and casting, and the queue is asked seldom."""
ROOM = PIECE + BLOCK
"""Bytes of a buffer in which a piece can lie so that it can be read past the page cache."""


class Request(NamedTuple):
    """A tensor that is wanted in memory."""

    name: str
    stored: Stored
    dtype: Any
    """Of the file, in the framework's words."""
    wanted: Any
    """Of the result."""
    flat: Any = None
    """Where it goes; None: memory is still to be made."""


class Part(NamedTuple):
    """A stretch of a flat tensor, and which elements of the piece go there."""

    target: Any
    begin: int
    length: int


class Piece(NamedTuple):
    """Bytes that are read at once."""

    name: str
    """Of its first tensor."""
    source: Source
    offset: int
    nbytes: int
    dtype: Any
    parts: Sequence[Part]


def neighbours(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Requests in the order of the files; those that lie behind each other and are alike, together up to one piece."""
    waiting = list(requests)
    order = {source: i for i, source in enumerate(dict.fromkeys(each.stored.source for each in waiting))}
    waiting.sort(key=lambda each: (order[each.stored.source], each.stored.entry.begin))
    group: list[Request] = []
    size = 0
    for request in waiting:
        nbytes = request.stored.entry.nbytes
        if group and (size + nbytes > PIECE or not _joins(group[-1], request)):
            yield group
            group, size = [], 0
        group.append(request)
        size += nbytes
    if group:
        yield group


def _joins(before: Request, after: Request) -> bool:
    first, second = before.stored, after.stored
    alike = first.source is second.source and before.dtype == after.dtype and before.wanted == after.wanted
    return alike and first.entry.begin + first.entry.nbytes == second.entry.begin


def pieces(group: Sequence[Request]) -> Iterator[Piece]:
    """How a group of neighbours is read into the memory of each."""
    if len(group) == 1:
        return large_pieces(group[0])
    first, parts, at = group[0], [], 0
    for request in group:
        length = request.stored.entry.nbytes // request.dtype.itemsize
        parts.append(Part(request.flat, at, length))
        at += length
    offset, nbytes = first.stored.entry.begin, at * first.dtype.itemsize
    return iter([Piece(first.name, first.stored.source, offset, nbytes, first.dtype, parts)])


def large_pieces(request: Request) -> Iterator[Piece]:
    """How one tensor is read."""
    entry, dtype, flat = request.stored.entry, request.dtype, request.flat
    step, total = PIECE // dtype.itemsize, entry.nbytes // dtype.itemsize
    begin, length = 0, step - request.stored.source.lead(entry.begin) // dtype.itemsize
    while begin < total:
        length = min(length, total - begin)
        part = Part(flat if length == total else flat[begin : begin + length], 0, length)
        offset, nbytes = entry.begin + begin * dtype.itemsize, length * dtype.itemsize
        yield Piece(request.name, request.stored.source, offset, nbytes, dtype, (part,))
        begin, length = begin + length, step


# -- the two ways to fill ------------------------------------------------------------------------
class Filler(Protocol):
    """Fills pieces, in one thread."""

    def fill(self, piece: Piece) -> None:
        """Bring it into memory."""

    def finish(self) -> None:
        """Wait until all that was filled is there."""


class HostFiller:
    """Into the host's memory: read in place, or into a small buffer and cast from there."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._buffer: Any = None

    def fill(self, piece: Piece) -> None:
        """Read, and cast where that is asked for."""
        if not self._in_place(piece):
            self._through_buffer(piece)

    def _in_place(self, piece: Piece) -> bool:
        target = piece.parts[0].target
        if len(piece.parts) > 1 or target.dtype != piece.dtype:
            return False
        there = self._arrays.bytes_of(target)
        if piece.source.start(there, piece.offset):
            return False
        piece.source.read_into(there, piece.offset)
        return True

    def _through_buffer(self, piece: Piece) -> None:
        arrays = self._arrays
        if self._buffer is None:
            self._buffer = fresh(ROOM)
        room = memoryview(self._buffer)
        start = piece.source.start(room, piece.offset, piece.dtype.itemsize)
        piece.source.read_into(room[start : start + piece.nbytes], piece.offset)
        count = piece.nbytes // piece.dtype.itemsize
        read = arrays.cut(self._buffer, piece.dtype, start, (count,), count)
        for part in piece.parts:
            arrays.cast(part.target, read[part.begin : part.begin + part.length])

    def finish(self) -> None:
        """It is there."""


class StagedFiller:
    """Onto a device, through staging buffers."""

    def __init__(self, arrays: Arrays, staging: Staging) -> None:
        self._arrays = arrays
        self._staging = staging

    def fill(self, piece: Piece) -> None:
        """Read into a buffer and send its parts on their way."""
        room = self._staging.buffer()
        start = piece.source.start(self._arrays.bytes_of(room), piece.offset, piece.dtype.itemsize)
        raw = room[start : start + piece.nbytes]
        piece.source.read_into(self._arrays.bytes_of(raw), piece.offset)
        read = self._arrays.seen_as(raw, piece.dtype)
        for part in piece.parts:
            self._staging.send(part.target, read[part.begin : part.begin + part.length])
        self._staging.sent()

    def finish(self) -> None:
        """Wait for the copies."""
        self._staging.finish()


# -- the queue -----------------------------------------------------------------------------------
class _Queue:
    """What is still to be read; the first failure ends it for all."""

    def __init__(self, queued: Iterator[Piece], arrays: Arrays, tell: Callable[[int], None]) -> None:
        self._queued = queued
        self._arrays = arrays
        self._tell = tell
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def work(self, filler: Filler) -> None:
        """Fill until nothing is left. Whatever goes wrong is kept, for it may happen in any thread."""
        piece: Piece | None = None
        try:
            with self._arrays.plain():
                while (piece := self._next(piece)) is not None:
                    filler.fill(piece)
        except BaseException as exc:
            with self._lock:
                told = at(piece.name, exc) if piece is not None and isinstance(exc, WeightsError) else exc
                self.failure = self.failure or told
        finally:
            self._finish(filler)

    def _next(self, done: Piece | None) -> Piece | None:
        """Tell of the piece that is done, and give the next one; what goes wrong here is seen by all others at once."""
        with self._lock:
            try:
                if done is not None and self.failure is None:
                    self._tell(done.nbytes)
                return None if self.failure else next(self._queued, None)
            except BaseException as exc:
                self.failure = self.failure or exc
                return None

    def _finish(self, filler: Filler) -> None:
        try:
            filler.finish()  # also after a failure: the device may still be reading the buffers
        except BaseException as exc:
            self.failure = self.failure or exc


def at(name: str, error: WeightsError) -> WeightsError:
    """A failure to read that says which tensor it hit."""
    named = WeightsError(error.what, why=f"at {shown(name)}: {error.why}", try_=error.try_)
    named.__cause__ = error.__cause__
    return named


def fill(queued: Iterator[Piece], fillers: Sequence[Filler], arrays: Arrays, tell: Callable[[int], None]) -> None:
    """Read everything, with one thread for each filler; this thread is the first of them.

    Raises:
        WeightsError: something cannot be read; which tensors are filled is then unknown.
    """
    queue = _Queue(queued, arrays, tell)
    helpers = [threading.Thread(target=queue.work, args=(filler,), daemon=True) for filler in fillers[1:]]
    for helper in helpers:
        helper.start()
    try:
        queue.work(fillers[0])
    finally:
        for helper in helpers:
            helper.join()
    if queue.failure is not None:
        raise queue.failure
