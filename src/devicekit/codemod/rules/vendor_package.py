"""Packages that were built for CUDA.

They do not install, or do not import, where there is no CUDA; a few of them have other vendors' builds.
Which ones: the imports counted in public model repositories.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

ATTENTION = "torch.nn.functional.scaled_dot_product_attention"
PLAIN = "the same in plain torch, behind a test for the package"
BUILDER = "torch.utils.cpp_extension"
FOLDERS = ("triton", "deepspeed", "tensorrt", "apex", "cupy")
"""What others call a folder of theirs, too."""
PACKAGES = {
    "flash_attn": ATTENTION,
    "flash_attn_interface": ATTENTION,
    "sageattention": ATTENTION,
    "xformers": ATTENTION,
    "apex": "torch.amp and torch.optim, which have the same",
    "bitsandbytes": "torch.optim; a quantization that the device computes",
    "deepspeed": "torch.distributed.fsdp; or a build of DeepSpeed for the device",
    "pynvml": "dm.report() and dm.memory_stats()",
    "cupy": "torch tensors, or NumPy",
    "tensorrt": "the model itself, in torch",
    "torch_tensorrt": "torch.compile",
    BUILDER: "",
} | dict.fromkeys(
    (
        "triton", "pycuda", "numba.cuda", "transformer_engine", "mamba_ssm", "causal_conv1d", "auto_gptq",
        "tinycudann", "nvdiffrast", "spconv",
    ),
    PLAIN,
) | {"pytorch3d": "compute on the CPU where the device is not CUDA"}  # fmt: skip
ELSEWHERE = ("deepspeed", "pytorch3d")
"""They have builds, or parts, for other devices."""
SAID = {
    "triton": "compiles kernels for GPUs of NVIDIA, AMD and Intel only",
    "deepspeed": "needs a build for the device",
    "pytorch3d": "computes on CUDA, or on the CPU",
}
ABSENT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


class VendorPackage(Rule):
    """No rewrite can replace a package; where its absence is caught, the reader sees whether all is well without."""

    name = "vendor-package"
    visits = (ast.Import, ast.ImportFrom)
    hints = tuple(name.rpartition(".")[2] for name in PACKAGES)
    examples = (
        Reports("import flash_attn\n", Kind.CANNOT),
        Reports("from numba import cuda\n", Kind.CANNOT),
        Reports(
            "try:\n    import cupy\nexcept ImportError as exc:\n    raise RuntimeError('no cupy') from exc\n",
            Kind.CANNOT,
        ),
        Reports("import os, triton.language as tl\n", Kind.CANNOT),
        Reports("def train(x):\n    import deepspeed\n\n    return deepspeed.initialize(model=x)\n"),
        Reports("from importlib.util import find_spec\n\nif find_spec('flash_attn'):\n    import flash_attn\n"),
        Reports("import torch\n\nif torch.cuda.is_available():\n    import apex\n", Kind.CANNOT),
        Reports("try:\n    import xformers.ops\nexcept ImportError:\n    xformers = None\n"),
        Reports("from torch.utils.cpp_extension import load\n", Kind.HARMLESS),
        Reports(
            "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import cupy\n",
            Kind.HARMLESS,
        ),
        Leaves("from .apex import amp\nfrom . import triton\n", because="they are modules of this package"),
        Leaves("import tritonclient\nfrom numba import njit\n", because="these are others"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Statements, each once."""
        package = next((p for name in _imported(node) for p in PACKAGES if name == p or name.startswith(f"{p}.")), None)
        if package is None:
            return
        if package in pathlib.PurePath(module.file).parts and package not in FOLDERS:
            return  # the file is the package's own
        if package == BUILDER:
            said = f"{package} imports without CUDA as well; what it builds is told where it is built"
            yield self.harmless(node, module, said)
            return
        said = f"{package} {SAID.get(package, 'is made for CUDA')}"
        caught = may_be_absent(node, package, module)
        if caught is None:
            yield self.harmless(node, module, f"{said}, and imported for type checkers only")
        elif caught or package in ELSEWHERE:
            how = f"see that it goes on without: {PACKAGES[package]}" if caught else PACKAGES[package]
            yield self.review(node, module, f"{said}; its absence is provided for" if caught else said, how)
        else:
            yield self.cannot(node, module, said, PACKAGES[package])


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def may_be_absent(node: ast.AST, package: str, module: Module) -> bool | None:
    """The file goes on if the import fails, or asks for the package by name first; None: it is not run at all."""
    child = node
    for above in module.parents(node):
        if isinstance(above, ast.Try) and child in above.body and any(_catches(h) for h in above.handlers):
            return True
        if isinstance(above, ast.If) and child in above.body:
            test = ast.unparse(above.test)
            if "TYPE_CHECKING" in test:
                return None
            if (
                package in test or package in test.lower()
            ):  # is_flash_attn_available(), HAS_TRITON, find_spec("xformers")
                return True
        child = above
    return False


def _catches(handler: ast.ExceptHandler) -> bool:
    if isinstance(handler.body[-1], ast.Raise):
        return False  # it says so in other words
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in ABSENT for n in ast.walk(handler.type))
