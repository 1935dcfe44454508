"""``empty_cache()`` in a loop hands memory back only to ask for it again.

It does not make more memory available to torch; every call waits for the device and makes the next allocations slow.
https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.facts.positions import last_name
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import LOOPS, Module
from devicekit.codemod.rule import Leaves, Reports, Rule

NAMES = ("torch.cuda.empty_cache", "torch.xpu.empty_cache", "torch.mps.empty_cache", "torch.accelerator.empty_cache")
ASKS = re.compile(r"(?:raw_|user_|get_|read_)?input$|(?:parse_|get_|ask_|read_)?prompts?$|ask$|readline$")
HOW = "leave it out; where memory is short call it once, before the loop, or when an allocation has failed"


class EmptyCacheInLoop(Rule):
    """Only another program, or another allocator, gains by it."""

    name = "empty-cache-in-loop"
    visits = (ast.Call,)
    hints = ("empty_cache",)
    examples = (
        Reports("import torch\n\nfor _ in range(3):\n    torch.cuda.empty_cache()\n"),
        Reports(
            "import devicekit\n\nmanager = devicekit.DeviceManager.current()\nwhile True:\n    manager.empty_cache()\n"
        ),
        Leaves("import torch\n\ntorch.cuda.empty_cache()\n", because="it is called once"),
        Leaves(
            "import torch\n\nfor _ in range(3):\n    def clean():\n        torch.cuda.empty_cache()\n",
            because="the loop does not call it",
        ),
        Leaves(
            "import torch\n\nfor _ in range(3):\n    try:\n        pass\n    except RuntimeError:\n"
            "        torch.cuda.empty_cache()\n",
            because="it is called when something has failed",
        ),
        Leaves(
            "import gc\nimport torch\n\n\ndef swap(parts, offload):\n    for part in parts:\n        if offload:\n"
            "            part.model = part.model.cpu()\n            gc.collect()\n"
            "            torch.cuda.empty_cache()\n",
            because="memory has become free just before",
        ),
        Leaves(
            "import torch\n\n\ndef talk(answer):\n    while True:\n        answer(input('> '))\n"
            "        torch.cuda.empty_cache()\n",
            because="a person is waited for",
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that a loop of their own function repeats, other than in what handles an error."""
        assert isinstance(node, ast.Call)
        manager = module.existing_manager
        is_managers = manager is not None and module.code(node.func) == f"{manager}.empty_cache"
        if (is_managers or module.name(node.func) in NAMES) and _is_repeated(node, module):
            said = "`empty_cache()` in a loop gives memory back that the next round allocates again"
            yield self.review(node, module, said, HOW, besides=True)


def _is_repeated(node: ast.AST, module: Module) -> bool:
    handled = any(isinstance(above, ast.ExceptHandler) for above in module.parents(node))
    return module.in_loop(node) and not handled and not _asks_somebody(node, module) and not _frees(node, module)


def _asks_somebody(node: ast.AST, module: Module) -> bool:
    """A round of the innermost loop waits for what a person types."""
    loop = next(above for above in module.parents(node) if isinstance(above, LOOPS))
    calls = (part for part in ast.walk(loop) if isinstance(part, ast.Call))
    return isinstance(loop, ast.While) and any(ASKS.match(last_name(call.func)) for call in calls)


def _frees(node: ast.AST, module: Module) -> bool:
    """What runs just before deletes something, or moves it off the device."""
    before = _before(module.statement(node), module)
    while isinstance(before, ast.Expr) and module.calls(before.value, "gc.collect"):
        before = _before(before, module)
    if isinstance(before, ast.Delete):
        return True
    moved = before.value if isinstance(before, (ast.Assign, ast.Expr)) else None
    return any(_is_off_device(part) for part in (moved.elts if isinstance(moved, ast.Tuple) else [moved]))


def _before(statement: ast.stmt, module: Module) -> ast.stmt | None:
    """The statement before it, or before the `if` that it begins."""
    before, above = module.neighbour(statement, -1), module.parent(statement)
    begins = isinstance(above, ast.If) and statement is above.body[0]
    return _before(above, module) if begins and isinstance(above, ast.If) else before


def _is_off_device(node: ast.AST | None) -> bool:
    """``x.cpu()``, ``x.to("cpu")``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    where = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "device")]
    to_cpu = any(isinstance(place, ast.Constant) and place.value == "cpu" for place in where)
    return node.func.attr == "cpu" or (node.func.attr == "to" and to_cpu)
