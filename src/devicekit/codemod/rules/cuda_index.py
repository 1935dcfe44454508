"""``torch.cuda.set_device``, ``device_count``, ``current_device`` and the context ``torch.cuda.device``.

``set_device`` and ``current_device`` raise where there is no CUDA.
https://docs.pytorch.org/docs/stable/cuda.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TypeGuard

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.calls import bind, is_called
from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.facts.positions import Takes, takes
from devicekit.codemod.facts.usage import called_instead
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

DIVIDES = (ast.Mod, ast.FloorDiv, ast.Div)
NUMBER = "dm.current_index, which is 0 where devices have no numbers; or dm.device where a device is wanted"
SHOWN = (ast.FormattedValue, ast.Compare, ast.BinOp)


class CudaIndex(Rule):
    """The facade takes the same numbers; where devices have none, it goes on with the one that there is."""

    name = "cuda-index"
    visits = (ast.Call, ast.Attribute, ast.Name)
    examples = (
        rewrites("rank = 0\ntorch.cuda.set_device(device=rank)", "rank = 0\ndm.set_device(rank)", gives="rank"),
        rewrites("n = torch.cuda.device_count()", "n = dm.device_count", gives="n * 0"),
        rewrites(
            "def index(rank):\n    return rank % torch.cuda.device_count()",
            "def index(rank):\n    return rank % max(dm.device_count, 1)",
            gives="index.__name__",
        ),
        rewrites(
            "rank = 0\ndevice = rank % torch.cuda.device_count()\n"
            "torch.cuda.set_device(device)\nx = torch.ones(2).to(device)",
            "rank = 0\ndevice = dm.device_at(rank % max(dm.device_count, 1))\n"
            "dm.set_device(device)\nx = torch.ones(2).to(device)",
            gives="x",
        ),
        rewrites(
            "with torch.cuda.device(0):\n    x = torch.ones(2)",
            "with dm.device_index(0):\n    x = torch.ones(2)",
            gives="x",
        ),
        rewrites(
            "here = torch.cuda.current_device()\nx = torch.ones(2).to(here)",
            "here = dm.device\nx = torch.ones(2).to(here)",
            gives="x",
        ),
        rewrites('text = f"GPU {torch.cuda.current_device()}"', 'text = f"GPU {dm.current_index}"', gives="text"),
        Reports("import torch\n\n\ndef f(g):\n    return g(torch.cuda.current_device())\n"),
        Reports("from torch.cuda import device_of\n\n\ndef f(x):\n    with device_of(x):\n        return x + 1\n"),
        Reports("import torch\n\n\ndef f(x):\n    return isinstance(x, torch.cuda.device)\n"),
        Leaves("import torch\n\nn = torch.xpu.device_count()\n", because="it is another vendor's"),
        Leaves("from torch import xpu as cuda\n\ncuda.set_device(0)\n", because="this cuda is xpu"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, and the functions handed on."""
        if not isinstance(node, ast.Call):
            yield from self._handed_on(node, module)
            return
        name = function(node.func, module)
        if name == "set_device":
            yield self._about_index(node, module, "set_device", "makes a CUDA device current, and raises without one")
        elif name == "device":
            yield self._about_index(node, module, "device_index", "makes a CUDA device current for a while")
        elif name == "device_of":
            message = "`torch.cuda.device_of` makes a tensor's CUDA device current"
            yield self.review(node, module, message, "with dm.device_index(x.device):")
        elif name == "device_count":
            yield self._count(node, module)
        elif name == "current_device":
            yield self._current(node, module)

    def _about_index(self, node: ast.Call, module: Module, method: str, does: str) -> Finding:
        name = function(node.func, module)
        given = bind(node, "device")
        message = f"`torch.cuda.{name}` {does}"
        is_context = name == "set_device" or isinstance(module.parent(node), ast.withitem)
        if not given or not is_context:
            return self.review(node, module, message, f"dm.{method}(index)", stays=name == "set_device")
        edits = called_instead(node, given["device"], f"{module.manager}.{method}", module)
        return self.rewrite(node, module, message, *edits)

    def _count(self, node: ast.Call, module: Module) -> Finding:
        text, above = f"{module.manager}.device_count", module.parent(node)
        if isinstance(above, ast.BinOp) and above.right is node and isinstance(above.op, DIVIDES):
            text = f"max({text}, 1)"
        message = "`torch.cuda.device_count()` counts CUDA devices only"
        edits = [module.replace(node, text)]
        if isinstance(above, ast.BinOp) and isinstance(above.op, ast.Mod) and _names_device(above, module):
            start, end = module.span(above)  # a number is no device where devices have none
            edits += [Edit(start, start, f"{module.manager}.device_at("), Edit(end, end, ")")]
        return self.rewrite(node, module, message, *edits)

    def _current(self, node: ast.Call, module: Module) -> Finding:
        message = "`torch.cuda.current_device()` is the number of a CUDA device, and raises without one"
        if takes(node, module) is Takes.DEVICE or _names_device(node, module):
            return self.rewrite(node, module, message, module.replace(node, module.device))
        if _is_shown(node, module):
            return self.rewrite(node, module, message, module.replace(node, f"{module.manager}.current_index"))
        return self.review(node, module, message, NUMBER, stays=True)

    def _handed_on(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        name = function(node, module)
        if is_called(node, module) or name not in ("set_device", "device_count", "device", "current_device"):
            return
        message = f"`torch.cuda.{name}` is about CUDA devices only"
        if name == "set_device":
            yield self.rewrite(node, module, message, module.replace(node, f"{module.manager}.set_device"))
        elif name == "device_count":
            text = f"(lambda: {module.manager}.device_count)"
            yield self.rewrite(node, module, message, module.replace(node, text))
        else:
            yield self.review(node, module, message, "dm.device_index(i) is the context, dm.device the device")


def _is_shown(node: ast.Call, module: Module) -> bool:
    """It is printed, compared or computed with, as a number."""
    above = module.parent(node)
    is_printed = isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id in ("print", "str")
    return is_printed or isinstance(above, SHOWN)


def _names_device(node: ast.expr, module: Module) -> bool:
    """It is assigned to a name that is used where a device is wanted, and nowhere else."""
    above = module.parent(node)
    if not isinstance(above, ast.Assign) or len(above.targets) != 1:
        return False
    target = above.targets[0]
    if isinstance(target, ast.Name):
        loads: list[ast.expr] = [use for use in module.names.uses[target.id] if isinstance(use.ctx, ast.Load)]
        is_known = values(target, module) == [node]
    else:
        loads = [use for use in module.every(ast.Attribute) if _reads(use, target)]
        is_known = isinstance(target, ast.Attribute)
    return is_known and bool(loads) and all(_wants_device(use, module) for use in loads)


def _wants_device(use: ast.expr, module: Module) -> bool:
    above = module.parent(use)
    sets = isinstance(above, ast.Call) and function(above.func, module) == "set_device"
    return sets or takes(use, module) is Takes.DEVICE


def _reads(use: ast.AST, target: ast.expr) -> TypeGuard[ast.Attribute]:
    """It is an attribute of that name, whoever's."""
    return (
        isinstance(use, ast.Attribute) and isinstance(use.ctx, ast.Load) and use.attr == getattr(target, "attr", None)
    )
