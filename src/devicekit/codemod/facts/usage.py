"""What becomes of an expression's value: whether it is only told, needs parentheses, or stands alone on its line."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from devicekit.codemod.finding import Edit
from devicekit.codemod.module import Module

__all__ = [
    "LOGGING",
    "called_instead",
    "in_parentheses",
    "is_dropped",
    "is_told",
    "line_of",
    "quoted",
    "stands_alone",
    "under_index",
]

COMMENT = re.compile(r"#+\s*\w[^:=]*$")  # no `fmt: off`, and no code
LOGGING = ("debug", "info", "warning", "warn", "error", "critical", "exception", "log", "log_message", "print")
TELLS = ("print", "str", "repr", "format", "print0", "print_rank_0", "rank0_print", "pprint")


def is_dropped(node: ast.AST, module: Module) -> bool:
    """It is a statement by itself."""
    return isinstance(module.parent(node), ast.Expr)


def stands_alone(node: ast.AST, module: Module) -> bool:
    """It is a statement by itself, with nothing but a comment beside it on its lines."""
    statement = module.parent(node)
    if not isinstance(statement, ast.Expr):
        return False
    before, after = _around(statement, module)
    return not before.strip() and (not after.strip() or after.lstrip().startswith("#"))


def line_of(statement: ast.stmt, module: Module, *, among: Sequence[ast.stmt] = ()) -> Edit | None:
    """The lines of a statement go; None where something else is on them, or its block would be empty.

    With them goes a comment above that is about nothing else, and of the blank lines on both sides the fewer.

    Args:
        statement: what goes.
        module: its file.
        among: statements that follow each other, this one with them, and all go.
    """
    among = among or [statement]
    if module.block(statement) == list(among) or any(part.strip() for part in _around(statement, module)):
        return None
    top, bottom = _lines_of(among[0], module)[0], _lines_of(among[-1], module)[1]
    below = _blank_lines(bottom + 1, 1, module)
    comments = 1 if below and _is_own_comment(top - 1, module) else 0
    surplus = min(_blank_lines(top - comments - 1, -1, module), below)
    first, last = _lines_of(statement, module)
    first -= comments if statement is among[0] else 0
    last += surplus if statement is among[-1] else 0
    return Edit(module.start_of_line(first), module.start_of_line(last + 1), "")


def _lines_of(statement: ast.stmt, module: Module) -> tuple[int, int]:
    start, end = module.span(statement)
    return module.line_at(start), module.line_at(end - 1)


def _blank_lines(number: int, step: int, module: Module) -> int:
    """How many there are from a line on, up or down."""
    count = 0
    while 0 < number <= module.line_at(len(module.text)) and not _text_of(number, module):
        count, number = count + 1, number + step
    return count


def _is_own_comment(number: int, module: Module) -> bool:
    """A single line of words."""
    said = _text_of(number, module)
    return bool(COMMENT.match(said)) and not _text_of(number - 1, module).startswith("#")


def _text_of(number: int, module: Module) -> str:
    """A line without the blanks around it; nothing for one that is not there."""
    if number < 1:
        return ""
    return module.text[module.start_of_line(number) : module.start_of_line(number + 1)].strip()


def _around(statement: ast.stmt, module: Module) -> tuple[str, str]:
    """What stands before and after a statement, on its first and last line."""
    start, end = module.span(statement)
    last = module.start_of_line(module.line_at(end - 1) + 1)
    return module.text[module.start_of_line(module.line_at(start)) : start], module.text[end:last]


def is_told(node: ast.AST, module: Module) -> bool:
    """It is printed, logged, or made into text."""
    above = module.parent(node)
    if isinstance(above, ast.FormattedValue):
        return True
    if isinstance(above, ast.Tuple):
        node, above = above, module.parent(above)
    if isinstance(above, ast.BinOp) and isinstance(above.op, ast.Mod) and above.right is node:
        return isinstance(above.left, (ast.Constant, ast.JoinedStr))
    if isinstance(above, ast.Call) and node in above.args:
        called = above.func
        if isinstance(called, ast.Attribute):
            return called.attr in (*LOGGING, "format")
        return isinstance(called, ast.Name) and called.id in TELLS
    return False


def called_instead(call: ast.Call, argument: ast.expr, text: str, module: Module) -> list[Edit]:
    """Another function is called with the one argument, without a name for it."""
    keyword = module.parent(argument)
    name = [Edit(module.span(keyword)[0], module.span(argument)[0], "")] if isinstance(keyword, ast.keyword) else []
    return [module.replace(call.func, text), *name]


def under_index(call: ast.Call, index: ast.expr, text: str, module: Module) -> list[Edit]:
    """A statement that asks about one device becomes one about the manager's, while that device is current."""
    start, end = module.span(call)
    line = module.line(module.line_at(start))
    indent, newline = line[: len(line) - len(line.lstrip())], "\r\n" if line.endswith("\r\n") else "\n"
    step, (first, last) = "\t" if indent.startswith("\t") else "    ", module.span(index)
    return [
        Edit(start, first, f"with {module.manager}.device_index("),
        Edit(last, end, f"):{newline}{indent}{step}{module.manager}.{text}"),
    ]


def in_parentheses(text: str, node: ast.AST, module: Module) -> str:
    """The text of an expression with operators, as it can stand in this node's place."""
    above = module.parent(node)
    alone = (ast.Assign, ast.AnnAssign, ast.Return, ast.keyword, ast.FormattedValue, ast.Expr, ast.List, ast.Lambda)
    if isinstance(above, alone) or (isinstance(above, ast.Call) and node in above.args):
        return text
    if isinstance(above, ast.Dict) and node in above.values:
        return text
    return f"({text})"


def quoted(word: str, node: ast.AST, module: Module) -> str:
    """The word as a string, in the quotes of the file, and in others inside of an f-string."""
    around = [module.code(above) for above in module.parents(node) if isinstance(above, ast.JoinedStr)]
    if around:
        return f"'{word}'" if '"' in around[-1][:5] else f'"{word}"'
    return f'"{word}"' if module.text.count('"') >= module.text.count("'") else f"'{word}'"
