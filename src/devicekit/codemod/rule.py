"""The contract of a rule: what it looks at, what it says, and the examples that its tests and its page are made of.

A rule is one file in ``rules/`` with one class. Its first docstring line is the title of its page; the rest says why,
with the source of each fact. Its examples are run: see ``tests/codemod/test_examples.py``.
"""

from __future__ import annotations

import ast
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from devicekit.codemod.facts.scripted import is_scripted
from devicekit.codemod.finding import Edit, Finding, Kind
from devicekit.codemod.module import Module

__all__ = ["Example", "Leaves", "Reports", "Rewrites", "Rule", "rewrites"]

BEFORE = "import torch\n\n"
AFTER = "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n"


@dataclass(frozen=True, slots=True)
class Example:
    """Code, and what the rule makes of it."""

    before: str


@dataclass(frozen=True, slots=True)
class Rewrites(Example):
    """It becomes ``after``, imports and manager included."""

    after: str
    gives: str = ""
    """An expression over the names that both sides leave behind. Where ``before`` runs on a CPU, both give the same;
    ``after`` gives the same on every device."""
    runs: bool = True
    """``after`` can be executed by itself: False where it names files or packages that are not there."""


@dataclass(frozen=True, slots=True)
class Reports(Example):
    """It is found, and stays as it is."""

    kind: Kind = Kind.REVIEW
    count: int = 1
    """How many places of this rule."""


@dataclass(frozen=True, slots=True)
class Leaves(Example):
    """The rule has nothing to say of it."""

    because: str = ""


def rewrites(before: str, after: str, gives: str = "", *, runs: bool = True) -> Rewrites:
    """An example in a file that begins with ``import torch``; what the result needs besides is put before it."""
    head = AFTER if "dm." in after else BEFORE
    return Rewrites(f"{BEFORE}{before}\n", f"{head}{after}\n", gives, runs)


class Rule(ABC):
    """One pattern of code that ties a program to one vendor."""

    name: ClassVar[str]
    """As in ``# devicekit: ignore[name]``; the file's name with hyphens."""
    visits: ClassVar[tuple[type[ast.AST], ...]]
    """The kinds of nodes that ``check`` is given."""
    examples: ClassVar[tuple[Example, ...]]
    hints: ClassVar[tuple[str, ...]] = ("cuda",)
    """A file that has none of these texts need not be parsed for this rule."""

    @abstractmethod
    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """What there is to say of a node."""

    # -- for subclasses ---------------------------------------------------------------------------
    def rewrite(
        self, node: ast.AST, module: Module, message: str, *edits: Edit, guards: Sequence[ast.AST] = ()
    ) -> Finding:
        """A place that can be written anew; in what TorchScript compiles, one for a reader.

        Args:
            node: the place.
            module: its file.
            message: what is there, and why it matters.
            edits: what to write.
            guards: what runs only if this place says so; if something in it has to stay CUDA's, this place
                stays as well.
        """
        spans = tuple(module.span(part) for part in guards)
        shown = _shown(module, node, edits)
        if is_scripted(node, module):
            message += "; TorchScript compiles it, and knows no manager"
            return self.review(node, module, message, f"hand the device in, instead of {shown}", stays=True)
        return self._finding(node, module, Kind.REWRITE, message, shown, edits=tuple(sorted(edits)), guards=spans)

    def review(
        self,
        node: ast.AST,
        module: Module,
        message: str,
        suggestion: str,
        *,
        stays: bool = False,
        residual: bool = False,
        besides: bool = False,
    ) -> Finding:
        """A place for a reader.

        Args:
            node: the place.
            module: its file.
            message: what is there, and why it cannot simply be rewritten.
            suggestion: what to do.
            stays: as it is it fails where there is no CUDA.
            residual: say it only where nothing else covers the place.
            besides: say it also where another rule rewrites the place.
        """
        said = self._finding(node, module, Kind.REVIEW, message, suggestion, stays=stays, residual=residual)
        return dataclasses.replace(said, besides=True) if besides else said

    def cannot(self, node: ast.AST, module: Module, message: str, suggestion: str) -> Finding:
        """A place that no rewrite helps."""
        return self._finding(node, module, Kind.CANNOT, message, suggestion, stays=True)

    def harmless(self, node: ast.AST, module: Module, message: str, *, residual: bool = False) -> Finding:
        """A place that names CUDA, and does nothing where there is none."""
        return self._finding(node, module, Kind.HARMLESS, message, "leave it", residual=residual)

    def _finding(
        self,
        node: ast.AST,
        module: Module,
        kind: Kind,
        message: str,
        suggestion: str,
        *,
        edits: tuple[Edit, ...] = (),
        stays: bool = False,
        guards: tuple[tuple[int, int], ...] = (),
        residual: bool = False,
    ) -> Finding:
        start, end = _head(module, node)
        line = module.line_at(start)
        return Finding(
            file=module.file,
            line=line,
            column=start - module.start_of_line(line) + 1,
            rule=self.name,
            kind=kind,
            message=message,
            suggestion=suggestion,
            span=(min([line, *_decorator_lines(node)]), module.line_at(max(start, end - 1))),
            place=(start, end),
            edits=edits,
            stays=stays,
            guards=guards,
            residual=residual,
            code=module.line(line).strip(),
        )


def _decorator_lines(node: ast.AST) -> list[int]:
    """Above a definition; a comment there is about it as well."""
    return [decorator.lineno for decorator in getattr(node, "decorator_list", ())]


def _head(module: Module, node: ast.AST) -> tuple[int, int]:
    """The place of a node: of a definition only its first line, for what is in it is another matter."""
    start, end = module.span(node)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.With, ast.For)):
        line = module.line_at(start)
        return start, module.start_of_line(line) + len(module.line(line).rstrip())
    return start, end


def _shown(module: Module, node: ast.AST, edits: Sequence[Edit]) -> str:
    """The lines of the node as they will read, in one."""
    start, end = _head(module, node)
    for edit in edits:
        start, end = min(start, edit.start), max(end, edit.end)
    text, at = "", start
    for edit in sorted(edits):
        text += module.text[at : edit.start] + edit.text
        at = edit.end
    text += module.text[at:end]
    shown = " ".join(text.split())
    return shown if len(shown) <= 100 else shown[:97] + "..."
