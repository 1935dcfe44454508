"""float64 is what Apple's and Ascend's devices do not compute in.

MPS raises "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"; Ascend's AI core
has none (MPSGuardImpl.h of torch 2.13; torch_npu 2.13).
https://docs.pytorch.org/docs/stable/notes/mps.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

NAMES = ("torch.float64", "torch.double")
DOUBLE = "torch.cuda.DoubleTensor"
HOW = "float32; or compute it on the CPU, and move the result as float32"


class Float64(Rule):
    """Said where the same call, or the next one, names a device that may not be the CPU."""

    name = "float64"
    visits = (ast.Call,)
    hints = ("float64", "double", "DoubleTensor")
    examples = (
        Reports("import torch\n\n\ndef f(device):\n    return torch.zeros(3, dtype=torch.float64, device=device)\n"),
        Reports("import torch\n\n\ndef f(x, device):\n    return x.to(device, torch.double)\n"),
        Reports("def f(x, device):\n    return x.double().to(device)\n"),
        Reports(
            "import torch\n\nx = torch.ones(3, dtype=torch.float64).cuda()\ny = x.to(torch.double).cuda()\n", count=2
        ),
        Reports("import torch\n\ntorch.set_default_dtype(torch.float64)\n"),
        Reports('import torch\n\nx = torch.zeros(3, dtype=torch.float64, device="cuda")\n'),
        Reports("import torch\n\nx = torch.cuda.DoubleTensor(3)\ny = x.type(torch.cuda.DoubleTensor)\n", count=2),
        Leaves("import torch\n\nx = torch.zeros(3, dtype=torch.float64)\n", because="it is on the CPU"),
        Leaves(
            "import torch\n\n\ndef f(x, device):\n    return torch.from_numpy(x).to(device).float()\n",
            because="what x is made of is not known here",
        ),
        Leaves(
            "import torch\n\nx = torch.zeros(3, dtype=torch.float64, device='cpu').double()\n",
            because="it says so",
        ),
        Leaves("import numpy as np\n\nx = np.zeros(3, dtype=np.float64)\n", because="NumPy has it everywhere"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls with both, and chains of two."""
        assert isinstance(node, ast.Call)
        given = [*node.args, *(k.value for k in node.keywords)]
        wants = any(module.name(value) in NAMES for value in given)
        method = node.func.attr if isinstance(node.func, ast.Attribute) and module.name(node.func) is None else ""
        inner = node.func.value if isinstance(node.func, ast.Attribute) else None
        in_one = wants and (_device_keyword(node) or (method == "to" and _device_first(node, module)))
        in_two = (method == "double" and _moves(inner, module)) or (_moves(node, module) and _doubles(inner, module))
        typed = module.name(node.func) == DOUBLE or any(_is_double(value, module) for value in given)
        if in_one or in_two or typed or (wants and module.name(node.func) == "torch.set_default_dtype"):
            yield self.review(node, module, "MPS and NPU devices have no float64, and raise", HOW, besides=True)


def _is_double(node: ast.AST, module: Module) -> bool:
    return module.name(node) == DOUBLE or (isinstance(node, ast.Constant) and node.value == DOUBLE)


def _device_keyword(call: ast.Call) -> bool:
    return any(k.arg == "device" and not _is_cpu(k.value) for k in call.keywords)


def _device_first(call: ast.Call, module: Module) -> bool:
    first = call.args[0] if len(call.args) > 1 else None
    return first is not None and module.name(first) not in NAMES and not _is_cpu(first)


def _moves(node: ast.AST | None, module: Module) -> bool:
    """``.cuda()``, or ``.to`` of something that is called a device."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    where = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "device")]
    names_one = any("device" in module.code(value) or "cuda" in module.code(value) for value in where)
    return node.func.attr == "cuda" or (node.func.attr == "to" and names_one)


def _doubles(node: ast.AST | None, module: Module) -> bool:
    """``x.double()``, or what is given the dtype and no device."""
    if not isinstance(node, ast.Call) or _device_keyword(node):
        return False
    wants = any(module.name(value) in NAMES for value in [*node.args[:1], *(k.value for k in node.keywords)])
    return wants or (isinstance(node.func, ast.Attribute) and node.func.attr == "double")


def _is_cpu(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and node.args:
        node = node.args[0]
    return isinstance(node, ast.Constant) and node.value in ("cpu", "meta", None)
