"""The bytes of a pickle, one after another; long ones stay in the file."""

from __future__ import annotations

from devicekit.pickles.stand_ins import Piece
from devicekit.weights.header import UnbelievableError
from devicekit.weights.source import Source

__all__ = ["SHORT", "Tape"]

CHUNK = 1 << 20
"""Bytes that are read at once."""
SHORT = 4096
"""Bytes up to which a value is read when it comes."""
LONGEST = 1 << 30
"""Bytes of one text. NumPy's arrays are texts in pickles before protocol 3."""


class Tape:
    """A part of a source, read from its beginning."""

    def __init__(self, source: Source, begin: int, end: int) -> None:
        self._source = source
        self._end = end
        self._buffer = b""
        self._at = 0
        self._behind = begin
        """The position of the buffer's end."""

    @property
    def position(self) -> int:
        """Of the next byte, in the source."""
        return self._behind - len(self._buffer) + self._at

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self._end - self.position

    def read(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            UnbelievableError: it ends before.
        """
        at = self._at
        if at + count > len(self._buffer):
            self._fill(count)
            at = 0
        self._at = at + count
        return self._buffer[at : self._at]

    def number(self, count: int, *, signed: bool = False) -> int:
        """A whole number in so many bytes, the lowest first."""
        return int.from_bytes(self.read(count), "little", signed=signed)

    def line(self) -> bytes:
        """Up to the end of a line, without it."""
        end = self._buffer.find(b"\n", self._at)
        parts = []
        while end < 0:
            parts.append(self._buffer[self._at :])
            if sum(map(len, parts)) > LONGEST:
                raise UnbelievableError(f"a text is longer than {LONGEST} bytes")
            self._at = len(self._buffer)
            self._fill(1)
            end = self._buffer.find(b"\n")
        parts.append(self._buffer[self._at : end])
        self._at = end + 1
        return b"".join(parts)

    def data(self, count: int) -> bytes | Piece:
        """Bytes as a value; many stay where they are."""
        if count <= SHORT:
            return self.read(count)
        begin = self.position
        self.skip(count)
        return Piece(self._source, begin, count)

    def skip(self, count: int) -> None:
        """Go past so many bytes."""
        self._check(count)
        if self._at + count <= len(self._buffer):
            self._at += count
        else:
            self._buffer, self._at, self._behind = b"", 0, self.position + count

    def text(self, count: int) -> str:
        """A text of so many bytes in UTF-8, as pickle writes it."""
        if count > LONGEST:
            raise UnbelievableError(f"a text is longer than {LONGEST} bytes")
        return self.read(count).decode("utf-8", "surrogatepass")

    def _fill(self, count: int) -> None:
        self._check(count)
        left = self._buffer[self._at :]
        more = min(max(count - len(left), CHUNK), self._end - self._behind)
        self._buffer, self._at = left + self._source.read(self._behind, more), 0
        self._behind += more

    def _check(self, count: int) -> None:
        if self.position + count > self._end:
            raise UnbelievableError(f"it ends at byte {self._end}, in the middle of something")
