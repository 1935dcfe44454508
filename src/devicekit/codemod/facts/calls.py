"""What a call is given, by the names of the parameters; whether it needs a device, and how to say that it does."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from devicekit.codemod.facts.devices import AVAILABLE, is_available, text_of_cuda
from devicekit.codemod.finding import Edit
from devicekit.codemod.module import Module

__all__ = [
    "argument_span",
    "bind",
    "by_name",
    "is_called",
    "is_handed_on",
    "needs_device",
    "only_on_accelerator",
    "put_first",
]

LOOSE = (ast.IfExp, ast.Lambda, ast.NamedExpr)
"""What binds less tightly than ``and``; besides ``or``."""


def bind(call: ast.Call, *parameters: str) -> dict[str, ast.expr] | None:
    """The arguments by parameter; None where a ``*``, a ``**`` or an unknown one hides what is meant."""
    if any(isinstance(a, ast.Starred) for a in call.args) or len(call.args) > len(parameters):
        return None
    given = dict(zip(parameters, call.args, strict=False))
    given.update({str(k.arg): k.value for k in call.keywords})
    return given if set(given) <= set(parameters) else None


def argument_span(call: ast.Call, argument: ast.expr, module: Module) -> tuple[int, int]:
    """The characters of an argument's value, with parentheses of its own."""
    first = module.text.index("(", module.span(call.func)[1]) + 1
    start, end = module.span(argument)
    while (before := module.text[first:start].rstrip()).endswith("("):
        start, end = first + len(before) - 1, module.text.index(")", end) + 1
    return start, end


def by_name(call: ast.Call, edits: list[Edit], parameters: Sequence[str], module: Module) -> list[Edit]:
    """The edits, and with them the names of the arguments that are given by position."""
    starts = [argument_span(call, value, module)[0] for value in call.args]
    opened = [edit.start for edit in edits if edit.text == "("]
    kept = [edit for edit in edits if edit.text != "(" or edit.start not in starts]
    for name, start in zip(parameters, starts, strict=False):
        kept.append(Edit(start, start, f"{name}=" + "(" * opened.count(start)))
    return kept


def put_first(call: ast.Call, text: str, enabled: ast.expr | None, module: Module) -> list[Edit]:
    """A new first argument, and an ``enabled`` that is false on the CPU."""
    if not call.args and not call.keywords:
        return [module.prepend_argument(call, f"{text}, enabled={module.manager}.is_accelerator")]
    return [module.prepend_argument(call, text), *only_on_accelerator(call, enabled, module)]


def only_on_accelerator(call: ast.Call, value: ast.expr | None, module: Module) -> list[Edit]:
    """Edits that make the call's ``enabled`` false on the CPU; none where it is false there already."""
    condition = f"{module.manager}.is_accelerator"
    if value is None:
        return [module.append_argument(call, f"enabled={condition}")]
    if isinstance(value, ast.Constant):
        return [module.replace(value, condition)] if value.value else []
    parts = value.values if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And) else [value]
    asked = [module.replace(part, condition) for part in parts if module.calls(part, AVAILABLE)]
    if asked:
        return asked
    start, end = argument_span(call, value, module)
    bare = (start, end) == module.span(value)
    if bare and (isinstance(value, LOOSE) or (isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or))):
        return [Edit(start, start, "("), Edit(end, end, f") and {condition}")]
    return [Edit(end, end, f" and {condition}")]


def is_handed_on(node: ast.AST, module: Module, *names: str) -> bool:
    """It is the name of one of these, and not called here."""
    read = isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
    return read and not is_called(node, module) and module.name(node) in names


def is_called(node: ast.AST, module: Module) -> bool:
    """A name that is called right here, or is only a part of a longer one."""
    above = module.parent(node)
    return isinstance(above, ast.Attribute) or (isinstance(above, ast.Call) and above.func is node)


def needs_device(node: ast.AST, module: Module) -> bool:
    """It is reached only where there is a CUDA device."""
    child = node
    for above in module.parents(node):
        if isinstance(above, ast.If) and child in above.body and _asks_for_a_device(above.test, module):
            return True
        if isinstance(above, ast.IfExp) and child is above.body and _asks_for_a_device(above.test, module):
            return True
        child = above
    return False


def _asks_for_a_device(test: ast.expr, module: Module) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(_asks_for_a_device(value, module) for value in test.values)
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq):
        return any(text_of_cuda(side, module) is not None for side in (test.left, *test.comparators))
    return is_available(test, module) or module.code(test) == f"{module.manager}.is_accelerator"
