"""``"cuda" if "cuda" in device else "cpu"``: a question for the type of a device, which every device answers itself."""

from __future__ import annotations

import ast

from devicekit.codemod.facts.devices import text_of_cuda
from devicekit.codemod.facts.positions import last_name, says_device
from devicekit.codemod.module import Module

__all__ = ["type_of"]


def type_of(node: ast.IfExp, module: Module) -> str | None:
    """The expression for it, where the device has a name that says so."""
    found = text_of_cuda(node.body, module)
    is_cpu = isinstance(node.orelse, ast.Constant) and node.orelse.value == "cpu"
    if found is None or found.index is not None or not is_cpu:
        return None
    asked = _asked(node.test, module)
    if isinstance(asked, ast.Attribute) and asked.attr == "type" and says_device(last_name(asked.value)):
        return module.code(asked)
    if isinstance(asked, (ast.Name, ast.Attribute)) and says_device(last_name(asked)):
        return f"{module.torch}.device({module.code(asked)}).type"
    return None


def _asked(test: ast.expr, module: Module) -> ast.expr | None:
    """What is asked for being CUDA's: ``"cuda" in x``, ``x.startswith("cuda")``, ``x.type == "cuda"``."""
    asked: ast.expr | None = None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        if isinstance(test.ops[0], ast.Eq):
            is_type = isinstance(left, ast.Attribute) and left.attr == "type"
            return left if is_type and text_of_cuda(right, module) else None
        asked = right if isinstance(test.ops[0], ast.In) and text_of_cuda(left, module) else None
    elif isinstance(test, ast.Call) and isinstance(test.func, ast.Attribute) and test.func.attr == "startswith":
        asked = test.func.value if len(test.args) == 1 and text_of_cuda(test.args[0], module) else None
    is_text = isinstance(asked, ast.Call) and isinstance(asked.func, ast.Name) and asked.func.id == "str"
    return asked.args[0] if is_text and len(asked.args) == 1 else asked  # type: ignore[union-attr]
