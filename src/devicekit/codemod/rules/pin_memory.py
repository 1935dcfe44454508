"""Pinned memory is for copies to a device.

Asked of torch 2.6 and 2.13 without a device: ``DataLoader(pin_memory=True)`` warns, while
``torch.empty(..., pin_memory=True)`` raises, and so does ``x.pin_memory()``:
"Cannot access accelerator device when none is available".
https://docs.pytorch.org/docs/stable/data.html#memory-pinning
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

LOADERS = ("torch.utils.data", "torch.distributed")


class PinMemory(Rule):
    """Loaders cope by themselves; tensors have to be told whether there is a device."""

    name = "pin-memory"
    visits = (ast.Call,)
    hints = ("pin_memory",)
    examples = (
        rewrites(
            "x = torch.empty(3, pin_memory=True)",
            "x = torch.empty(3, pin_memory=dm.is_accelerator)",
            gives="x.shape == (3,)",
        ),
        Reports("from torch.utils.data import DataLoader\n\nload = DataLoader([1], pin_memory=True)\n", Kind.HARMLESS),
        Reports("def load(make, gpu):\n    return make(pin_memory=gpu)\n", Kind.HARMLESS),
        Reports("def move(x, device):\n    return x.pin_memory().to(device, non_blocking=True)\n"),
        Reports(
            "def move(x, kind):\n    return x.pin_memory() if kind == 'cuda' else x\n",
            Kind.HARMLESS,
        ),
        Leaves("def load(make):\n    return make(pin_memory=False)\n", because="nothing is pinned"),
        Leaves("def is_pinned(loader):\n    return loader.pin_memory\n", because="nothing is called"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The option, and the method."""
        assert isinstance(node, ast.Call)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "pin_memory" and module.name(node.func) is None:
            said = "`.pin_memory()` raises where there is no accelerator"
            if _asks_for_cuda(node, module):
                yield dataclasses.replace(self.harmless(node, module, f"{said}; it runs on CUDA only"), stays=True)
            else:
                yield self.review(node, module, said, "x.pin_memory() if dm.is_accelerator else x", stays=True)
        value = next((k.value for k in node.keywords if k.arg == "pin_memory"), None)
        if value is None or (isinstance(value, ast.Constant) and not value.value):
            return
        name = module.name(node.func) or ""
        if isinstance(value, ast.Constant) and name.startswith("torch.") and not name.startswith(LOADERS):
            said = f"`{name}` raises with `pin_memory=True` where there is no accelerator"
            yield self.rewrite(node, module, said, module.replace(value, f"{module.manager}.is_accelerator"))
        else:
            yield self.harmless(node, module, "without an accelerator `pin_memory=True` pins nothing, and warns")


def _asks_for_cuda(node: ast.AST, module: Module) -> bool:
    """A condition around it does."""
    child = node
    for above in module.parents(node):
        if isinstance(above, (ast.If, ast.IfExp)) and child is not above.test and "cuda" in module.code(above.test):
            return True
        child = above
    return False
