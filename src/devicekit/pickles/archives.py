"""ZIP files: torch.save since 1.6, TorchScript, and NumPy's ``.npz``.

Nothing is unpacked, so no name in it reaches the file system. What torch writes lies in the file as it is, and is read
from there; only ``.npz`` may be compressed, and is then decompressed as it is read.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from devicekit.errors import WeightsError
from devicekit.pickles import npy
from devicekit.pickles.machine import Machine, Notes
from devicekit.pickles.stand_ins import Piece, Storage
from devicekit.pickles.tape import Tape
from devicekit.pickles.tensors import storage
from devicekit.weights.header import UnbelievableError, shown
from devicekit.weights.source import Source

__all__ = ["Archive"]

_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, UnicodeError, ValueError, OverflowError,
    RuntimeError, EOFError, KeyError, IndexError, OSError,
)  # fmt: skip
"""What zipfile raises for files that are none."""


@contextlib.contextmanager
def _believed() -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except _BROKEN as exc:
        said = f": {exc}" if isinstance(exc, zipfile.BadZipFile) else ""
        raise UnbelievableError(f"its ZIP archive is broken{said:.200}") from None


class Archive:
    """A ZIP file.

    Raises:
        UnbelievableError: it is none.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        with _believed():
            self._zip = zipfile.ZipFile(io.BufferedReader(_AsFile(source), 1 << 16))
        infos = self._zip.infolist()
        self._entries = {info.filename: info for info in infos}
        if len(self._entries) < len(infos):
            raise UnbelievableError("its ZIP archive holds two entries of one name")

    def read(self, notes: Notes) -> tuple[Any, str]:
        """What it holds, and what kind of file it is.

        Raises:
            UnbelievableError: it is of no kind that is known.
        """
        if self._entries and all(name.endswith(".npy") for name in self._entries):
            arrays = {name.removesuffix(".npy"): npy.read_array(self._inflated(name)) for name in self._entries}
            return arrays, "NumPy's .npz"
        tops = [name.partition("/")[0] for name in self._entries if name.partition("/")[2] == "data.pkl"]
        if len(tops) != 1:
            raise UnbelievableError("it is a ZIP archive, and none that torch.save or numpy.savez wrote")
        script = f"{tops[0]}/constants.pkl" in self._entries
        return self._unpickled(tops[0], notes), "TorchScript" if script else "torch.save"

    # -- torch -------------------------------------------------------------------------------------
    def _unpickled(self, top: str, notes: Notes) -> Any:
        swapped = self._is_big_endian(f"{top}/byteorder")
        pieces: dict[str, Piece] = {}

        def persistent(identity: Any) -> Storage:
            made = storage(identity)
            if made.key not in pieces:
                pieces[made.key] = self._piece(f"{top}/data/{made.key}")
            made.piece, made.swapped = pieces[made.key], swapped
            return made

        piece = self._piece(f"{top}/data.pkl")
        tape = Tape(piece.source, piece.begin, piece.begin + piece.nbytes)
        root = Machine(notes, persistent).run(tape)
        if tape.left:
            raise UnbelievableError(f"{tape.left} bytes follow after the end of its pickle")
        return root

    def _is_big_endian(self, name: str) -> bool:
        if name not in self._entries:
            return False
        piece = self._piece(name)
        word = piece.source.read(piece.begin, min(piece.nbytes, 16))
        if word not in (b"little", b"big"):
            raise UnbelievableError("it does not say in which order the bytes of its numbers are")
        return word == b"big"

    def _piece(self, name: str) -> Piece:
        """Where an entry lies. The entry itself has its name once more, and what was written between."""
        info = self._entries.get(name)
        if info is None:
            raise UnbelievableError(f"its ZIP archive lacks {shown(name)}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            how = "encrypted" if info.flag_bits & 1 else "compressed"
            raise UnbelievableError(f"{shown(name)} in its ZIP archive is {how}, which torch.save never does")
        head = self._part(info.header_offset, 30)
        length, extra = struct.unpack("<HH", head[26:30])
        with _believed():
            called = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        if head[:4] != b"PK\3\4" or self._part(info.header_offset + 30, length) != called:
            raise UnbelievableError(f"{shown(name)} is not where its ZIP archive says")
        begin = info.header_offset + 30 + length + extra
        if info.compress_size != info.file_size or begin + info.file_size > self._source.size:
            raise UnbelievableError(f"{shown(name)} is longer than its ZIP archive")
        return Piece(self._source, begin, info.file_size)

    def _part(self, begin: int, length: int) -> bytes:
        if begin < 0 or begin + length > self._source.size:
            raise UnbelievableError("its ZIP archive was cut off")
        return self._source.read(begin, length)

    # -- NumPy -------------------------------------------------------------------------------------
    def _inflated(self, name: str) -> Source:
        info = self._entries[name]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            return _Part(self._piece(name))
        if info.compress_type != zipfile.ZIP_DEFLATED or info.flag_bits & 1:
            raise UnbelievableError(f"{shown(name)} in its ZIP archive is compressed or locked as NumPy never does it")
        return _Inflated(self._zip, info, self._source.label)


class _Part(Source):
    """A piece as a whole."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.label, self.size = piece.source.label, piece.nbytes

    def read_into(self, view: memoryview, offset: int) -> None:
        """From where it lies."""
        if offset + len(view) > self.size:
            raise UnbelievableError("an array in it ends too early")
        self._piece.source.read_into(view, self._piece.begin + offset)


class _Inflated(Source):
    """An entry that is compressed; whoever reads it from begin to end decompresses it once."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, label: str) -> None:
        self.label, self.size = label, info.file_size
        with _believed():
            self._file = archive.open(info)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Decompress."""
        with _believed():
            if offset != self._file.tell():
                self._file.seek(offset)
            done = 0
            while done < len(view):
                chunk = self._file.read(min(len(view) - done, 1 << 20))
                if not chunk:
                    raise EOFError
                view[done : done + len(chunk)] = chunk
                done += len(chunk)


class _AsFile(io.RawIOBase):
    """A source as zipfile reads it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where the next byte is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where that is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Up to the end."""
        count = max(0, min(len(buffer), self._source.size - self._at))
        self._source.read_into(memoryview(buffer)[:count], self._at)
        self._at += count
        return count
