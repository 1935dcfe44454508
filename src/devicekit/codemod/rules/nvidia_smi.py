"""``nvidia-smi`` is a program of NVIDIA's driver.

https://docs.nvidia.com/deploy/nvidia-smi/index.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

SHELL = ("os.system", "os.popen", "shutil.which")


class NvidiaSmi(Rule):
    """What its output is used for decides what to ask instead."""

    name = "nvidia-smi"
    visits = (ast.Call,)
    hints = ("nvidia-smi",)
    examples = (
        Reports("import subprocess\n\nsubprocess.run(['nvidia-smi', '-L'], check=True)\n"),
        Reports("import os\n\nlines = os.popen('nvidia-smi --query-gpu=memory.free --format=csv').read()\n"),
        Leaves("print('see nvidia-smi')\n", because="it is only named"),
        Leaves("import subprocess\n\nsubprocess.run(['rocm-smi'])\n", because="it is another vendor's"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that start it, or look for it."""
        assert isinstance(node, ast.Call)
        name = module.name(node.func) or ""
        runs = name.startswith("subprocess.")
        if (runs or name in SHELL) and any(_names_it(a) for a in (*node.args, *(k.value for k in node.keywords))):
            how = "dm.report(), dm.name, dm.memory_stats()"
            yield self.review(node, module, "nvidia-smi is there with NVIDIA's driver only", how, stays=runs)


def _names_it(argument: ast.AST) -> bool:
    return any(
        isinstance(n, ast.Constant) and isinstance(n.value, str) and "nvidia-smi" in n.value for n in ast.walk(argument)
    )
