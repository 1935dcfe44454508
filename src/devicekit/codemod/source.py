"""A Python file as text and back, byte for byte: its encoding, byte order mark and line ends stay."""

from __future__ import annotations

import codecs
import io
import tokenize
from dataclasses import dataclass
from typing import Protocol

from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.rewriting import apply

__all__ = ["Document", "PythonFile", "UnreadableError"]


class UnreadableError(Exception):
    """Why a file cannot be read as code; the text is for people."""


class Document(Protocol):
    """What holds Python code."""

    @property
    def text(self) -> str:
        """The code."""

    def located(self, finding: Finding) -> Finding:
        """The finding with the position that people look for."""

    def edited(self, edits: list[Edit]) -> bytes:
        """The file after these edits of the text."""


@dataclass(frozen=True, slots=True)
class PythonFile:
    """A ``.py`` file."""

    text: str
    encoding: str
    mark: bytes

    @classmethod
    def read(cls, content: bytes) -> PythonFile:
        """Decode as Python does.

        Raises:
            UnreadableError: it is not in the encoding that it says, or that Python assumes.
        """
        mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            encoding = "utf-8" if encoding == "utf-8-sig" else encoding
            return cls(content[len(mark) :].decode(encoding), encoding, mark)
        except (SyntaxError, UnicodeDecodeError, LookupError) as exc:
            raise UnreadableError(f"it cannot be decoded: {exc}") from exc

    def located(self, finding: Finding) -> Finding:
        """Its lines are the file's."""
        return finding

    def edited(self, edits: list[Edit]) -> bytes:
        """In the encoding it had."""
        return self.mark + apply(self.text, edits).encode(self.encoding)
