"""What a place takes: a ``torch.device``, the text of one, or the name of its type.

torch's own functions take either, so there the device itself is written. What anybody else's do with text is unknown,
so there it stays text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from enum import Enum

from devicekit.codemod.facts.devices import Device, text_of_cuda
from devicekit.codemod.finding import Edit
from devicekit.codemod.module import Module
from devicekit.codemod.names import FUNCTIONS

__all__ = [
    "Takes",
    "consumer",
    "defaults_of",
    "edits",
    "is_formatted",
    "is_guarded",
    "last_name",
    "leaves",
    "may_be_missing",
    "parameter_of",
    "says_device",
    "takes",
    "takes_device",
    "written",
]

FIRST = ("torch.device", "torch.set_default_device", "torch.Generator")
"""Whose first argument may be a ``torch.device``."""
MESHES = (".init_device_mesh", ".DeviceMesh")
"""Whose first argument is the name of a type."""
METHODS = ("to", "to_empty", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "new_empty_strided")
PACKAGES = ("torch.", "torchvision.", "torchaudio.")
TEXT_ONLY = ("torch.distributed.", "torch.autograd.profiler.", "torch.profiler.", "torch.utils.data.", "torch.hub.")
_DEVICE = re.compile(r".*device(?:_?(?:name|type|str|string|map|arg|placement))?_?\d*$|(?:.*_)?dev_?\d*$", re.I)
_LOCATION = re.compile(r"(?:map_)?loc(?:ation)?$", re.I)
_NUMBERED = re.compile(r"\.device_at\((?!0\))")
_TYPE = re.compile(r"(?:.*_)?device_?type$", re.I)


class Takes(Enum):
    """What may stand there."""

    DEVICE = "a torch.device"
    TEXT = "text"
    TYPE = "the type's name"


def says_device(name: str | None) -> bool:
    """A variable, parameter or key of this name holds a device."""
    plain = (name or "").lstrip("-").replace("-", "_")
    return bool(_DEVICE.match(plain) or _LOCATION.match(plain))


def last_name(node: ast.AST) -> str:
    """``device`` of ``device``, ``self.device`` and ``kwargs["device"]``; nothing for any other target."""
    if isinstance(node, ast.Subscript):
        node = node.slice
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def leaves(node: ast.expr) -> Iterator[ast.expr]:
    """The values that it can have: the branches of a choice, the parts of ``a or b``."""
    if isinstance(node, ast.IfExp):
        yield from leaves(node.body)
        yield from leaves(node.orelse)
    elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        for value in node.values:
            yield from leaves(value)
    else:
        yield node


def consumer(node: ast.AST, module: Module) -> tuple[ast.AST, ast.AST | None]:
    """What takes the value of an expression, and the part of it that is the expression or a choice around it."""
    child, above = node, module.parent(node)
    while isinstance(above, ast.BoolOp) or (isinstance(above, ast.IfExp) and child is not above.test):
        child, above = above, module.parent(above)
    return child, above


def takes(node: ast.AST, module: Module) -> Takes:
    """What the place of an expression takes."""
    child, above = consumer(node, module)
    if isinstance(above, ast.keyword):
        return _of_keyword(above, module)
    if isinstance(above, ast.Call):
        return _of_argument(above, child, module)
    if isinstance(above, ast.arguments):
        parameter = parameter_of(above, child)
        return _of_declared(parameter.arg, parameter.annotation, module) if parameter else Takes.TEXT
    if isinstance(above, ast.AnnAssign):
        return _of_declared(last_name(above.target), above.annotation, module)
    if isinstance(above, ast.Assign):
        return _of_declared(last_name(above.targets[0]), None, module)
    if isinstance(above, ast.Dict):
        key = next((k for k, v in zip(above.keys, above.values, strict=True) if v is child), None)
        return _of_declared(last_name(key) if key is not None else "", None, module)
    if isinstance(above, ast.Return):
        function = module.function(above)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return _of_declared(function.name, function.returns, module)
    return Takes.TEXT


def _of_keyword(keyword: ast.keyword, module: Module) -> Takes:
    call = module.parent(keyword)
    if _TYPE.match(keyword.arg or ""):
        return Takes.TYPE
    is_device = keyword.arg in ("device", "map_location") and isinstance(call, ast.Call)
    return Takes.DEVICE if is_device and takes_device(call, module) else Takes.TEXT  # type: ignore[arg-type]


def takes_device(call: ast.Call, module: Module) -> bool:
    """Its ``device=`` may be a ``torch.device``: it is torch's, or named like a tensor's method."""
    name = module.name(call.func)
    if name is None:
        return isinstance(call.func, ast.Attribute) and call.func.attr in METHODS
    return (name.startswith(PACKAGES) and not name.startswith(TEXT_ONLY)) or name == "transformers.pipeline"


def _of_argument(call: ast.Call, child: ast.AST, module: Module) -> Takes:
    name, position = module.name(call.func), call.args.index(child) if child in call.args else -1
    is_move = name is None and isinstance(call.func, ast.Attribute) and call.func.attr == "to"
    if name == "torch.device" and len(call.args) + len(call.keywords) > 1:
        return Takes.TYPE  # with a number beside it
    if (position == 0 and (is_move or name in FIRST)) or (position == 1 and name == "torch.load"):
        return Takes.DEVICE
    if position == 0 and name is not None and name.startswith("torch.distributed.") and name.endswith(MESHES):
        return Takes.TYPE
    named = [last_name(a) for a in call.args[: max(position, 0)] if isinstance(a, ast.Constant)]
    return Takes.TYPE if named and _TYPE.match(named[-1]) else Takes.TEXT


def _of_declared(name: str, annotation: ast.expr | None, module: Module) -> Takes:
    if _TYPE.match(name):
        return Takes.TYPE
    if isinstance(annotation, ast.Subscript) and last_name(annotation.value) == "Optional":
        annotation = annotation.slice
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.right, ast.Constant):  # torch.device | None
        annotation = annotation.left
    return Takes.DEVICE if module.name(annotation) == "torch.device" else Takes.TEXT


def defaults_of(arguments: ast.arguments) -> list[tuple[ast.arg, ast.expr]]:
    """The parameters that have a default, and it."""
    ordered = [*arguments.posonlyargs, *arguments.args]
    optional = ordered[len(ordered) - len(arguments.defaults) :]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [*zip(optional, arguments.defaults, strict=True), *((p, d) for p, d in named if d is not None)]


def parameter_of(arguments: ast.arguments, default: ast.AST) -> ast.arg | None:
    """The parameter that a default belongs to."""
    return next((parameter for parameter, value in defaults_of(arguments) if value is default), None)


def written(found: Device, node: ast.AST, module: Module) -> str:
    """What to write in the place of ``node``, which means this device."""
    kind = takes(node, module)
    if kind is Takes.TYPE:
        return f"{module.device}.type"
    is_device = kind is Takes.DEVICE or is_formatted(node, module)
    return found.as_device(module) if is_device else found.as_text(module)


def is_formatted(node: ast.AST, module: Module) -> bool:
    """It stands in an f-string, where a device reads as its text does."""
    above = consumer(node, module)[1]
    return isinstance(above, ast.FormattedValue) and above.conversion == -1 and above.format_spec is None


def edits(value: ast.expr, module: Module) -> list[Edit]:
    """One for every value of an expression that is the text of a CUDA device."""
    if value in module.misplaced:
        return []
    found = [(leaf, text_of_cuda(leaf, module)) for leaf in leaves(value)]
    return [module.replace(leaf, written(device, leaf, module)) for leaf, device in found if device is not None]


def may_be_missing(found: Sequence[Edit]) -> bool:
    """They ask for a device by number, which raises where there are fewer; text by itself never does."""
    return any(_NUMBERED.search(edit.text) for edit in found)


def is_guarded(node: ast.AST, module: Module) -> bool:
    """It runs only where ``node is not None``."""
    asked = f"{ast.unparse(node)} is not None"
    return any(
        isinstance(above, (ast.If, ast.IfExp)) and asked in ast.unparse(above.test)
        for above in module.parents(node)
        if not isinstance(above, FUNCTIONS)
    )
