"""Functions that TorchScript compiles: it knows the names of torch, and no manager of a file."""

from __future__ import annotations

import ast

from devicekit.codemod.module import Module

__all__ = ["is_scripted"]

SCRIPT = ("torch.jit.script", "torch.jit.script_method")


def is_scripted(node: ast.AST, module: Module) -> bool:
    """It is in a function that is decorated with ``torch.jit.script``, under whatever name, or handed to it by name."""
    if "jit" not in module.text:
        return False
    known = module.memo.get(__name__)
    if known is None:
        known = module.memo[__name__] = {f for f in module.every(ast.FunctionDef) if _is_compiled(f, module)}
    assert isinstance(known, set)
    return any(above in known for above in module.parents(node))


def _is_compiled(function: ast.AST, module: Module) -> bool:
    assert isinstance(function, ast.FunctionDef)
    if any(_compiles(decorator, module) for decorator in function.decorator_list):
        return True
    handed = (module.parent(use) for use in module.names.uses.get(function.name, ()))
    return any(isinstance(call, ast.Call) and module.calls(call, *SCRIPT) for call in handed)


def _compiles(decorator: ast.expr, module: Module) -> bool:
    if module.name(decorator) in SCRIPT:
        return True
    bound = [module.parent(n) for n in module.names.uses.get(getattr(decorator, "id", ""), ())]
    values = [b.value for b in bound if isinstance(b, ast.Assign)]
    return any(module.name(part) in SCRIPT for value in values for part in ast.walk(value))
