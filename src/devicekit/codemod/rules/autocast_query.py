"""``torch.is_autocast_enabled()`` and ``torch.get_autocast_gpu_dtype()`` ask about CUDA's autocast.

Both take a device's type since torch 2.4. The dtype of a CPU's autocast is bfloat16 by default, CUDA's float16 (asked
of torch 2.6 and 2.13), so it may be asked for another device only where that one's autocast is known to be on.
https://docs.pytorch.org/docs/stable/amp.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import text_of_cuda
from devicekit.codemod.facts.mixed_precision import switches_on_elsewhere
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

ENABLED, DTYPE, GPU_DTYPE = "torch.is_autocast_enabled", "torch.get_autocast_dtype", "torch.get_autocast_gpu_dtype"
SETTERS = ("torch.set_autocast_gpu_dtype", "torch.set_autocast_enabled", "torch.set_autocast_dtype")


class AutocastQuery(Rule):
    """What is asked about must be the device that autocast is switched on for."""

    name = "autocast-query"
    visits = (ast.Call,)
    hints = ("autocast",)
    examples = (
        rewrites(
            "x = torch.ones(2)\nif torch.is_autocast_enabled():\n    x = x.to(torch.get_autocast_gpu_dtype())",
            "x = torch.ones(2)\nif torch.is_autocast_enabled(dm.device.type):\n"
            "    x = x.to(torch.get_autocast_dtype(dm.device.type))",
            gives="x.dtype",
        ),
        rewrites(
            'd = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32',
            "d = torch.get_autocast_dtype(dm.device.type) if torch.is_autocast_enabled(dm.device.type) else "
            "torch.float32",
            gives="d",
        ),
        Leaves("import torch\n\non = torch.is_autocast_enabled('cpu')\n", because="it asks about the CPU"),
        Leaves("def f(torch):\n    return torch.is_autocast_enabled()\n", because="this torch is handed in"),
        Reports("import torch\n\ndtype = torch.get_autocast_gpu_dtype()\n"),
        Reports("import torch\n\ntorch.set_autocast_gpu_dtype(torch.bfloat16)\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that ask, or set, without another device."""
        assert isinstance(node, ast.Call)
        name = module.name(node.func)
        if name not in (ENABLED, DTYPE, GPU_DTYPE, *SETTERS) or node.keywords:
            return
        first = node.args[0] if node.args else None
        takes_kind = name in (ENABLED, DTYPE, SETTERS[-1]) or len(node.args) > 1  # set_autocast_enabled may go without
        if takes_kind and first is not None and text_of_cuda(first, module) is None:
            return
        if name in SETTERS:
            how = "torch.set_autocast_dtype(dm.device.type, ...), if the CPU's may be set as well"
            yield self.review(node, module, "this sets CUDA's autocast, and no other device's", how)
        elif switches_on_elsewhere(module) or (name != ENABLED and not _is_guarded(node, module)):
            said = "this asks about CUDA's autocast; on a CPU the rewritten question may have another answer"
            yield self.review(node, module, said, f"{name}(dm.device.type)".replace("_gpu", ""))
        else:
            kind = f"{module.device}.type"
            edits = [module.replace(first, kind) if first is not None else module.prepend_argument(node, kind)]
            if name == GPU_DTYPE and isinstance(node.func, ast.Attribute):
                edits.append(module.rename(node.func, "get_autocast_dtype"))
            elif name == GPU_DTYPE:
                edits.append(module.replace(node.func, f"{module.torch}.get_autocast_dtype"))
            yield self.rewrite(node, module, "this asks about CUDA's autocast, and no other device's", *edits)


def _is_guarded(node: ast.AST, module: Module) -> bool:
    """It is reached only where autocast is on."""
    child = node
    for above in module.parents(node):
        tests: list[ast.expr] = []
        if (isinstance(above, ast.If) and child in above.body) or (
            isinstance(above, ast.IfExp) and child is above.body
        ):
            tests = [above.test]
        elif isinstance(above, ast.IfExp) and child is above.orelse and isinstance(above.test, ast.UnaryOp):
            tests = [above.test.operand] if isinstance(above.test.op, ast.Not) else []
        elif isinstance(above, ast.BoolOp) and isinstance(above.op, ast.And):
            tests = above.values[: above.values.index(child)]  # type: ignore[arg-type]
        if any(_asks(test, module) for test in tests):
            return True
        if isinstance(above, (ast.FunctionDef, ast.Lambda)):
            return False
        child = above
    return False


def _asks(test: ast.expr, module: Module) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(_asks(value, module) for value in test.values)
    return module.calls(test, ENABLED)
