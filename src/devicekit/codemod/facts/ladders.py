"""``if`` statements that do nothing but choose the device, branch by branch."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TypeAlias

from devicekit.codemod.facts.devices import Choice, chosen
from devicekit.codemod.module import Module

__all__ = ["Ladder", "ladder"]

Branches: TypeAlias = "list[tuple[ast.expr | None, ast.stmt]]"


@dataclass(frozen=True, slots=True)
class Ladder:
    """One, and what it comes to."""

    made: Choice
    value: ast.expr
    """The value of its first branch, which stands where all of them do."""
    start: int
    end: int
    """The characters that it takes, with an assignment before it that is its ``else``."""
    keeps: tuple[int, int]
    """Of the first branch what stands before the value: ``device =``, ``return``."""
    opening: str
    """What goes before it: ``else:`` and a new line, where the ladder is the rest of another one."""


def ladder(node: ast.If, module: Module) -> Ladder | None:
    """It, or None where the branches do more, or do not all do the same, or something else is asked."""
    branches = _branches(node)
    start, end = module.span(node)
    above, opening = module.parent(node), ""
    is_elif = isinstance(above, ast.If) and above.orelse == [node] and module.text.startswith("elif", start)
    if branches and branches[-1][0] is not None:
        other = _neighbour(node, branches[0][1], module)
        if other is None or is_elif:
            return None
        branches.append((None, other))
        start, end = min(start, module.span(other)[0]), max(end, module.span(other)[1])
    keys = {_key(statement) for _, statement in branches}
    if len(branches) < 2 or len(keys) != 1 or None in keys:
        return None
    made = chosen([(test, _value(s)) for test, s in branches], module)
    first = branches[0][1]
    is_rest = is_elif and isinstance(above, ast.If) and ladder(above, module) is not None  # of one, which says it all
    if made is None or len(made.kinds) != 1 or is_rest:
        return None
    if is_elif:
        line = module.line_at(module.span(first)[0])
        before = module.text[module.start_of_line(line) : module.span(first)[0]]
        if before.strip():
            return None
        opening = f"else:{_line_end(module, node)}{before}"
    value = _value(first)
    return Ladder(made, value, start, end, (module.span(first)[0], _start_of_value(value, module)), opening)


def _branches(node: ast.If) -> Branches:
    """Test and only statement of each branch; nothing where one has more."""
    found: Branches = []
    rest: list[ast.stmt] = [node]
    while len(rest) == 1 and isinstance(rest[0], ast.If):
        if len(rest[0].body) != 1:
            return []
        found.append((rest[0].test, rest[0].body[0]))
        rest = rest[0].orelse
    if len(rest) > 1:
        return []
    return [*found, (None, rest[0])] if rest else found


def _value(statement: ast.stmt) -> ast.expr:
    assert isinstance(statement, (ast.Assign, ast.Return))
    assert statement.value is not None
    return statement.value


def _key(statement: ast.stmt) -> str | None:
    """What the statement does with its value."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return ast.unparse(statement.targets[0])
    return "return" if isinstance(statement, ast.Return) and statement.value is not None else None


def _neighbour(node: ast.If, first: ast.stmt, module: Module) -> ast.stmt | None:
    """The statement that says what is meant otherwise: an assignment right before, a return right after."""
    other = module.neighbour(node, 1 if isinstance(first, ast.Return) else -1)
    return other if other is not None and _key(other) == _key(first) is not None else None


def _start_of_value(value: ast.expr, module: Module) -> int:
    start = module.span(value)[0]
    before = module.text[:start].rstrip()
    return len(before) - 1 if before.endswith("(") else start


def _line_end(module: Module, node: ast.AST) -> str:
    line = module.line(module.line_at(module.span(node)[0]))
    return line[len(line.rstrip("\r\n")) :] or "\n"
