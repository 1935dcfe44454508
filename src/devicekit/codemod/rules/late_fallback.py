"""``PYTORCH_ENABLE_MPS_FALLBACK`` is read when torch is loaded.

Set after that it changes nothing, and operators that MPS lacks go on raising. Read in aten/src/ATen/mps/MPSFallback.mm.
https://docs.pytorch.org/docs/stable/mps_environment_variables.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

VARIABLE = "PYTORCH_ENABLE_MPS_FALLBACK"
IMPORTS = (ast.Import, ast.ImportFrom)
USES_TORCH = {"torch", "torchvision", "torchaudio", "transformers", "diffusers", "accelerate", "timm", "lightning"}
"""Packages whose import loads torch."""


class LateFallback(Rule):
    """Moving the line up is for the reader: what stands between may matter."""

    name = "late-fallback"
    visits = (ast.Subscript, ast.Call)
    hints = (VARIABLE,)
    examples = (
        Reports(f"import os\n\nimport torch\n\nos.environ['{VARIABLE}'] = '1'\n"),
        Reports(f"import os\n\nimport torch\n\n\ndef main():\n    os.environ.setdefault('{VARIABLE}', '1')\n"),
        Leaves(f"import os\n\nos.environ['{VARIABLE}'] = '1'\n\nimport torch\n", because="it is in time"),
        Leaves(f"import os\n\nimport torch\n\nprint(os.environ['{VARIABLE}'])\n", because="it is only read"),
        Leaves("import os\n\nimport torch\n\nos.environ['HOME'] = '/'\n", because="it is another variable"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Where it is set, if torch is imported before."""
        if _sets(node, module) and any(_is_earlier(n, node, module) for n in module.every(*IMPORTS)):
            said = f"{VARIABLE} is set after torch was imported, which reads it only then"
            yield self.review(node, module, said, "set it before the first import of torch, or for the whole process")


def _sets(node: ast.AST, module: Module) -> bool:
    key: ast.expr | None = None
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and module.name(node.value) == "os.environ":
        key = node.slice
    elif isinstance(node, ast.Call) and module.calls(node, "os.environ.setdefault", "os.putenv") and node.args:
        key = node.args[0]
    return isinstance(key, ast.Constant) and key.value == VARIABLE


def _is_earlier(node: ast.AST, setting: ast.AST, module: Module) -> bool:
    """An import that has run by then: further up, or at the top of the module where this is in a function."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    else:
        return False
    if not USES_TORCH & {name.partition(".")[0] for name in names}:
        return False
    around = module.function(node)
    if around is not None and around is not module.function(setting):
        return False
    above = module.span(node)[0] < module.span(setting)[0]
    return above or (around is None and module.function(setting) is not None)
