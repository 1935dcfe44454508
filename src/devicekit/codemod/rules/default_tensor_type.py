"""``torch.set_default_tensor_type(torch.cuda.HalfTensor)`` sets a dtype and a CUDA device at once.

It is deprecated since torch 2.1; what replaces it are ``set_default_dtype`` and ``set_default_device``.
https://docs.pytorch.org/docs/stable/generated/torch.set_default_tensor_type.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

SETS = "torch.set_default_tensor_type"
DTYPES = {"Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64"}
_TYPE = re.compile(r"torch\.(cuda\.)?(Half|BFloat16|Float|Double)Tensor$")
MESSAGE = "the default tensor type is CUDA's, which is deprecated as well"


class DefaultTensorType(Rule):
    """There is a tensor type for CUDA and for the CPU, and for no other device."""

    name = "default-tensor-type"
    visits = (ast.Call,)
    hints = ("cuda",)
    examples = (
        rewrites(
            "torch.set_default_tensor_type(torch.cuda.FloatTensor)\nx = torch.ones(2)\ntorch.set_default_device(None)",
            "torch.set_default_dtype(torch.float32)\ntorch.set_default_device(dm.device)\nx = torch.ones(2)\n"
            "torch.set_default_device(None)",
            gives="x.sum()",
        ),
        rewrites(
            "def f(gpu):\n    if gpu:\n        torch.set_default_tensor_type('torch.cuda.FloatTensor')  # all\n"
            "    else:\n        torch.set_default_tensor_type('torch.FloatTensor')\n\n\nf(False)\nx = torch.ones(2)",
            "def f(gpu):\n    if gpu:\n        torch.set_default_dtype(torch.float32)\n"
            "        torch.set_default_device(dm.device)  # all\n    else:\n"
            "        torch.set_default_dtype(torch.float32)\n        torch.set_default_device('cpu')\n\n\n"
            "f(False)\nx = torch.ones(2)",
            gives="(x.sum(), torch.set_default_device(None))",
        ),
        Leaves("import torch\n\ntorch.set_default_tensor_type(torch.DoubleTensor)\n", because="it is the CPU's alone"),
        Reports(
            "import torch\n\n\ndef f(kind):\n    torch.set_default_tensor_type(torch.cuda.HalfTensor)\n"
            "    torch.set_default_tensor_type(kind)\n",
            count=2,
        ),
        Reports(
            "import torch\n\n\ndef f():\n    torch.set_default_tensor_type(torch.cuda.HalfTensor)\n"
            "    return torch.Tensor(3)\n"
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Its calls, in files that set a CUDA type."""
        assert isinstance(node, ast.Call)
        if module.name(node.func) != SETS:
            return
        found = _type(node, module)
        if not _sets_cuda(module):
            return
        problem = _problem(node, module)
        if found is None or problem:
            two = _two(found or ("float32", False), module, "; ")
            yield self.review(node, module, f"{MESSAGE}; {problem}", two, stays=found is not None and found[1])
            return
        start = module.span(node)[0]
        before = module.text[module.start_of_line(module.line_at(start)) : start]
        between = "; " if before.strip() else f"{_newline(module)}{before}"
        yield self.rewrite(node, module, MESSAGE, module.replace(node, _two(found, module, between)))


def _type(call: ast.Call, module: Module) -> tuple[str, bool] | None:
    """The dtype, and whether it is CUDA's."""
    given = call.args[0] if len(call.args) == 1 and not call.keywords else None
    said = given.value if isinstance(given, ast.Constant) else module.name(given)
    found = _TYPE.match(said) if isinstance(said, str) else None
    return (DTYPES[found[2]], bool(found[1])) if found else None


def _calls(module: Module) -> list[ast.Call]:
    return [n for n in module.every(ast.Call) if isinstance(n, ast.Call) and module.name(n.func) == SETS]


def _sets_cuda(module: Module) -> bool:
    return any(found[1] for found in (_type(call, module) for call in _calls(module)) if found)


def _problem(node: ast.Call, module: Module) -> str:
    """What stands against two statements in its place."""
    if not isinstance(module.parent(node), ast.Expr):
        return "it is no statement of its own"
    if any(_type(call, module) is None for call in _calls(module)):
        return "a call here sets a type that is not in the text, and would no longer bring the CPU back"
    if any(isinstance(n, ast.Call) and module.name(n.func) == "torch.Tensor" for n in module.every(ast.Call)):
        return "`torch.Tensor(...)` follows it, and does not follow the default device"
    return ""


def _two(found: tuple[str, bool], module: Module, between: str) -> str:
    place = module.device if found[1] else "'cpu'"
    torch = module.torch
    return f"{torch}.set_default_dtype({torch}.{found[0]}){between}{torch}.set_default_device({place})"


def _newline(module: Module) -> str:
    return "\r\n" if "\r\n" in module.text else "\n"
