"""torch.cuda's functions, whatever a file calls them, and which device they are asked about."""

from __future__ import annotations

import ast

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.devices import Device, device
from devicekit.codemod.module import Module

__all__ = ["Asked", "asked", "function"]

HOMES = ("memory", "random", "streams", "graphs")
"""Submodules whose functions torch.cuda has as well."""


def function(node: ast.AST | None, module: Module) -> str:
    """``empty_cache`` for ``torch.cuda.empty_cache`` and ``torch.cuda.memory.empty_cache``; else empty."""
    name = module.name(node) or ""
    if not name.startswith("torch.cuda."):
        return ""
    rest = name.removeprefix("torch.cuda.")
    home, _, inner = rest.partition(".")
    return inner if inner and home in HOMES else rest


class Asked:
    """Which device a function is asked about."""

    CURRENT = "current"
    """The runtime's current one."""
    NUMBER = "number"
    """One that a loop over whole numbers comes to."""
    UNKNOWN = "unknown"


def asked(node: ast.expr | None, module: Module) -> str:
    """What is known of a ``device`` argument, in whatever words it is given."""
    if node is None or (isinstance(node, ast.Constant) and node.value is None) or module.code(node) == module.device:
        return Asked.CURRENT
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return _of(Device(str(node.value)), module)
    found = device(node, module)
    if found is not None:
        return _of(found, module)
    given = values(node, module)
    meant = [device(value, module) for value in given if not _is_cpu(value, module)]
    if meant and all(m is not None and _of(m, module) == Asked.CURRENT for m in meant):
        return Asked.CURRENT
    if _is_made_current(node, module, anywhere=bool(given)):
        return Asked.CURRENT
    return Asked.NUMBER if _counts(node, module) else Asked.UNKNOWN


def _of(meant: Device, module: Module) -> str:
    return Asked.CURRENT if meant.as_device(module) == module.device else Asked.UNKNOWN


def _is_made_current(node: ast.expr, module: Module, *, anywhere: bool) -> bool:
    """``set_device`` is given the same, in the same function."""
    code, home = module.code(node), module.function(node)
    return any(code == said and (anywhere or home is where) for said, where in _made_current(module))


def _made_current(module: Module) -> list[tuple[str, ast.AST | None]]:
    """What the file gives to ``set_device``, and in which functions."""
    known = module.memo.get(__name__)
    if known is None:
        known = module.memo[__name__] = [
            (module.code(node.args[0]), module.function(node))
            for node in module.every(ast.Call)
            if isinstance(node, ast.Call) and node.args and function(node.func, module) == "set_device"
        ]
    assert isinstance(known, list)
    return known


def _is_cpu(node: ast.expr, module: Module) -> bool:
    if isinstance(node, ast.Call) and module.name(node.func) == "torch.device" and len(node.args) == 1:
        node = node.args[0]
    return isinstance(node, ast.Constant) and node.value == "cpu"


def _counts(node: ast.expr, module: Module) -> bool:
    """``for i in range(...)`` is all that binds it."""
    bound = module.names.bindings(node) if isinstance(node, ast.Name) else None
    loop = module.parent(bound[0]) if bound is not None and len(bound) == 1 else None
    if not isinstance(loop, (ast.For, ast.comprehension)) or not isinstance(loop.iter, ast.Call):
        return False
    made_by = loop.iter.func
    return isinstance(made_by, ast.Name) and made_by.id == "range" and not module.names.possible(made_by)
