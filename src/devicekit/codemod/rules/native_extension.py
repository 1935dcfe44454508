"""Extensions that nvcc compiles.

https://docs.pytorch.org/docs/stable/cpp_extension.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule
from devicekit.codemod.rules.vendor_package import may_be_absent

LOADERS = ("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline")
CUDA_OPTIONS = {"cuda_sources", "extra_cuda_cflags", "with_cuda"}
PLAIN = "the same in plain torch, chosen where the extension is not there"


class NativeExtension(Rule):
    """CUDA sources need nvcc and a CUDA device; of C++ alone the reader sees whether it calls CUDA."""

    name = "native-extension"
    visits = (ast.Call, ast.Import, ast.ImportFrom)
    hints = ("cpp_extension", "CUDAExtension", "CppExtension", "_C")
    examples = (
        Reports(
            "from torch.utils.cpp_extension import load\n\nops = load(name='ops', sources=['ops.cpp', 'ops.cu'])\n",
            Kind.CANNOT,
        ),
        Reports(
            "from torch.utils import cpp_extension\n\nops = [cpp_extension.CUDAExtension('ops', ['ops.cu'])]\n",
            Kind.CANNOT,
        ),
        Reports("from torch.utils.cpp_extension import load\n\nops = load('ops', ['ops.cpp'])\n"),
        Reports("from package import _C\n", Kind.CANNOT),
        Reports("try:\n    from . import _C\nexcept ImportError:\n    _C = None\n"),
        Leaves("from json import load\n\nops = load('ops.cu')\n", because="it is another load"),
        Leaves("from torch import _C\n", because="it is torch's own"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that build, and imports of what setup.py has built."""
        if isinstance(node, ast.Call):
            yield from self._build(node, module)
        elif _imports_built(node):
            said = "`_C` is compiled code, which its setup builds for CUDA"
            if may_be_absent(node, "_C", module):
                yield self.review(node, module, f"{said}; its absence is caught", "see that it goes on without")
            else:
                yield self.cannot(node, module, said, PLAIN)

    def _build(self, call: ast.Call, module: Module) -> Iterator[Finding]:
        name = module.name(call.func) or ""
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called == "CUDAExtension" or (name in LOADERS and not _is_cpp_only(call)):
            yield self.cannot(call, module, "this compiles CUDA sources", PLAIN)
        elif called == "CppExtension" or name in LOADERS:
            yield self.review(call, module, "this compiles C++ for the host, which may call CUDA", "read its sources")


def _imports_built(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name == "_C" or alias.name.endswith("._C") for alias in node.names)
    from_torch = isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("torch")
    return isinstance(node, ast.ImportFrom) and not from_torch and any(alias.name == "_C" for alias in node.names)


def _is_cpp_only(call: ast.Call) -> bool:
    """Every source is named in the call, and none is for nvcc."""
    if CUDA_OPTIONS & {k.arg for k in call.keywords}:
        return False
    given = call.args[1] if len(call.args) > 1 else next((k.value for k in call.keywords if k.arg == "sources"), None)
    names = given.elts if isinstance(given, (ast.List, ast.Tuple)) else [given]
    return all(isinstance(n, ast.Constant) and str(n.value).endswith((".cpp", ".cc", ".c")) for n in names)
