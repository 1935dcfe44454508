"""``torch.cuda.is_available()`` asks for CUDA where the question is whether there is an accelerator.

https://docs.pytorch.org/docs/stable/generated/torch.cuda.is_available.html. Without the call it is a function, and so
always true: https://github.com/eriklindernoren/PyTorch-YOLOv3/issues/35,
https://github.com/deepspeedai/DeepSpeed/issues/2661.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.facts.branches import has_other_branches
from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.facts.devices import is_available
from devicekit.codemod.facts.guards import guarded
from devicekit.codemod.facts.positions import last_name
from devicekit.codemod.facts.usage import is_told
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

ASKS = "`torch.cuda.is_available()` asks for CUDA and finds no other accelerator"
TESTS = (ast.If, ast.IfExp, ast.While, ast.Assign, ast.AnnAssign, ast.Return, ast.NamedExpr, ast.arguments, ast.Assert)
SWITCHES = re.compile(r"(?:enabled|default|pin_memory|disable|use_\w+|is_\w+)$")
VENDORS_NAME = re.compile(r"(?i:(?<![a-z])(?:trt|tensorrt|vllm|triton|xformers|flash_attn)(?![a-z]))")
VENDORS_WORD = re.compile(r"(?:CUDA|Tensorrt|NvTensorRTRTX)ExecutionProvider|cupy|tensorrt")


class IsAvailable(Rule):
    """Where it guards what only CUDA has, it stays until that is settled."""

    name = "is-available"
    visits = (ast.Call, ast.Attribute, ast.Name)
    examples = (
        rewrites(
            "if torch.cuda.is_available():\n    torch.cuda.empty_cache()",
            "if dm.is_accelerator:\n    dm.empty_cache()",
        ),
        rewrites(
            "many = 1\nuse_cuda = many > 0 and torch.cuda.is_available()",
            "many = 1\nuse_cuda = many > 0 and dm.is_accelerator",
            gives="type(use_cuda).__name__",
        ),
        rewrites(
            "workers = 2 if torch.cuda.is_available() is False else 4",
            "workers = 2 if dm.is_accelerator is False else 4",
            gives="workers > 1",
        ),
        rewrites(
            'print(f"GPU: {torch.cuda.is_available()}")',
            'print(f"GPU: {dm.is_accelerator}")',
        ),
        rewrites(
            "ready = torch.cuda.is_available() or torch.backends.mps.is_available()",
            "ready = dm.is_accelerator",
            gives="type(ready).__name__",
        ),
        Reports("import torch\n\nif torch.cuda.is_available():\n    torch.cuda.nvtx.mark('go')\n"),
        Reports(
            "import torch\n\nif not torch.cuda.is_available():\n    raise SystemExit\ng = torch.cuda.CUDAGraph()\n"
        ),
        Reports(
            "import torch\n\nif torch.cuda.is_available():\n    bits = 16\n"
            "elif torch.backends.mps.is_available():\n    bits = 32\n    name = 'mps'\nelse:\n    bits = 64\n"
        ),
        Reports(
            "import torch\n\nload_trt = True\nif not torch.cuda.is_available() and load_trt:\n    load_trt = False\n"
        ),
        Reports("import torch\n\nif not torch.cuda.is_available():\n    raise SystemExit('no GPU')\n"),
        Reports("import torch\n\n\ndef train():\n    assert torch.cuda.is_available(), 'no GPU'\n"),
        Reports("import torch\n\n\ndef read(Reader):\n    return Reader(gpu=torch.cuda.is_available())\n"),
        Reports("import torch\n\nwith_onnx = 'CUDAExecutionProvider' if torch.cuda.is_available() else None\n"),
        Reports("import torch as th\n\nwidth = 2 if th.cuda.is_available else 1\n"),
        Reports("import torch\n\n\ndef check(run):\n    return run(torch.cuda.is_available)\n"),
        Leaves("import torch\n\nif torch.xpu.is_available():\n    pass\n", because="it is another vendor's"),
        Leaves("def f(torch):\n    return torch.cuda.is_available()\n", because="this torch is handed in"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, and the function without its call."""
        if isinstance(node, ast.Call):
            if function(node.func, module) == "is_available":
                yield self._asked(node, module)
        elif function(node, module) == "is_available":
            above = module.parent(node)
            if isinstance(node.ctx, ast.Load) and not (isinstance(above, ast.Call) and above.func is node):  # type: ignore[attr-defined]
                yield self._not_called(node, module)

    def _asked(self, node: ast.Call, module: Module) -> Finding:
        outer = _whole(node, module)
        above = module.parent(outer)
        if isinstance(above, ast.Assert) and above.test is outer:
            suggestion = "remove it, or assert dm.is_accelerator where it has to be a GPU or an NPU"
            return self.review(
                node, module, "the assertion stops whoever has another accelerator", suggestion, stays=True
            )
        if isinstance(above, ast.If) and outer is not node and _stops(above.body[-1]):
            suggestion = "remove it, or ask dm.is_accelerator where it has to be a GPU or an NPU"
            return self.review(node, module, "without CUDA the program stops here", suggestion, stays=True)
        if has_other_branches(above, outer, module):
            message = f"{ASKS}, and the others have branches of their own here"
            return self.review(node, module, message, "dm.is_accelerator, after the branches for the others")
        parts = guarded(node, module)
        if any(map(_names_vendor, parts)) or _decides_with_vendor(above, module):
            message = f"{ASKS}, and what it decides about is named after CUDA"
            return self.review(node, module, message, 'dm.device.type == "cuda", or what it is on other devices')
        if isinstance(above, TESTS) or is_told(outer, module) or _is_switch(above):
            edit = module.replace(_any_of_vendors(node, module), f"{module.manager}.is_accelerator")
            return self.rewrite(node, module, ASKS, edit, guards=parts)
        suggestion = "dm.is_accelerator, where it works on every accelerator"
        return self.review(node, module, f"{ASKS}; what becomes of the answer is not known here", suggestion)

    def _not_called(self, node: ast.AST, module: Module) -> Finding:
        outer = _whole(node, module)
        above = module.parent(outer)
        if outer is not node or (isinstance(above, (ast.If, ast.IfExp, ast.While, ast.Assert)) and above.test is node):
            message = "`torch.cuda.is_available` is not called here, so it is always true"
            return self.review(node, module, message, "dm.is_accelerator")
        return self.review(node, module, f"{ASKS}; here the function is handed on", "lambda: dm.is_accelerator")


def _stops(statement: ast.stmt) -> bool:
    """It raises, or leaves the program or the test."""
    if isinstance(statement, ast.Raise):
        return True
    called = statement.value.func if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) else None
    return called is not None and last_name(called) in ("exit", "_exit", "quit", "abort", "skip", "skipTest", "fail")


def _whole(node: ast.AST, module: Module) -> ast.AST:
    """The condition that it is a part of."""
    above = module.parent(node)
    while isinstance(above, (ast.BoolOp, ast.UnaryOp)) or (isinstance(above, ast.Compare) and _with_truth(above)):
        node, above = above, module.parent(above)
    return node


def _with_truth(node: ast.Compare) -> bool:
    return all(isinstance(c, ast.Constant) and isinstance(c.value, bool) for c in node.comparators)


def _decides_with_vendor(above: ast.AST | None, module: Module) -> bool:
    """``if not torch.cuda.is_available() and load_trt:`` is about what CUDA alone can do."""
    return isinstance(above, (ast.If, ast.While)) and bool(VENDORS_NAME.search(module.code(above.test)))


def _names_vendor(part: ast.AST) -> bool:
    """``CUDAExecutionProvider`` and the like: a word of another package's that means CUDA only."""
    said = (n.value for n in ast.walk(part) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return any(VENDORS_WORD.fullmatch(word) for word in said)


def _any_of_vendors(node: ast.Call, module: Module) -> ast.AST:
    """``a.is_available() or b.is_available()``, if there is nothing else in it, is one question."""
    above = module.parent(node)
    is_any = isinstance(above, ast.BoolOp) and isinstance(above.op, ast.Or)
    return above if is_any and all(is_available(v, module) for v in above.values) else node  # type: ignore


def _is_switch(above: ast.AST | None) -> bool:
    """What it is given to is true or false, whatever the device."""
    if isinstance(above, ast.keyword):
        return bool(SWITCHES.match(above.arg or ""))
    return isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id in ("bool", "int", "any")
