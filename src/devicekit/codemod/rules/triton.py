"""Triton kernels are programs for a GPU.

Triton compiles for NVIDIA, AMD and Intel GPUs; on a CPU, on Apple's and on Ascend's devices its wheels have no driver.
https://triton-lang.org/main/getting-started/installation.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule


class Triton(Rule):
    """Nothing that a rewrite could put in its place: it takes a second implementation, in plain torch."""

    name = "triton"
    visits = (ast.FunctionDef,)
    hints = ("triton",)
    examples = (
        Reports("import triton\n\n\n@triton.jit\ndef add(x, y):\n    pass\n", Kind.CANNOT),
        Reports(
            "import triton as tr\n\n\n@tr.autotune(configs=[], key=[])\n@tr.jit(debug=True)\ndef add(x):\n    pass\n",
            Kind.CANNOT,
        ),
        Reports(
            "try:\n    import triton\nexcept ImportError:\n    from own import triton\n\n\n@triton.jit\ndef add(x):\n"
            "    pass\n",
            Kind.CANNOT,
        ),
        Leaves("import torch\n\n\n@torch.jit.script\ndef add(x: int):\n    pass\n", because="it is torch's jit"),
        Leaves("def run(triton):\n    @triton.jit\n    def add(x):\n        pass\n", because="this one is handed in"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Functions with one of Triton's decorators, each once."""
        assert isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if any(name.startswith("triton.") for name in module.names.possible(called)):
                said = f"`{node.name}` is a Triton kernel, which needs a GPU that Triton compiles for"
                yield self.cannot(node, module, said, "keep it behind a test for Triton, with plain torch besides")
                return
