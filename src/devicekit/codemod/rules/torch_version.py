"""``torch.version.cuda`` and ``torch.version.hip`` tell what torch was built with, None for all others.

https://docs.pytorch.org/docs/stable/notes/hip.html#checking-for-hip
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.usage import is_told
from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

VERSIONS = ("torch.version.cuda", "torch.version.hip")
HARMLESS = ("print", "str", "repr", "bool", "format")
TEXTS = ("str", "repr", "format")


class TorchVersion(Rule):
    """A build with CUDA says nothing of the machine, and what takes None for a text raises."""

    name = "torch-version"
    visits = (ast.Attribute, ast.Name)
    hints = ("version",)
    examples = (
        Reports("import torch\n\nis_rocm = torch.version.hip is not None\n"),
        Reports("import torch as th\n\nmajor = th.version.cuda.split('.')[0]\n"),
        Reports("from torch.version import cuda\n\nhome = f'/usr/local/cuda-{cuda}'\n"),
        Reports("import torch\n\nprint(f'torch {torch.__version__} for CUDA {torch.version.cuda}')\n", Kind.HARMLESS),
        Reports("from torch.version import cuda\n\nprint('built for', str(cuda))\n", Kind.HARMLESS),
        Leaves("import torch\n\nprint(torch.version.git_version)\n", because="it is torch's own version"),
        Leaves("def f(torch):\n    return torch.version.cuda\n", because="this torch is handed in"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Where one of the two is read."""
        if module.name(node) in VERSIONS and isinstance(getattr(node, "ctx", None), ast.Load):
            if _is_shown(node, module):
                yield self.harmless(node, module, "this tells what torch was built with, and is only shown")
                return
            which = "ROCm" if str(module.name(node)).endswith("hip") else "CUDA"
            said = f"this is None where torch was not built for {which}, and says nothing of the machine"
            how = 'dm.backend, which is "cuda", "rocm" or another one; dm.report() for versions'
            yield self.review(node, module, said, how, stays=_raises_for_none(node, module))


def _is_shown(node: ast.AST, module: Module) -> bool:
    """It is printed or logged, by itself or in a text."""
    above = module.parent(node)
    is_text = isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id in TEXTS
    is_sum = isinstance(above, ast.BinOp) and isinstance(above.op, ast.Add)
    if isinstance(above, (ast.FormattedValue, ast.JoinedStr)) or is_text or is_sum:
        return above is not None and _is_shown(above, module)
    return is_told(node, module)


def _raises_for_none(node: ast.AST, module: Module) -> bool:
    above = module.parent(node)
    if isinstance(above, ast.Call):
        return not (isinstance(above.func, ast.Name) and above.func.id in HARMLESS) and node in above.args
    return isinstance(above, (ast.Attribute, ast.Subscript))
