"""Branches of an ``if`` that are for other vendors' devices."""

from __future__ import annotations

import ast
import re

from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.module import Module

__all__ = ["has_other_branches"]

OTHER_VENDOR = re.compile(r"\b(?:mps|xpu|npu|mlu|musa|hpu)\b")


def has_other_branches(above: ast.AST | None, outer: ast.AST, module: Module) -> bool:
    """An ``elif`` asks for another vendor, and does more than to choose the device."""
    if not isinstance(above, (ast.If, ast.IfExp)) or above.test is not outer:
        return False
    bodies: list[object] = [above.body]
    rest: object = above.orelse
    while True:
        rest = rest[0] if isinstance(rest, list) and len(rest) == 1 else rest
        if not isinstance(rest, type(above)):
            break
        if OTHER_VENDOR.search(ast.unparse(rest.test)):
            bodies.append(rest.body)
        rest = rest.orelse
    targets = {_target(body, module) for body in bodies}
    return len(bodies) > 1 and (len(targets) != 1 or None in targets)


def _target(body: object, module: Module) -> str | None:
    """What a branch assigns to, if that is all that it does beside calls of torch.cuda's."""
    steps = body if isinstance(body, list) else []
    steps = [step for step in steps if not (isinstance(step, ast.Expr) and _is_call_of_cuda(step.value, module))]
    one = steps[0] if len(steps) == 1 else None
    return ast.unparse(one.targets[0]) if isinstance(one, ast.Assign) else None


def _is_call_of_cuda(node: ast.AST, module: Module) -> bool:
    return isinstance(node, ast.Call) and bool(function(node.func, module))
