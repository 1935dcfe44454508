"""What a variable is assigned, where every statement that binds it is in sight."""

from __future__ import annotations

import ast
import re

from devicekit.codemod.module import Module

__all__ = ["values"]

HIDDEN = re.compile(r"(?<![\w.])(?:exec|eval|globals|locals|setattr)\s*\(")
"""What can bind a name without naming it: nanoGPT's files are configured by ``exec``."""


def values(node: ast.AST | None, module: Module) -> list[ast.expr]:
    """The expressions that are assigned to a name; none where something else binds it too: a loop, a parameter."""
    if not isinstance(node, ast.Name) or _binds_unseen(module):
        return []
    bound = module.names.bindings(node)
    found = [value for value in (_assigned(name, module) for name in bound or ()) if value is not None]
    return found if bound is not None and len(found) == len(bound) else []


def _binds_unseen(module: Module) -> bool:
    if __name__ not in module.memo:
        module.memo[__name__] = HIDDEN.search(module.text) is not None
    return bool(module.memo[__name__])


def _assigned(name: ast.Name, module: Module) -> ast.expr | None:
    above = module.parent(name)
    if isinstance(above, ast.Assign) and name in above.targets:
        return above.value
    if isinstance(above, ast.AnnAssign) and above.target is name:
        return above.value
    return None
