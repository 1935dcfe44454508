"""One file as the rules see it: its text, its tree, what its names mean, and where in the text a node stands."""

from __future__ import annotations

import ast
import bisect
import functools
import re
import sys
from collections.abc import Iterator

from devicekit.codemod.finding import Edit
from devicekit.codemod.names import FUNCTIONS, Names
from devicekit.codemod.parsing import parse

__all__ = ["Module"]

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # as Python counts lines: no form feeds, no U+2028
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)


class Module:
    """A parsed file.

    Args:
        text: the source, with whatever line ends it has.
        file: how findings call it.

    Raises:
        SyntaxError: this Python cannot parse it.
    """

    def __init__(self, text: str, file: str = "<text>") -> None:
        self.text = text
        self.file = file
        self.tree = parse(text, file)
        self.names = Names(self.tree)
        self.memo: dict[str, object] = {}
        """What was found out about the whole file, once, by the name of who asked."""
        self._lines: list[str] = LINE.findall(text) or [""]
        self._starts = _starts(self._lines)
        self._parents = self.names.parents
        self.misplaced = self._misplaced()
        """Nodes whose place in the text is not known; they have that of the f-string around them."""

    # -- where things stand ------------------------------------------------------------------------
    def offset(self, line: int, column: int) -> int:
        """The character at ast's line (from 1) and column (from 0, in bytes of UTF-8)."""
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        within = column if text.isascii() else len(text.encode()[:column].decode(errors="ignore"))
        return self._starts[line - 1] + within

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Its first character, and the one after its last. Without parentheses around it."""
        return (
            self.offset(node.lineno, node.col_offset),  # type: ignore[attr-defined]
            self.offset(node.end_lineno, node.end_col_offset),  # type: ignore[attr-defined]
        )

    def line_at(self, offset: int) -> int:
        """The line, from 1, that a character is on."""
        return bisect.bisect_right(self._starts, offset)

    def line(self, number: int) -> str:
        """A line's text, with its end; from 1."""
        return self._lines[number - 1]

    def start_of_line(self, number: int) -> int:
        """The offset of its first character; one past the last line is the end of the file."""
        return self._starts[number - 1] if number <= len(self._lines) else len(self.text)

    def code(self, node: ast.AST) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def every(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        """The nodes of these kinds."""
        for kind in kinds:
            yield from self.names.nodes.get(kind, ())

    def _misplaced(self) -> frozenset[ast.AST]:
        """Before Python 3.12 the parser often puts what is inside an f-string elsewhere."""
        if sys.version_info >= (3, 12):
            return frozenset()
        found: set[ast.AST] = set()
        for text in self.every(ast.JoinedStr):
            for part in (p.value for p in text.values if isinstance(p, ast.FormattedValue)):  # type: ignore[attr-defined]
                if text in found or not self._is_at_its_place(part):
                    found.update(ast.walk(part))
                    for node in ast.walk(part):
                        ast.copy_location(node, text)
        return frozenset(found)

    def _is_at_its_place(self, node: ast.expr) -> bool:
        try:
            there = parse(f"({self.code(node)})").body[0].value  # type: ignore[attr-defined]
        except (SyntaxError, ValueError, IndexError):
            return False
        return ast.dump(there) == ast.dump(node)

    # -- what surrounds them -----------------------------------------------------------------------
    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that it is a part of."""
        return self._parents.get(node)

    def parents(self, node: ast.AST) -> Iterator[ast.AST]:
        """From its parent up to the module."""
        above = self._parents.get(node)
        while above is not None:
            yield above
            above = self._parents.get(above)

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement that it is in."""
        return next(n for n in (node, *self.parents(node)) if isinstance(n, ast.stmt))

    def block(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements that it stands among: the body, ``else`` or ``finally`` of what is around it."""
        above = self._parents.get(statement)
        blocks = (getattr(above, name, None) for name in ("body", "orelse", "finalbody"))
        return next((b for b in blocks if isinstance(b, list) and statement in b), [])

    def neighbour(self, statement: ast.stmt, step: int) -> ast.stmt | None:
        """The statement so many places after it in its block, or before it; None where there is none."""
        block = self.block(statement)
        at = block.index(statement) + step if block else -1
        return block[at] if 0 <= at < len(block) else None

    def function(self, node: ast.AST) -> ast.AST | None:
        """The function that it is in; its defaults and decorators are not."""
        return next((n for n in self.parents(node) if isinstance(n, FUNCTIONS)), None)

    def in_loop(self, node: ast.AST) -> bool:
        """A loop of the same function runs it again and again."""
        for above in self.parents(node):
            if isinstance(above, FUNCTIONS):
                return False
            if isinstance(above, LOOPS):
                return True
        return False

    # -- what they mean ------------------------------------------------------------------------------
    def name(self, node: ast.AST | None) -> str | None:
        """``torch.cuda.empty_cache``, whatever the file calls it; None where it is no import."""
        return None if node is None else self.names.qualified(node)

    def calls(self, node: ast.AST | None, *names: str) -> bool:
        """It is a call of one of these."""
        return isinstance(node, ast.Call) and self.name(node.func) in names

    # -- what rewritten code calls things --------------------------------------------------------------
    @functools.cached_property
    def manager(self) -> str:
        """The module's DeviceManager: one that it has already, or the name of the one to be made."""
        return self.existing_manager or self.fresh("dm", "device_manager", "devicekit_manager")

    @functools.cached_property
    def existing_manager(self) -> str | None:
        """A module-level ``x = devicekit.DeviceManager(...)``, bound once and in no other scope."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                made = self.name(node.value.func) if isinstance(node.value, ast.Call) else None
                stored = [n for n in self.names.uses.get(node.targets[0].id, ()) if not isinstance(n.ctx, ast.Load)]
                if made in ("devicekit.DeviceManager", "devicekit.DeviceManager.current") and len(stored) == 1:
                    return node.targets[0].id
        return None

    @property
    def device(self) -> str:
        """The expression for the device."""
        return f"{self.manager}.device"

    @functools.cached_property
    def torch(self) -> str:
        """The module's name for torch; ``torch`` also where it is still to be imported."""
        return self.names.at_top("torch") or "torch"

    def fresh(self, *wishes: str) -> str:
        """The first of these names that the file does not use."""
        free = (w for w in wishes if not re.search(rf"\b{w}\b", self.text))
        return next(free, f"_{wishes[0]}")

    # -- edits -----------------------------------------------------------------------------------------
    def replace(self, node: ast.AST, text: str) -> Edit:
        """All of a node becomes this text."""
        return Edit(*self.span(node), text)

    def attribute(self, node: ast.Attribute) -> tuple[int, int]:
        """Where the last name of ``x.y.cuda`` stands."""
        end = self.span(node)[1]
        return end - len(node.attr.encode()), end

    def rename(self, node: ast.Attribute, name: str) -> Edit:
        """The last name of ``x.y.cuda`` becomes another one."""
        return Edit(*self.attribute(node), name)

    def prepend_argument(self, call: ast.Call, text: str) -> Edit:
        """A new first argument."""
        at = self.text.index("(", self.span(call.func)[1]) + 1
        if not call.args and not call.keywords:
            return Edit(at, at, text)
        at += len(self.text[at:]) - len(self.text[at:].lstrip())  # on the line of the first one
        return Edit(at, at, f"{text}, ")

    def append_argument(self, call: ast.Call, text: str) -> Edit:
        """A new last argument."""
        every = [*call.args, *call.keywords]
        if not every:
            return self.prepend_argument(call, text)
        at, end = max(self.span(argument)[1] for argument in every), self.span(call)[1] - 1
        at += self.text[at:end].partition("#")[0].rfind(")") + 1  # it may have parentheses of its own
        return Edit(at, at, f", {text}")

    def remove_argument(self, call: ast.Call, argument: ast.expr | ast.keyword) -> Edit:
        """An argument goes, with the comma that it leaves over."""
        every = sorted([*call.args, *call.keywords], key=self.span)
        at = every.index(argument)
        start, end = self.span(argument)
        if at + 1 < len(every):
            return Edit(start, self.span(every[at + 1])[0], "")
        if at:
            return Edit(self.span(every[at - 1])[1], end, "")
        return Edit(start, end, "")


def _starts(lines: list[str]) -> list[int]:
    starts, at = [], 0
    for line in lines:
        starts.append(at)
        at += len(line)
    return starts
