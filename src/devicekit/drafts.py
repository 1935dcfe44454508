"""Write a file whole or not at all, and find out that it cannot be written before the work that fills it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

__all__ = ["Draft"]

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Draft:
    """A file that is to be: it lies beside its place, and leaving the block without ``commit`` removes it.

    Raises:
        OSError: nothing can be written there, or what lies there is no file.
        ValueError: the path is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.target = Path(os.path.realpath(path))  # a link stays a link
        _check_replaceable(self.target)
        ending = self.target.suffix[-16:]  # what draws pictures goes by it
        self.path = self.target.with_name(f".{self.target.stem[:48]}-{os.urandom(8).hex()}{ending}")
        os.close(os.open(self.path, _FLAGS, 0o666))  # and the umask has its say, as for any new file

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it was put in place, or the error that led here is the one to be told
            self.path.unlink()

    def commit(self, content: bytes | None = None) -> None:
        """Put the draft in its place, with this content or with what others wrote into ``path``.

        Raises:
            OSError: the system refused; what lay there before stays.
        """
        if content is not None:
            self.path.write_bytes(content)
        self.path.replace(self.target)


def _check_replaceable(target: Path) -> None:
    try:
        kind = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "it is there, and is no regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
