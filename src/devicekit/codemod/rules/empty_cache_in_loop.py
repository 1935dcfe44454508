"""``empty_cache()`` in a loop hands memory back only to ask for it again.

It does not make more memory available to torch; every call waits for the device and makes the next allocations slow.
https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

NAMES = ("torch.cuda.empty_cache", "torch.xpu.empty_cache", "torch.mps.empty_cache", "torch.accelerator.empty_cache")
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
    return module.in_loop(node) and not handled
