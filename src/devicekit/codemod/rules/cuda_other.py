"""Whatever else of ``torch.cuda`` a file uses.

https://docs.pytorch.org/docs/stable/cuda.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

TEXT = re.compile(r"torch\.cuda(?:\.\w+)+")
GUARD = 'keep it under `if dm.device.type == "cuda":`, or find what means the same everywhere'


class CudaOther(Rule):
    """There is no general counterpart. A name that may or may not be torch's is told here as well."""

    name = "cuda-other"
    visits = (ast.Attribute, ast.Name, ast.Constant)
    examples = (
        Reports("import torch\n\n\ndef load():\n    return torch.cuda.utilization()\n"),
        Reports("import torch\n\nruntime = torch.cuda\n"),
        Reports("def test(patch):\n    with patch('torch.cuda.get_device_capability'):\n        pass\n"),
        Reports(
            "try:\n    import torch\nexcept ImportError:\n    import numpy as torch\n\n\ntorch.cuda.empty_cache()\n"
        ),
        Leaves("import torch\n\nv = torch.version.cuda\n", because="it is no part of torch.cuda"),
        Leaves("from numba import cuda\n\nkernel = cuda.jit\n", because="this is another cuda"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The longest name that is known, and its text; nothing where another rule speaks of the place."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and TEXT.fullmatch(node.value):
                message = f"{node.value!r} is the name of something that is for CUDA only"
                yield self.review(node, module, message, GUARD, residual=True)
            return
        if isinstance(module.parent(node), ast.Attribute):
            return
        name = module.name(node)
        if name is None:
            yield from self._perhaps(node, module)
        elif name == "torch.cuda" or name.startswith("torch.cuda."):
            stored = not isinstance(node.ctx, ast.Load)  # type: ignore[attr-defined]
            message = f"`{name}` is replaced here" if stored else f"`{name}` is for CUDA only"
            yield self.review(node, module, message, GUARD, stays=not stored, residual=True)

    def _perhaps(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        meant = sorted(m for m in module.names.possible(node) if m.startswith("torch.cuda."))
        if meant:
            message = f"`{module.code(node)}` may be `{meant[0]}` or something else: several things give it its name"
            yield self.review(node, module, message, "give each its own name, then migrate again", residual=True)
