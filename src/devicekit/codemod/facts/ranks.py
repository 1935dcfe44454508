"""Whether an expression is plainly the number of a device: ``.to(rank)`` and ``device=rank`` mean that device."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.facts.positions import is_guarded, last_name
from devicekit.codemod.module import Module

__all__ = ["is_number", "looks_like_number"]

NAME = re.compile(r"(?:.*_)?(?:rank|gpu|gpu_?id|gpu_?idx|gpu_?index|device_?id|device_?idx|device_?index)$", re.I)
PARAMETER = re.compile(r"(?:.*_)?(?:rank|gpu_?id|device_?id|device_?idx|device_?index)$", re.I)
"""A parameter of this name is one; ``gpu`` may be None."""
COUNTS = (
    "torch.cuda.current_device",
    "torch.cuda.device_count",
    "torch.distributed.get_rank",
    "torch.distributed.get_node_local_rank",
    "torch.distributed.get_world_size",
)


def looks_like_number(node: ast.AST) -> bool:
    """It is called as one: ``rank``, ``self.gpu_id``."""
    return isinstance(node, (ast.Name, ast.Attribute)) and bool(NAME.match(last_name(node)))


def is_number(node: ast.AST, module: Module) -> bool:
    """It is one: a literal, something computed as one, or a name that is given nothing else in this file."""
    if isinstance(node, ast.Constant):
        return type(node.value) is int and node.value >= 0
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, (ast.Mod, ast.FloorDiv, ast.Add, ast.Sub)) and is_number(node.right, module)
    if isinstance(node, ast.Call):
        is_int = isinstance(node.func, ast.Name) and node.func.id == "int"
        return is_int or module.name(node.func) in COUNTS
    return looks_like_number(node) and _is_given_numbers(node, module)


def _is_given_numbers(node: ast.AST, module: Module) -> bool:
    given = list(_given(node, module))
    return bool(given) and all(said is True or (said is None and is_guarded(node, module)) for said in given)


def _given(node: ast.AST, module: Module) -> Iterator[bool | None]:
    """Of everything that gives it a value in this file: whether that is a number; None: perhaps None."""
    name = last_name(node)
    for other in module.every(ast.Assign, ast.arg, ast.Call):
        if isinstance(other, ast.Assign):
            for target in other.targets:
                if type(target) is type(node) and last_name(target) == name:
                    yield _is_number_or_none(other.value, module)
        elif isinstance(other, ast.arg) and other.arg == name and isinstance(node, ast.Name):
            yield _of_parameter(other)
        elif isinstance(other, ast.Call) and isinstance(node, ast.Attribute):
            is_option = isinstance(other.func, ast.Attribute) and other.func.attr == "add_argument"
            if is_option and any(last_name(a).lstrip("-").replace("-", "_") == name for a in other.args):
                yield _of_option(other)


def _is_number_or_none(value: ast.expr, module: Module) -> bool | None:
    if isinstance(value, ast.Constant) and value.value is None:
        return None
    if isinstance(value, ast.Name) and PARAMETER.match(value.id):
        return True
    if isinstance(value, ast.Name) and NAME.match(value.id):
        return None
    return not isinstance(value, (ast.Name, ast.Attribute)) and is_number(value, module)


def _of_parameter(parameter: ast.arg) -> bool | None:
    if parameter.annotation is not None:
        return isinstance(parameter.annotation, ast.Name) and parameter.annotation.id == "int"
    return True if PARAMETER.match(parameter.arg) else None


def _of_option(call: ast.Call) -> bool | None:
    given = {k.arg: k.value for k in call.keywords}
    kind, default = given.get("type"), given.get("default")
    if not (isinstance(kind, ast.Name) and kind.id == "int"):
        return False
    return True if isinstance(default, ast.Constant) and default.value is not None else None
