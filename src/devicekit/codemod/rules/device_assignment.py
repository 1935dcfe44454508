"""A variable, attribute or setting that is ``"cuda"``.

It is a device where its name says so, or where all that reads it wants one.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import replace

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.positions import Takes, edits, last_name, may_be_missing, says_device, takes
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

MESSAGE = "a setting is a CUDA device"
FIELDS = ("dataclasses.field", "pydantic.Field", "attr.ib", "attrs.field", "attr.field")
READS = ("split", "rsplit", "partition", "rpartition", "removeprefix", "replace", "strip", "lstrip")


class DeviceAssignment(Rule):
    """Text stays text, for it may be compared, printed, saved or sent."""

    name = "device-assignment"
    visits = (ast.Assign, ast.AnnAssign)
    hints = ("cuda",)
    examples = (
        rewrites(
            "device = 'cuda'  # or 'cpu', 'cuda:1'",
            "device = str(dm.device)  # or 'cpu', 'cuda:1'",
            gives="type(device)",
        ),
        rewrites(
            'class Worker:\n    device: str = "cuda"\n\n    def __init__(self, number=0):\n'
            '        self.device = f"cuda:{number}"',
            "class Worker:\n    device: str = str(dm.device)\n\n    def __init__(self, number=0):\n"
            "        self.device = str(dm.device_at(number))",
            gives="type(Worker().device)",
        ),
        rewrites(
            'on = False\nDEVICE = "cuda" if on else "cpu"\ndevice_type = "cuda"',
            'on = False\nDEVICE = str(dm.device) if on else "cpu"\ndevice_type = dm.device.type',
            gives="DEVICE",
        ),
        rewrites(
            'settings = {}\nsettings["RUN_DEVICE"] = "cuda"',
            'settings = {}\nsettings["RUN_DEVICE"] = str(dm.device)',
            gives="list(settings)",
        ),
        rewrites(
            "where, steps = 'cuda', 3\nx = torch.ones(steps, device=where)",
            "where, steps = str(dm.device), 3\nx = torch.ones(steps, device=where)",
            gives="x.sum()",
        ),
        rewrites(
            'device = "cuda"\nfirst = f"{device}:{0}"',
            'device = dm.device.type\nfirst = f"{device}:{0}"',
            gives="first.count(':')",
        ),
        Leaves('device = "cpu"\n', because="it names no CUDA"),
        Reports('from unittest import mock\n\nx = mock.MagicMock()\nx.device = "cuda:0"\n'),
        Leaves(
            'folder = "cuda"\nopen(folder)\n', because="it is no device; the rule for what is left over tells of it"
        ),
        Leaves('device = {"cuda": 3}\n', because="this is a key"),
        Leaves('device = "cudagraph"\n', because="this is another word"),
        Reports('class Second:\n    device = "cuda:1"\n'),
        Reports('device = "cuda:1"\nnumber = int(device.split(":")[1])\n'),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Assignments to one name, or to as many as there are values."""
        assert isinstance(node, (ast.Assign, ast.AnnAssign))
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found: list[Edit] = []
        for target, value in _pairs(targets[-1], node.value, module):
            inner = edits(value, module)
            if not inner or not (_says_device(target) or _feeds_device(target, module)):
                continue
            if isinstance(module.parent(node), ast.ClassDef) and may_be_missing(inner):
                message = (
                    f"{MESSAGE} by number; where there are fewer, asking for it raises, and here already on import"
                )
                yield self.review(node, module, message, f"{inner[0].text}, where an instance is made")
            elif any(":" in module.text[e.start : e.end] for e in inner) and _is_taken_apart(target, module):
                message = f"{MESSAGE}, and its text is taken apart"
                yield self.review(node, module, message, f"{inner[0].text}; torch.device(...).index is its number")
            elif _is_mocked(target, module):
                yield self.review(node, module, f"{MESSAGE} in the place of a real one", "leave what a test pretends")
            elif _gets_number(target, module):
                kind = f"{module.device}.type"
                found += [replace(edit, text=kind) if edit.text == f"str({module.device})" else edit for edit in inner]
            else:
                found += inner
        if found:
            yield self.rewrite(node, module, MESSAGE, *found)


def _pairs(target: ast.expr, value: ast.expr | None, module: Module) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        yield from zip(target.elts, value.elts, strict=True)
    elif isinstance(value, ast.Call) and module.name(value.func) in FIELDS:
        given = [*value.args[:1], *(k.value for k in value.keywords if k.arg == "default")]
        yield from ((target, one) for one in given)
    elif value is not None:
        yield target, value


def _says_device(target: ast.expr) -> bool:
    return says_device(last_name(target))


def _feeds_device(target: ast.expr, module: Module) -> bool:
    """All that reads it in its function wants a device."""
    if not isinstance(target, ast.Name):
        return False
    around = module.function(target)
    reads = [
        use
        for use in module.names.uses.get(target.id, ())
        if isinstance(use.ctx, ast.Load) and (around is None or module.function(use) is around)
    ]
    return bool(reads) and all(takes(use, module) is Takes.DEVICE for use in reads)


def _is_mocked(target: ast.expr, module: Module) -> bool:
    """An attribute of what a test has made up."""
    made = values(target.value, module) if isinstance(target, ast.Attribute) else []
    return any(isinstance(m, ast.Call) and last_name(m.func).endswith("Mock") for m in made)


def _gets_number(target: ast.expr, module: Module) -> bool:
    """``f"{DEVICE}:{number}"``: the text must have none of its own, as that of a pinned device has."""
    name = last_name(target)
    for text in module.every(ast.JoinedStr):
        assert isinstance(text, ast.JoinedStr)
        for part, following in itertools.pairwise(text.values):
            is_it = isinstance(part, ast.FormattedValue) and last_name(part.value) == name
            if is_it and isinstance(following, ast.Constant) and str(following.value).startswith(":"):
                return True
    return False


def _is_taken_apart(target: ast.expr, module: Module) -> bool:
    """``device.split(":")[1]``, ``device[5:]``: what there is must have a number."""
    name = last_name(target)
    return any(
        isinstance(node, (ast.Attribute, ast.Subscript))  # for mypy
        and isinstance(node.value, (ast.Name, ast.Attribute))
        and last_name(node.value) == name
        and (isinstance(node, ast.Subscript) or node.attr in READS)
        for node in module.every(ast.Attribute, ast.Subscript)
    )
