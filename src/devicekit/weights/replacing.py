"""Put new files in the places of old ones all at once: a save that fails leaves what was there before.

Everything is written and synced under temporary names in the same folder first; then it is only renamed. A process
that is killed between two renames leaves a folder in which the last file, the one readers begin with, is missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from devicekit.errors import WeightsError

__all__ = ["Replacement", "reported"]

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_FULL = "free some space, or save elsewhere"
_FORBIDDEN = "a folder that you may write to"
_TRY = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "max_shard_size=, for files as small as the system wants them",
    errno.ENOENT: "make the folder first",
    errno.EEXIST: "a folder, or a file whose name ends in .safetensors",
    errno.ENOTDIR: "a folder, or a file whose name ends in .safetensors",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
}


@contextlib.contextmanager
def reported(path: Path, done: str = "written") -> Iterator[None]:
    """Errors of the system become ours, with the system's words.

    Raises:
        WeightsError: the system refused.
    """
    try:
        yield
    except OSError as exc:
        why = f"{exc.strerror or exc} ({type(exc).__name__})"
        raise WeightsError(f"{path} could not be {done}.", why=why, try_=_TRY.get(exc.errno or 0, "")) from exc


class Replacement:
    """New files for one folder. Leaving the block without ``commit`` leaves the folder as it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, Path] = {}
        """The files that are whole, by their names to be."""
        self._temporary = contextlib.ExitStack()

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *exc: object) -> None:
        self._temporary.close()

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Callable[[Any], None]]:
        """A function that appends bytes to what will be called so.

        Raises:
            WeightsError: the system refused.
        """
        path, temporary = self.folder / name, self._unused(name)
        self._temporary.callback(_discard, temporary)  # before it exists, so that no interrupt falls between
        with reported(path):
            descriptor = os.open(temporary, _FLAGS, 0o666)  # and the umask has its say, as for any new file
        try:
            yield lambda data: _append(path, descriptor, data)
            with reported(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.written[name] = temporary

    def commit(self, superseded: Iterable[str]) -> None:
        """Rename all in the order in which they were written, then remove files that have lost their meaning.

        Where one file is all, its rename is the whole step. Of several, the old last one goes before anything else and
        the new last one comes after all others, so whoever begins with it never sees old and new together.

        Raises:
            WeightsError: the system refused; before the last rename everything is put back.
        """
        *others, last = self.written
        path = self.folder / last
        aside: list[Path | None] = []
        with reported(path), contextlib.ExitStack() as undo:
            if others:
                aside = [self._set_aside(name, undo) for name in (last, *others)]
                self._sync()
                for name in others:
                    self._rename(name, undo)
                self._sync()
                self._rename(last, undo)
            else:
                self.written[last].replace(path)
            undo.pop_all()
            self._sync()
        for old in [*filter(None, aside), *(self.folder / name for name in superseded)]:
            if old.is_symlink() or old.is_file():
                with reported(old, f"removed, although {path} is written"):
                    old.unlink(missing_ok=True)

    def _unused(self, name: str) -> Path:
        return self.folder / f".{name[:48]}.{os.urandom(8).hex()}.tmp"

    def _set_aside(self, name: str, undo: contextlib.ExitStack) -> Path | None:
        path, aside = self.folder / name, self._unused(name)
        if not os.path.lexists(path):
            return None
        undo.callback(_restore, aside, path)
        with reported(path, "replaced"):
            path.replace(aside)
        return aside

    def _rename(self, name: str, undo: contextlib.ExitStack) -> None:
        temporary, path = self.written[name], self.folder / name
        undo.callback(_withdraw, temporary, path)
        with reported(path):
            temporary.replace(path)

    def _sync(self) -> None:
        """Have the renames on the disk; not every file system can, and Windows cannot at all."""
        if os.name == "nt":
            return
        try:
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
                raise


def _append(path: Path, descriptor: int, data: Any) -> None:
    left = memoryview(data)
    with reported(path):
        while left:
            left = left[os.write(descriptor, left) :]


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to be told
        temporary.unlink()


def _restore(aside: Path, path: Path) -> None:
    if os.path.lexists(aside):
        aside.replace(path)


def _withdraw(temporary: Path, path: Path) -> None:
    if not temporary.exists():  # it was renamed
        path.unlink(missing_ok=True)
