"""Importing from torch.cuda works without CUDA; using what is imported is another matter.

Asked of torch 2.6 and 2.13: every public module of torch.cuda imports on a machine without a GPU, and ``nccl``'s and
``nvtx``'s functions raise when they are called (``torch._C`` has no ``_nccl_version``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.imports import imported_from_cuda
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule

RAISING = {
    "nccl": "torch.distributed, with dm.distributed_backend",
    "nvtx": "torch.profiler.record_function",
    "jiterator": "plain tensor operations, or torch.compile",
    "tunable": "",
    "gds": "",
    "green_contexts": "",
}


class ImportTorchCuda(Rule):
    """An import goes with its last use; of modules that are CUDA's alone the uses have to be looked at."""

    name = "import-torch-cuda"
    visits = (ast.Import, ast.ImportFrom)
    hints = ("cuda",)
    examples = (
        Rewrites(
            "from torch.cuda.amp import GradScaler, custom_fwd\n\nscaler = GradScaler(enabled=False)\n",
            "import devicekit\nimport torch\nfrom torch.cuda.amp import custom_fwd\n\n"
            "dm = devicekit.DeviceManager.current()\n\n"
            "scaler = torch.amp.GradScaler(dm.device.type, enabled=False)\n",
            gives="scaler.is_enabled()",
        ),
        Rewrites(
            "import torch\nimport torch.cuda.amp as amp  # noqa: F401\n\nscaler = amp.GradScaler(enabled=False)\n",
            "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n"
            "scaler = torch.amp.GradScaler(dm.device.type, enabled=False)\n",
            gives="scaler.is_enabled()",
        ),
        Leaves("from torch import nn\n", because="it is not torch.cuda's"),
        Leaves("from .cuda import amp\nfrom numba import cuda\n", because="these are other packages' modules"),
        Reports("import torch.cuda\n", Kind.HARMLESS),
        Reports("from torch.cuda.amp import autocast\n\n__all__ = ['autocast']\n", Kind.HARMLESS),
        Reports("import torch.cuda.nccl as nccl\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Whether an import goes is settled with the file's other findings."""
        names = imported_from_cuda(node)
        if not names:
            return
        parts = {part for name in names for part in name.split(".")[2:3]}
        for part in sorted(parts & set(RAISING)):
            instead = RAISING[part] or "guard its uses"
            yield self.review(node, module, f"torch.cuda.{part} is CUDA's alone: what is used of it raises", instead)
        if not parts & set(RAISING):
            yield self.harmless(node, module, "importing from torch.cuda works without CUDA")
