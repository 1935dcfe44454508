"""``torch.cuda.OutOfMemoryError`` is what every device's allocator raises; only its name says CUDA.

It is the same class as ``torch.OutOfMemoryError`` since torch 2.5 (seen in 2.6.0 and 2.13.0).
https://docs.pytorch.org/docs/stable/generated/torch.OutOfMemoryError.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule, rewrites

ERRORS = ("CudaError", "AcceleratorError", "DeferredCudaCallError")


class CudaError(Rule):
    """One name for all devices says what is meant. CUDA's own errors come from nothing else."""

    name = "cuda-error"
    visits = (ast.Attribute, ast.Name)
    examples = (
        rewrites(
            "try:\n    x = 1\nexcept torch.cuda.OutOfMemoryError:\n    x = 2",
            "try:\n    x = 1\nexcept torch.OutOfMemoryError:\n    x = 2",
            gives="x",
        ),
        Rewrites(
            "import torch\nfrom torch.cuda import OutOfMemoryError\n\nERRORS = (OutOfMemoryError, ValueError)\n",
            "import torch\n\nERRORS = (torch.OutOfMemoryError, ValueError)\n",
            gives="ERRORS[0] is torch.cuda.OutOfMemoryError",
        ),
        Reports("import torch\n\ntry:\n    pass\nexcept torch.cuda.CudaError:\n    pass\n"),
        Leaves(
            "class OutOfMemoryError(Exception):\n    pass\n\n\nE = OutOfMemoryError\n", because="it is this file's own"
        ),
        Leaves("import torch\n\nE = torch.OutOfMemoryError\n", because="it is every device's"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Every use of the names."""
        name = function(node, module)
        if name == "OutOfMemoryError":
            message = "`torch.cuda.OutOfMemoryError` is raised by every device's allocator; its name says CUDA"
            yield self.rewrite(node, module, message, module.replace(node, f"{module.torch}.OutOfMemoryError"))
        elif name in ERRORS:
            message = f"`torch.cuda.{name}` is what CUDA raises; another device's errors are others"
            yield self.review(node, module, message, "except RuntimeError, of which all of them are kinds")
