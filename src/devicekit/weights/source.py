"""Where bytes of weights come from: a file that is read by position, or bytes in memory.

Reading never goes through a mapping: a file that shrinks meanwhile makes a mapped read end in SIGBUS, which no
``except`` can catch, while ``preadv`` just returns less.

A file can also be read past the system's page cache, from the disk into the memory where the bytes stay (O_DIRECT).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import stat
import threading
from typing import Any

from devicekit.errors import WeightsError
from devicekit.weights.header import plain

__all__ = ["BLOCK", "FileSource", "MemorySource", "Source", "opened"]

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux: a private mapping counts as memory only where it is written to; else a file larger than the memory cannot be
mapped (proc(5), overcommit_memory). Python names the flag from 3.13 on."""
BLOCK = 4096
"""Bytes: what is read past the page cache begins and ends at multiples of it, in the file and in memory. Disks ask for
512 or for this (open(2), O_DIRECT); where that is too little, the system refuses."""


class Source:
    """Bytes with a name and a size."""

    label: str
    """For messages."""
    size: int

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill the whole view from this position.

        Raises:
            WeightsError: it cannot be read, or the end comes first.
        """
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from this position."""
        made = bytearray(length)
        self.read_into(memoryview(made), offset)
        return bytes(made)

    def mapped(self) -> mmap.mmap | None:
        """The whole file as private pages, read when they are touched; None where there is no file."""
        return None

    def bypass_cache(self) -> None:
        """From now on read past the system's page cache, where that is possible."""

    def lead(self, offset: int) -> int:
        """How far this position is behind the beginning of a block; 0 where nothing is read past the cache."""
        return 0

    def start(self, room: memoryview, offset: int, itemsize: int = 1) -> int:
        """How far into this memory the bytes from this position lie right to be read past the cache: under ``BLOCK``.

        0 also where nothing is read past the cache, or numbers of this size would lie across their boundaries.
        """
        return 0

    def close(self) -> None:
        """Free what was opened; mappings live as long as what was cut from them."""


class FileSource(Source):
    """A regular file.

    Args:
        path: where it lies; links are followed.
        descriptor: an open file instead, which stays open and keeps its position.
        origin: where in the file the weights begin.
    """

    def __init__(self, path: str, *, descriptor: int | None = None, origin: int = 0) -> None:
        self.label = plain(path)
        self._origin = origin
        self._map: mmap.mmap | None = None
        self._direct = -1
        """A descriptor that reads past the cache; -1: there is none."""
        self._bypass = False
        self._seeking = threading.Lock()
        try:
            self._fd = _open(path) if descriptor is None else os.dup(descriptor)
        except (OSError, ValueError) as exc:  # ValueError: no file can have this name
            raise self._unreadable(exc) from exc
        try:
            facts = os.fstat(self._fd)
            if not stat.S_ISREG(facts.st_mode):
                raise WeightsError(f"{self.label} cannot be read.", why="it is no regular file")
        except BaseException:
            os.close(self._fd)
            raise
        self.size = max(facts.st_size - origin, 0)

    def _unreadable(self, exc: OSError | ValueError) -> WeightsError:
        why = getattr(exc, "strerror", None) or plain(str(exc))
        return WeightsError(f"{self.label} cannot be read.", why=f"{why} ({type(exc).__name__})")

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill the view; several threads may ask at once."""
        done = self._past_cache(view, self._origin + offset) if self._bypass and not self.start(view, offset) else 0
        while done < len(view):
            try:
                count = self._read_some(view[done:], self._origin + offset + done)
            except OSError as exc:
                raise self._unreadable(exc) from exc
            if count == 0:
                why = f"it ended at byte {offset + done}, although it had {self.size} bytes when it was opened"
                raise WeightsError(f"{self.label} cannot be read.", why=why, try_="load it when nobody writes to it")
            done += count

    def _read_some(self, view: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [view], position)
        with self._seeking:  # Windows has no positional read in Python
            os.lseek(self._fd, position, os.SEEK_SET)
            chunk = os.read(self._fd, len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def mapped(self) -> mmap.mmap | None:
        """Private, so that what is written to the pages stays in this process."""
        if self._map is None and self._origin == 0:
            try:
                made = self._mapping()
                shrunk = os.fstat(self._fd).st_size < self.size
            except (OSError, ValueError) as exc:  # ValueError: Python asks for the size as well
                raise self._shrunk() if isinstance(exc, ValueError) else self._unreadable(exc) from exc
            if shrunk:
                raise self._shrunk()
            self._map = made
        return self._map

    def _shrunk(self) -> WeightsError:
        why = f"it had {self.size} bytes when it was opened, and has fewer now"
        return WeightsError(f"{self.label} cannot be mapped.", why=why, try_="load it when nobody writes to it")

    def _mapping(self) -> mmap.mmap:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY)
        flags = mmap.MAP_PRIVATE | (_NORESERVE if os.uname().sysname == "Linux" else 0)
        return mmap.mmap(self._fd, self.size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    # -- past the cache ------------------------------------------------------------------------------
    def bypass_cache(self) -> None:
        """The same file is opened once more, whatever lies under its name now."""
        if self._direct < 0 and hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):  # a file system that cannot, such as tmpfs, or no /proc
                self._direct = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._bypass = self._direct >= 0

    def lead(self, offset: int) -> int:
        """Of the file, wherever the weights begin in it."""
        return (self._origin + offset) % BLOCK if self._bypass else 0

    def start(self, room: memoryview, offset: int, itemsize: int = 1) -> int:
        """As far behind the beginning of a block as in the file."""
        if not self._bypass or not len(room):
            return 0
        found = (self.lead(offset) - ctypes.addressof(ctypes.c_char.from_buffer(room))) % BLOCK
        return found if found % itemsize == 0 else 0

    def _past_cache(self, view: memoryview, position: int) -> int:
        """Read as far as that goes; the bytes that were read."""
        done = 0
        try:
            while done < len(view):
                left, inside = len(view) - done, (position + done) % BLOCK
                if inside or left < BLOCK:
                    count = self._part_of_block(view[done : done + BLOCK - inside], position + done)
                else:
                    count = self._blocks(view[done : done + left // BLOCK * BLOCK], position + done)
                if count == 0:
                    break
                done += count
        except OSError:  # larger blocks, memory of a driver's; a true fault of the disk will come up again
            self._bypass = False
        return done

    def _part_of_block(self, view: memoryview, position: int) -> int:
        inside = position % BLOCK
        with mmap.mmap(-1, BLOCK) as block:
            count = max(0, min(self._blocks(block, position - inside) - inside, len(view)))
            view[:count] = block[inside : inside + count]
        return count

    def _blocks(self, room: Any, position: int) -> int:
        return os.preadv(self._direct, [room], position)

    def close(self) -> None:
        """Close the descriptors; a mapping has its own."""
        os.close(self._fd)
        if self._direct >= 0:
            os.close(self._direct)


def _open(path: str) -> int:
    # Non-blocking, because opening a pipe would wait for its other end before it can be seen to be one.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags)


class MemorySource(Source):
    """Bytes that are in memory already."""

    def __init__(self, data: Any, label: str = "<bytes>") -> None:
        self.label = label
        try:
            view = memoryview(data)
            self._view = view.cast("B") if view.nbytes else memoryview(b"")
        except (TypeError, ValueError, BufferError) as exc:  # not contiguous, or released already
            raise WeightsError(f"{label} cannot be read.", why=str(exc), try_="bytes") from exc
        self.size = len(self._view)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Copy them."""
        taken = self._view[offset : offset + len(view)]
        if len(taken) < len(view):
            raise WeightsError(f"{self.label} cannot be read.", why=f"it ends at byte {offset + len(taken)}")
        view[:] = taken

    def close(self) -> None:
        """Let go of it: a bytearray cannot grow while somebody looks at it."""
        self._view.release()


def opened(file: Any) -> Source:
    """An open binary file from its present position on; what has no position in a real file is read to its end.

    A real file and an ``io.BytesIO`` keep their position.

    Raises:
        WeightsError: it cannot be read, or gives text.
    """
    label = plain(str(getattr(file, "name", None) or f"<{type(file).__name__}>"))
    if isinstance(file, io.TextIOBase):
        raise _text(label)
    try:
        # Not fileno() alone: a gzip.GzipFile answers that too, with the file that holds the compressed bytes.
        if isinstance(getattr(file, "raw", file), io.FileIO) and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return FileSource(label, descriptor=file.fileno(), origin=file.tell())
        data = file.getbuffer()[file.tell() :] if isinstance(file, io.BytesIO) else file.read()
    except (WeightsError, MemoryError):
        raise
    except Exception as exc:  # whatever the author of the file's class has it raise
        raise WeightsError(f"{label} cannot be read.", why=f"{plain(str(exc))} ({type(exc).__name__})") from exc
    if isinstance(data, str):
        raise _text(label)
    return MemorySource(data, label)


def _text(label: str) -> WeightsError:
    return WeightsError(f"{label} cannot be read.", why="it was opened as text", try_='open(path, "rb")')
