"""Expressions that mean the CUDA device, and what to write in their place.

``"cuda"`` is the current device, which is what the manager's ``device`` is; ``"cuda:0"`` alone in a file means "the
GPU" just as well; any other number, or one that is computed, is that number's device: ``dm.device_at(n)``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from devicekit.codemod.module import Module

__all__ = ["AVAILABLE", "Choice", "Device", "choice", "chosen", "device", "is_available", "text_of_cuda"]

AVAILABLE = "torch.cuda.is_available"
OTHERS = ("torch.backends.mps.is_available", "torch.backends.mps.is_built", "torch.xpu.is_available")
SETS_INDEX = ("torch.cuda.set_device", "torch.cuda.device", "torch.accelerator.set_device_index")
VENDORS = ("cpu", "mps", "xpu", "npu", "mlu", "musa", "hpu")
"""Whose devices a choice may name beside CUDA's: the manager reaches them too."""
_ASKS = re.compile(r"torch\.(?:backends\.)?(\w+)\.is_(?:available|built)$")
_LITERAL = re.compile(r"cuda(?::(\d+))?$")
_FORMAT = re.compile(r"cuda:(?:%[dsi]|\{0?(?::d)?\})$")


@dataclass(frozen=True, slots=True)
class Device:
    """What an expression means."""

    index: str | None = None
    """The source of the number; None: the current device."""
    computed: bool = False
    """The number is not in the text."""

    def as_device(self, module: Module) -> str:
        """A ``torch.device``."""
        if self.index is None or (self.index == "0" and not _numbers(module) - {"0"}):
            return module.device
        return f"{module.manager}.device_at({self.index})"

    def as_text(self, module: Module) -> str:
        """A ``str``, where one stood."""
        return f"str({self.as_device(module)})"


def text_of_cuda(node: ast.AST | None, module: Module) -> Device | None:
    """``"cuda"``, ``"cuda:1"``, ``f"cuda:{i}"``, ``"cuda:%d" % i``, ``"cuda:{}".format(i)``, ``"cuda:" + str(i)``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found = _LITERAL.match(node.value)
        return Device(found[1]) if found else None
    if isinstance(node, ast.JoinedStr):
        return _of_fstring(node)
    if isinstance(node, ast.BinOp):
        return _of_operator(node, module)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        is_format = node.func.attr == "format" and _is_format(node.func.value)
        return Device(module.code(node.args[0]), computed=True) if is_format and _has_one(node) else None
    return None


def _of_fstring(node: ast.JoinedStr) -> Device | None:
    if len(node.values) != 2:
        plain_text = len(node.values) == 1 and isinstance(node.values[0], ast.Constant)
        return Device() if plain_text and node.values[0].value == "cuda" else None  # type: ignore[attr-defined]
    first, second = node.values
    if isinstance(first, ast.Constant) and first.value == "cuda:" and isinstance(second, ast.FormattedValue):
        plain = second.conversion == -1 and second.format_spec is None
        # Before Python 3.12 what is inside an f-string has no position of its own that can be relied on.
        return Device(ast.unparse(second.value), computed=True) if plain else None
    return None


def _of_operator(node: ast.BinOp, module: Module) -> Device | None:
    if isinstance(node.op, ast.Mod) and _is_format(node.left):
        one = node.right.elts[0] if isinstance(node.right, ast.Tuple) and len(node.right.elts) == 1 else node.right
        return None if isinstance(one, ast.Tuple) else Device(module.code(one), computed=True)
    is_prefix = isinstance(node.left, ast.Constant) and node.left.value == "cuda:"
    if isinstance(node.op, ast.Add) and is_prefix:
        number = node.right
        is_str = isinstance(number, ast.Call) and isinstance(number.func, ast.Name) and number.func.id == "str"
        if isinstance(number, ast.Call) and is_str and _has_one(number):
            number = number.args[0]
        return Device(module.code(number), computed=True)  # text that says a number will do as well
    return None


def _has_one(call: ast.Call) -> bool:
    return len(call.args) == 1 and not call.keywords


def _is_format(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(_FORMAT.match(node.value))


def is_available(node: ast.AST | None, module: Module) -> bool:
    """``torch.cuda.is_available()``, or one of its likes for another vendor."""
    return module.calls(node, AVAILABLE, *OTHERS)


def device(node: ast.AST | None, module: Module) -> Device | None:
    """The device that an expression means, where it means one and nothing else.

    Besides the text: ``torch.device`` of it, ``torch.cuda.current_device()``, and the choice ``... if
    torch.cuda.is_available() else "cpu"``, with any other vendors' choices in between.
    """
    if isinstance(node, ast.Call):
        name = module.name(node.func)
        if name == "torch.device":
            return _of_constructor(node, module)
        if name == "torch.cuda.current_device" and not node.args:
            return Device()
    if isinstance(node, ast.IfExp):
        found = choice(node, module)
        return None if found is None else found.device
    return text_of_cuda(node, module)


def _of_constructor(call: ast.Call, module: Module) -> Device | None:
    given = {k.arg: k.value for k in call.keywords}
    kind = call.args[0] if call.args else given.get("type", given.get("device"))
    index = call.args[1] if len(call.args) > 1 else given.get("index")
    if index is None:
        return device(kind, module)
    made = choice(kind, module) if isinstance(kind, ast.IfExp) else None
    found = text_of_cuda(kind, module) if made is None else made.device
    if found is None or found.index is not None:
        return None
    if module.calls(index, "torch.cuda.current_device"):
        return Device()
    return Device(module.code(index), computed=not isinstance(index, ast.Constant))


# -- choices ---------------------------------------------------------------------------------------------
class Choice(NamedTuple):
    """A choice of the device by what is available, and by nothing else."""

    device: Device
    """Where there is CUDA."""
    kinds: frozenset[str]
    """What its branches are: ``text``, ``device``."""


def choice(node: ast.IfExp, module: Module) -> Choice | None:
    """``"cuda" if torch.cuda.is_available() else ("mps" if torch.backends.mps.is_available() else "cpu")``."""
    branches: list[tuple[ast.expr | None, ast.expr]] = []
    last: ast.expr = node
    while isinstance(last, ast.IfExp):
        branches.append((last.test, last.body))
        last = last.orelse
    return chosen([*branches, (None, last)], module)


def chosen(branches: Sequence[tuple[ast.expr | None, ast.expr]], module: Module) -> Choice | None:
    """What such a choice means, as its tests and their values; the test of ``else`` is None."""
    cuda, kinds = None, set()
    if len(branches) == 2 and isinstance(branches[0][0], ast.UnaryOp) and isinstance(branches[0][0].op, ast.Not):
        branches = [(branches[0][0].operand, branches[1][1]), (None, branches[0][1])]
    for test, value in branches:
        vendor, found, kind = _said(value, module)
        if vendor is None or vendor != ("cpu" if test is None else _asked(test, module)):
            return None
        cuda = found or cuda
        kinds.add(kind)
    return None if cuda is None else Choice(cuda, frozenset(kinds))


def _said(node: ast.expr, module: Module) -> tuple[str | None, Device | None, str]:
    """The vendor that a branch names; which device, if it is CUDA's; and what it is."""
    kind = "text"
    if module.calls(node, "torch.device"):
        assert isinstance(node, ast.Call)
        found = _of_constructor(node, module)
        if found is not None:
            return "cuda", found, "device"
        if not (len(node.args) == 1 and not node.keywords):
            return None, None, kind
        node, kind = node.args[0], "device"
    found = text_of_cuda(node, module)
    if found is not None:
        return "cuda", found, kind
    said = node.value if isinstance(node, ast.Constant) else None
    vendor = said.partition(":")[0] if isinstance(said, str) else None
    return (vendor if vendor in VENDORS else None), None, kind


def _asked(test: ast.expr, module: Module) -> str | None:
    """The vendor whose being there a test asks for: ``hasattr(torch, "xpu") and torch.xpu.is_available()``."""
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    vendors = {_asked_once(part, module) for part in parts} - {"torch"}
    return vendors.pop() if len(vendors) == 1 else None


def _asked_once(test: ast.expr, module: Module) -> str | None:
    """``torch``: whether this torch knows a vendor at all."""
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id in ("hasattr", "getattr"):
        name = module.name(test.args[0]) if test.args else None
        return "torch" if name in ("torch", "torch.backends") else None
    if isinstance(test, ast.Compare) and isinstance(test.left, ast.Call) and len(test.ops) == 1:
        is_none = isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value is None
        return _asked_once(test.left, module) if isinstance(test.ops[0], ast.IsNot) and is_none else None
    if not isinstance(test, ast.Call) or test.args or test.keywords:
        return None
    found = _ASKS.match(module.name(test.func) or "")
    return found[1] if found else None


def _numbers(module: Module) -> set[str]:
    """The numbers of devices that the file names; a computed one counts as itself."""
    known = module.memo.get(__name__)
    if known is None:
        known = module.memo[__name__] = set(
            filter(
                None, (_number(node, module) for node in module.every(ast.Call, ast.Constant, ast.JoinedStr, ast.BinOp))
            )
        )
    assert isinstance(known, set)
    return known


def _number(node: ast.AST, module: Module) -> str | None:
    if isinstance(node, ast.Call):
        name = module.name(node.func)
        if name == "torch.device" and len(node.args) == 2:
            return module.code(node.args[1])
        method = node.func.attr if isinstance(node.func, ast.Attribute) and not name else ""
        is_index = name in SETS_INDEX or method in ("cuda", "device_at", "device_index", "set_device")
        if is_index and node.args:
            return module.code(node.args[0])
    found = text_of_cuda(node, module)
    return None if found is None else found.index
