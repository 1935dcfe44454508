"""``CUDA_VISIBLE_DEVICES`` chooses NVIDIA's devices, and AMD's where nothing else does.

Each vendor's runtime reads its own variable: HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES (AMD), ZE_AFFINITY_MASK
(Intel), ASCEND_RT_VISIBLE_DEVICES (Ascend); it is read once, when the runtime starts.
https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

VISIBLE = "CUDA_VISIBLE_DEVICES"
OTHERS = "HIP_VISIBLE_DEVICES, ZE_AFFINITY_MASK, ASCEND_RT_VISIBLE_DEVICES"
READERS = ("os.environ.get", "os.environ.setdefault", "os.environ.pop", "os.getenv", "os.putenv", "os.unsetenv")


class VisibleDevices(Rule):
    """Which variable has to be set, or read, depends on the machine; a pin of DEVICEKIT_DEVICE holds on all of them."""

    name = "visible-devices"
    visits = (ast.Constant, ast.keyword)
    hints = ("CUDA",)
    examples = (
        Leaves('"""Set CUDA_VISIBLE_DEVICES to choose."""\n', because="it is text"),
        Leaves("import os\n\nhome = os.environ['HOME']\n", because="it is another variable"),
        Leaves("print('CUDA_VISIBLE_DEVICES=0 python train.py')\n", because="it is text as well"),
        Reports("import os\n\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'\n"),
        Reports("from os import environ\n\nseen = environ.get('CUDA_VISIBLE_DEVICES', '')\n"),
        Reports("import os\n\nenv = dict(os.environ, CUDA_VISIBLE_DEVICES='1')\n"),
        Reports("import os\n\nif 'CUDA_VISIBLE_DEVICES' in os.environ:\n    pass\n"),
        Reports("import os\n\nos.environ['CUDA_LAUNCH_BLOCKING'] = '1'\n", Kind.HARMLESS),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The variable's name where it is all of a string, or a keyword; others of CUDA's in the environment."""
        if isinstance(node, ast.keyword):
            if node.arg == VISIBLE:
                yield self._of_visible(node, node.value, module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "CUDA" in node.value:
            above = module.parent(node)
            if node.value == VISIBLE and not isinstance(above, (ast.Expr, ast.JoinedStr)):
                written = module.parent(above) if above is not None else None
                value = written.value if isinstance(written, ast.Assign) else None
                whole = above if isinstance(above, (ast.Subscript, ast.Call, ast.Compare)) else node
                yield self._of_visible(whole, value, module)
            elif above is not None and _is_environment(above, module):
                yield self.harmless(above, module, f"{node.value} is a setting for CUDA, which other devices ignore")

    def _of_visible(self, node: ast.AST, value: ast.expr | None, module: Module) -> Finding:
        said = f"{VISIBLE} is not obeyed by other vendors' devices"
        if isinstance(value, ast.Constant) and value.value in ("", "-1"):
            return self.review(node, module, f"{said}: they stay visible", 'os.environ["DEVICEKIT_DEVICE"] = "cpu"')
        return self.review(node, module, said, f"{OTHERS}; or the pin DEVICEKIT_DEVICE, such as cuda:1 or npu:1")


def _is_environment(node: ast.AST, module: Module) -> bool:
    if isinstance(node, ast.Subscript):
        return module.name(node.value) == "os.environ"
    return module.calls(node, *READERS)
