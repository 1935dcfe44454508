"""Where bytes of weights come from: a file that is read by position, or bytes in memory.

Reading never goes through a mapping: a file that shrinks meanwhile makes a mapped read end in SIGBUS, which no
``except`` can catch, while ``preadv`` just returns less. It is also as fast, into a buffer that stays in the cache.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import stat
import threading
from typing import Any

from devicekit.errors import WeightsError
from devicekit.weights.header import plain

__all__ = ["FileSource", "MemorySource", "Source", "opened"]

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux: a private mapping counts as memory only where it is written to; else a file larger than the memory cannot be
mapped (proc(5), overcommit_memory). Python names the flag from 3.13 on."""


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

    def will_read(self, offset: int, length: int) -> None:
        """Tell the system what is read next, where it can be told."""

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
        done = 0
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

    def will_read(self, offset: int, length: int) -> None:
        """Start the reading now, in the background."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # a hint
                os.posix_fadvise(self._fd, self._origin + offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the descriptor; a mapping has its own."""
        os.close(self._fd)


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
