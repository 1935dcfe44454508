"""A Jupyter notebook as one Python text: its code cells in their order, magics and shell lines commented out.

The format: https://nbformat.readthedocs.io/en/latest/format_description.html. A separator line stands between cells, so
that what is inserted at the end of one and at the start of the next are two places.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.parsing import parses
from devicekit.codemod.rewriting import apply
from devicekit.codemod.source import UnreadableError

__all__ = ["Notebook"]

SEPARATOR = "#\n"
MAGIC = re.compile(r"[ \t]*[%!?]|.*\?[ \t]*$|[ \t]*[\w.,\[\] ]+=[ \t]*[!%]")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
LINE = re.compile(r"[^\n]*\n|[^\n]+")
PYTHON_MAGICS = ("time", "timeit", "capture", "prun", "debug")
"""Cell magics whose cell is Python all the same."""


@dataclass(frozen=True, slots=True)
class _Cell:
    number: int
    """Among the code cells, from 1."""
    at: int
    """Among all cells, from 0."""
    source: str
    start: int
    """Of its text in the whole."""


class Notebook:
    """A ``.ipynb`` file of format 4.

    Raises:
        UnreadableError: it is no notebook, or not one in Python.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._data = _loaded(content)
        self._cells: list[_Cell] = []
        texts, start = [], 0
        for at, cell in enumerate(self._data["cells"]):
            if cell.get("cell_type") == "code":
                source = "".join(cell["source"])
                self._cells.append(_Cell(len(self._cells) + 1, at, source, start))
                texts.append(_as_python(source) + "\n" + SEPARATOR)
                start += len(texts[-1])
        self.text = "".join(texts)
        self._starts = [cell.start for cell in self._cells]

    def located(self, finding: Finding) -> Finding:
        """Its cell, and the line in it."""
        cell = self._cell(finding.place[0])
        first = self.text.count("\n", 0, cell.start)
        return dataclasses.replace(finding, line=finding.line - first, cell=cell.number)

    def edited(self, edits: list[Edit]) -> bytes:
        """The notebook with these edits in its cells; all else stays byte for byte."""
        by_cell: dict[int, list[Edit]] = {}
        for edit in edits:
            by_cell.setdefault(self._cell(edit.start).number, []).append(edit)
        written = self._content.decode()
        places = _sources(written)
        changes = []
        for number, inside in by_cell.items():
            cell = self._cells[number - 1]
            moved = [Edit(e.start - cell.start, e.end - cell.start, e.text) for e in inside]
            text = apply(cell.source + "\n", moved).removesuffix("\n")
            text = text if cell.source.endswith("\n") else text.rstrip("\n")
            start, end = places[cell.at]
            changes.append(Edit(start, end, _as_written(text, written[start:end], written)))
        return apply(written, changes).encode()

    def _cell(self, offset: int) -> _Cell:
        return self._cells[bisect.bisect_right(self._starts, offset) - 1]


def _loaded(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except ValueError as exc:
        raise UnreadableError(f"it is no notebook: {exc}") from exc
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        raise UnreadableError("it is no notebook of format 4")
    metadata = data.get("metadata") or {}
    language = (metadata.get("language_info") or {}).get("name") or (metadata.get("kernelspec") or {}).get("language")
    if language not in (None, "python"):
        raise UnreadableError(f"its language is {language}, not Python")
    for cell in data["cells"]:
        source = cell.get("source") if isinstance(cell, dict) else None
        if not isinstance(source, (str, list)) or not all(isinstance(line, str) for line in source):
            raise UnreadableError("it is no notebook: a cell has no source")
    return data


def _as_python(source: str) -> str:
    """The same number of characters, without what only IPython understands."""
    first = source.lstrip().partition("\n")[0]
    if first.startswith("%%") and first[2:].split(" ")[0] not in PYTHON_MAGICS:
        return _commented(source, every=True)
    text = _commented(source, every=False)
    return text if parses(text) else _commented(source, every=True)


def _commented(source: str, *, every: bool) -> str:
    lines = LINE.findall(source)
    return "".join("#" + line[1:] if line.strip() and (every or MAGIC.match(line)) else line for line in lines)


def _sources(written: str) -> dict[int, tuple[int, int]]:
    """Where in the JSON text the source of each cell stands, by the cell's place among all cells."""
    found: dict[int, tuple[int, int]] = {}
    tokens = TOKEN.finditer(written)

    def read(path: tuple[str | int, ...], token: re.Match[str]) -> int:
        """Read the value that begins with this token; where it ends."""
        start, end, first = token.start(), token.end(), token[0]
        if first in "{[":
            token, count = next(tokens), 0
            while token[0] not in "}]":
                key: str | int = count
                if first == "{":
                    key, _ = json.loads(token[0]), next(tokens)
                    token = next(tokens)
                read((*path, key), token)
                token, count = next(tokens), count + 1
                if token[0] == ",":
                    token = next(tokens)
            end = token.end()
        if len(path) == 3 and path[0] == "cells" and path[2] == "source":
            found[int(path[1])] = (start, end)
        return end

    read((), next(tokens))
    return found


def _as_written(text: str, before: str, written: str) -> str:
    """A source as JSON, in the layout that it had; letters are escaped where the file escapes them."""
    escaped = written.isascii() and "\\u" in written
    if before.startswith('"'):
        return json.dumps(text, ensure_ascii=escaped)
    lines = [json.dumps(line, ensure_ascii=escaped) for line in LINE.findall(text)]
    gap, end = re.match(r"\[(\s*)", before), re.search(r"\s*\]$", before)
    assert gap is not None
    assert end is not None
    between = "," + (gap[1] or " ")
    return f"[{gap[1]}{between.join(lines)}{end[0]}"
