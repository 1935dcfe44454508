"""``torch.backends.cudnn`` and ``torch.backends.cuda`` hold settings that nothing else reads.

Asked of torch 2.6 and 2.13 without CUDA: setting any of them does nothing; ``cufft_plan_cache`` and
``preferred_linalg_library("magma")`` raise. https://docs.pytorch.org/docs/stable/backends.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.facts.positions import last_name
from devicekit.codemod.facts.usage import LOGGING
from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

SETTINGS = re.compile(r"torch\.backends\.(cudnn|cuda)\.(.+)")
QUESTIONS = re.compile(r"version|is_\w+|can_use_\w+|\w+_enabled")
ITS_OWN = "a setting of the program's own, which means the same on every device"
RAISING = re.compile(r"cufft_plan_cache|preferred_\w+")


class CudnnSettings(Rule):
    """Settings can stay; what asks for cuDNN, and decides by the answer, is another matter."""

    name = "cudnn-settings"
    visits = (ast.Attribute,)
    hints = ("backends",)
    examples = (
        Reports("import torch.backends.cudnn as cudnn\n\ncudnn.benchmark = True\n", Kind.HARMLESS),
        Reports("import torch\n\ntorch.backends.cuda.matmul.allow_tf32 = True\n", Kind.HARMLESS),
        Reports(
            "import torch\n\nif torch.backends.cudnn.is_available():\n    torch.backends.cudnn.benchmark = True\n",
            Kind.HARMLESS,
            count=2,
        ),
        Reports("import torch\n\nfast = torch.backends.cudnn.is_available()\n"),
        Reports("import torch\n\n\ndef size(n):\n    return n if torch.backends.cudnn.benchmark else 2 * n\n"),
        Reports(
            "import torch.backends.cudnn as cudnn\n\nif cudnn.enabled and not cudnn.deterministic:\n"
            "    print('fast')\n    cudnn.benchmark = True\n",
            Kind.HARMLESS,
            count=3,
        ),
        Reports("import torch\n\ntorch.backends.cuda.cufft_plan_cache.clear()\n"),
        Reports("import torch\n\nwith torch.backends.cuda.sdp_kernel(enable_flash=False):\n    pass\n"),
        Leaves("import torch.backends.cudnn as cudnn\n", because="nothing is done with it"),
        Leaves("import torch\n\ntorch.backends.mkldnn.enabled = True\n", because="it is the CPU's"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The whole of a dotted name."""
        if isinstance(module.parent(node), ast.Attribute):
            return
        found = SETTINGS.match(module.name(node) or "")
        if found is None:
            return
        what, first = f"torch.backends.{found[1]}", found[2].partition(".")[0]
        if RAISING.fullmatch(first):
            said = f"`{what}.{first}` raises without CUDA"
            yield self.review(node, module, said, "behind torch.cuda.is_available()", stays=True)
        elif first == "sdp_kernel":
            said = "`sdp_kernel` is deprecated, and chooses the CPU's kernels as well"
            yield self.review(node, module, said, "torch.nn.attention.sdpa_kernel([...])")
        elif QUESTIONS.fullmatch(first) and not _guards_settings(node, module):
            said = f"`{what}.{first}` asks about NVIDIA's libraries"
            yield self.review(node, module, said, "dm.is_accelerator, where any device is meant")
        elif _decides(node, module):
            said = f"`{what}.{first}` is a setting of NVIDIA's libraries, and decides here about something else"
            yield self.review(node, module, said, ITS_OWN)
        else:
            yield self.harmless(node, module, f"`{what}.{first}` does nothing without CUDA")


def _guards_settings(node: ast.AST, module: Module) -> bool:
    """The answer is printed, or what depends on it sets nothing else than these settings."""
    call = module.parent(node)
    above = module.parent(call) if call is not None else None
    if isinstance(above, ast.FormattedValue) or _is_print(above):
        return True
    return isinstance(_asking(node, module), (ast.If, ast.IfExp)) and not _decides(node, module)


def _decides(node: ast.AST, module: Module) -> bool:
    """Something else than these settings, and what is told of them, depends on it."""
    asking = _asking(node, module)
    if isinstance(asking, ast.If):
        return not all(_is_setting(step, module) for step in [*asking.body, *asking.orelse])
    if isinstance(asking, ast.IfExp):
        return not _is_setting(module.statement(asking), module)
    return asking is not None


def _asking(node: ast.AST, module: Module) -> ast.AST | None:
    """The statement or expression that asks it: ``if not node``, ``if node() and ...``."""
    child, above = node, module.parent(node)
    while isinstance(above, (ast.BoolOp, ast.UnaryOp, ast.Compare, ast.Call)):
        if isinstance(above, ast.Call) and above.func is not child:
            return None
        child, above = above, module.parent(above)
    return above if isinstance(above, (ast.If, ast.IfExp, ast.While)) and above.test is child else None


def _is_setting(step: ast.stmt, module: Module) -> bool:
    if isinstance(step, ast.Assign):
        return all(SETTINGS.match(module.name(target) or "") for target in step.targets)
    called = step.value if isinstance(step, ast.Expr) else None
    sets = isinstance(called, ast.Call) and SETTINGS.match(module.name(called.func) or "")
    return isinstance(step, ast.Pass) or bool(sets) or (called is not None and _is_print(called))


def _is_print(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and last_name(node.func) in LOGGING
