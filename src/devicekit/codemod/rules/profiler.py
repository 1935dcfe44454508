"""The profiler is asked for CUDA's activity by name.

Without CUDA torch 2.13 warns and leaves it out, and raises where nothing else is asked for.
``torch.profiler.supported_activities()`` tells what the machine has.
https://docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

PROFILERS = ("torch.autograd.profiler.profile", "torch.autograd.profiler.emit_nvtx", "torch.profiler.profile")


class Profiler(Rule):
    """Other devices' activities have other names, and so have the columns of the tables."""

    name = "profiler"
    visits = (ast.Attribute, ast.Call)
    hints = ("CUDA", "use_cuda")
    examples = (
        Reports(
            "from torch.profiler import ProfilerActivity, profile\n\n"
            "run = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])\n"
        ),
        Reports("import torch\n\nwith torch.autograd.profiler.profile(use_cuda=True) as run:\n    pass\n"),
        Leaves("import torch\n\nkind = torch.profiler.ProfilerActivity.CPU\n", because="it is the CPU's"),
        Leaves("class ProfilerActivity:\n    CUDA = 1\n\n\nkind = ProfilerActivity.CUDA\n", because="it is its own"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The activity, and the older option."""
        if isinstance(node, ast.Attribute):
            name = module.name(node) or ""
            if name.startswith("torch.") and name.endswith("ProfilerActivity.CUDA"):
                how = "activities=torch.profiler.supported_activities()"
                yield self.review(node, module, "the profiler is asked for CUDA's activity by name", how)
        elif isinstance(node, ast.Call) and module.name(node.func) in PROFILERS:
            value = next((k.value for k in node.keywords if k.arg == "use_cuda"), None)
            if value is not None and not (isinstance(value, ast.Constant) and not value.value):
                how = "torch.profiler.profile(activities=torch.profiler.supported_activities())"
                yield self.review(node, module, "`use_cuda=` profiles CUDA only", how)
