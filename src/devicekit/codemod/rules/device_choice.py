"""A choice between the devices there are: CUDA's, else another one's, else the CPU.

The manager made it already, among all backends, and of those that were named the first that is there stays the first on
a CUDA machine.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from devicekit.codemod.facts.device_types import type_of
from devicekit.codemod.facts.devices import Choice, choice
from devicekit.codemod.facts.ladders import Ladder, ladder
from devicekit.codemod.facts.positions import Takes, consumer, is_formatted, takes
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Rule, rewrites

MESSAGE = "a choice that knows some devices only"


class DeviceChoice(Rule):
    """Where text stood, text stays; where a ``torch.device`` stood, it stays one. What holds a comment stays whole."""

    name = "device-choice"
    visits = (ast.IfExp, ast.If)
    hints = ("cuda",)
    examples = (
        rewrites(
            'device = "cuda" if torch.cuda.is_available() else "cpu"',
            "device = str(dm.device)",
            gives="(device, type(device).__name__)",
        ),
        rewrites(
            "device = (\n    torch.device('cuda:0')\n    if torch.cuda.is_available()\n    else torch.device('cpu')\n)",
            "device = dm.device",
            gives="(device.type, type(device).__name__)",
        ),
        rewrites(
            'd = "cuda" if torch.cuda.is_available() else ("mps" if torch.backends.mps.is_available() else "cpu")\n'
            'x = torch.ones(2).to("cuda" if torch.cuda.is_available() else "cpu")',
            "d = str(dm.device)\nx = torch.ones(2).to(dm.device)",
            gives="(d, x.sum())",
        ),
        rewrites(
            'if torch.cuda.is_available():\n    device = "cuda"\n'
            'elif hasattr(torch, "xpu") and torch.xpu.is_available():\n    device = "xpu"\n'
            'else:\n    device = "cpu"',
            "device = str(dm.device)",
            gives="device",
        ),
        rewrites(
            "def choose():\n    device = torch.device('cpu')\n    if torch.cuda.is_available():\n"
            "        device = torch.device('cuda')\n    return device",
            "def choose():\n    device = dm.device\n    return device",
            gives="choose().type",
        ),
        rewrites(
            'asked = ""\nif asked:\n    device = asked\nelif torch.cuda.is_available():\n    device = "cuda"\n'
            'else:\n    device = "cpu"',
            'asked = ""\nif asked:\n    device = asked\nelse:\n    device = str(dm.device)',
            gives="device",
        ),
        rewrites(
            'device = "cpu"\ndevice_type = "cuda" if "cuda" in device else "cpu"',
            'device = "cpu"\ndevice_type = torch.device(device).type',
            gives="device_type",
        ),
        rewrites(
            'device = torch.device("cpu")\nkind = "cuda" if device.type == "cuda" else "cpu"',
            'device = torch.device("cpu")\nkind = device.type',
            gives="kind",
        ),
        Leaves(
            'import torch\n\nif torch.cuda.is_available():  # it\n    device = "cuda"\nelse:\n    device = "cpu"\n',
            because="the comment would be lost",
        ),
        Leaves(
            'import torch\n\nif torch.cuda.is_available():\n    d, n = "cuda", 8\nelse:\n    d, n = "cpu", 1\n',
            because="more is chosen than the device",
        ),
        Leaves(
            'import torch\n\ndevice = "mps" if torch.backends.mps.is_available() else "cpu"\n',
            because="it names no CUDA",
        ),
        Leaves(
            'import torch\n\ndevice = torch.device("cuda") if torch.cuda.is_available() else "cpu"\n',
            because="one is text and the other is not",
        ),
        Leaves(
            'import torch\n\n\ndef f(quick):\n    return "cuda" if torch.cuda.is_available() and quick else "cpu"\n',
            because="something else is asked as well",
        ),
        Leaves('words = ["cuda"]\nkind = "cuda" if "cuda" in words else "cpu"\n', because="these are no device"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Conditional expressions, and ``if`` statements that give one name a device in each branch."""
        if isinstance(node, ast.If):
            found = ladder(node, module)
            if found is not None and "#" not in module.text[found.start : found.end]:
                edit = Edit(found.start, found.end, _statement(found, module))
                lines = module.line_at(found.start), module.line_at(found.end - 1)
                told = self.rewrite(node, module, MESSAGE, edit)
                yield dataclasses.replace(told, span=lines, place=(found.start, found.end))  # one place, all its lines
            return
        assert isinstance(node, ast.IfExp)
        made = choice(node, module)
        text = type_of(node, module) if made is None else _expression(made, node, module)
        start, end = _with_parentheses(node, module)
        if text is not None and "#" not in module.text[start:end]:
            space = " " if module.text[start - 1 : start].isalnum() else ""  # return("cuda" if ...)
            yield self.rewrite(_place(node, module), module, MESSAGE, Edit(start, end, space + text))


def _expression(made: Choice, node: ast.AST, module: Module) -> str | None:
    """What to write; nothing where the branches are of two types, and the place may tell them apart."""
    kind = takes(node, module)
    if kind is Takes.TYPE and made.kinds == {"text"}:
        return f"{module.device}.type"
    if kind is Takes.DEVICE or made.kinds == {"device"} or is_formatted(node, module):
        return made.device.as_device(module)
    return made.device.as_text(module) if made.kinds == {"text"} else None


def _statement(found: Ladder, module: Module) -> str:
    before = module.text[found.keeps[0] : found.keeps[1]]
    space = " " if before[-1:].isalnum() else ""  # return("cuda")
    return f"{found.opening}{before}{space}{_expression(found.made, found.value, module)}"


def _place(node: ast.AST, module: Module) -> ast.AST:
    """What the choice is made for: a call or a statement; it is there that people look."""
    child, above = consumer(node, module)
    if isinstance(above, ast.keyword):
        above = module.parent(above)
    is_simple = isinstance(above, (ast.Call, ast.Assign, ast.AnnAssign, ast.Return))
    return above if above is not None and is_simple else child


def _with_parentheses(node: ast.expr, module: Module) -> tuple[int, int]:
    """With those around it, which have nothing to hold together any more."""
    start, end = module.span(node)
    before, after = module.text[:start].rstrip(), module.text[end:]
    closing = len(after) - len(after.lstrip())
    is_argument = isinstance(module.parent(node), (ast.Call, ast.ClassDef))  # those may be the call's own
    if before.endswith("(") and after.lstrip().startswith(")") and not is_argument:
        return len(before) - 1, end + closing + 1
    return start, end
