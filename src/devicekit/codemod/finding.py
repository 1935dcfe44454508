"""What a rule says of a place: values, so that they can be counted, compared, sent between processes and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

__all__ = ["Edit", "Finding", "Kind", "for_review"]


class Kind(str, Enum):
    """What can be done about a place."""

    REWRITE = "rewrite"
    """``migrate`` writes it anew, and it means the same."""
    REVIEW = "review"
    """It needs a reader: whether it may be rewritten cannot be told from the text."""
    CANNOT = "cannot"
    """Nothing that a rewrite could put in its place: CUDA sources, Triton kernels, packages for one vendor."""
    HARMLESS = "harmless"
    """It names CUDA and does nothing where there is none."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Characters ``start`` to ``end`` of the file's text are to become ``text``."""

    start: int
    end: int
    text: str

    def holds(self, start: int, end: int) -> bool:
        """That span lies inside of what is replaced."""
        return self.start <= start and end <= self.end and self.start < self.end


@dataclass(frozen=True, slots=True)
class Finding:
    """One place, and what is to be said of it."""

    file: str
    line: int
    """From 1; of the place's first character."""
    column: int
    """From 1, in characters."""
    rule: str
    kind: Kind
    message: str
    """What is there, and why it matters. One sentence, no full stop needed."""
    suggestion: str = ""
    """What to write instead, or to do; for a rewrite what will stand there."""
    span: tuple[int, int] = (0, 0)
    """First and last line; a comment on any of them can silence the finding."""
    place: tuple[int, int] = (0, 0)
    """The characters it is about."""
    edits: tuple[Edit, ...] = ()
    """What ``migrate`` does; only a rewrite has any."""
    stays: bool = False
    """Left as it is, it fails where there is no CUDA: what guards it must go on guarding it."""
    guards: tuple[tuple[int, int], ...] = ()
    """The characters that run only if this place says so."""
    residual: bool = False
    """Said only where nothing else covers the place."""
    besides: bool = False
    """Said also of a place that another finding rewrites."""
    code: str = ""
    """The line as it stands, without the blanks around it."""
    cell: int | None = None
    """The number of a notebook's code cell, from 1; lines are counted in it."""

    @property
    def where(self) -> str:
        """``file:line:column``, as editors and terminals follow it."""
        cell = "" if self.cell is None else f"cell {self.cell}:"
        return f"{self.file}:{cell}{self.line}:{self.column}"

    def to_dict(self) -> dict[str, object]:
        """What ``scan --json`` prints."""
        cell = {} if self.cell is None else {"cell": self.cell}
        return {
            "file": self.file,
            **cell,
            "line": self.line,
            "column": self.column,
            "rule": self.rule,
            "class": str(self.kind),
            "message": self.message,
            "suggestion": self.suggestion,
        }


def for_review(finding: Finding) -> Finding:
    """The same place, left to a reader."""
    return replace(finding, kind=Kind.REVIEW, edits=(), suggestion=f"by hand: {finding.suggestion}")
