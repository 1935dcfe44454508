"""``torch.load`` without ``weights_only`` means another thing before torch 2.6 than since.

Until then it executed whatever the file told it to; since then it reads tensors and plain containers, and raises for
anything else. With ``weights_only=False`` it still executes.
https://docs.pytorch.org/docs/stable/notes/serialization.html#torch-load-with-weights-only-true
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

SAFE = "weights_only=True; torch.serialization.add_safe_globals([...]) for classes that the file needs"


class UnsafeLoad(Rule):
    """A checkpoint from elsewhere is a program. Said after what torch-load has to say of the same call."""

    name = "unsafe-load"
    visits = (ast.Call,)
    hints = ("load",)
    examples = (
        Leaves(
            "import torch\n\n\ndef load(path):\n    return torch.load(path, 'cpu', weights_only=True)\n",
            because="it is safe",
        ),
        Leaves("import json as torch\n\n\ndef load(f):\n    return torch.load(f)\n", because="this is not torch"),
        Leaves("import torch\n\n\ndef load(f, **k):\n    return torch.load(f, **k)\n", because="it may be given"),
        Reports("import torch\n\n\ndef load(path):\n    return torch.load(path, map_location='cpu')\n"),
        Reports("import torch\n\n\ndef load(path):\n    return torch.load(path, 'cpu', weights_only=False)\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that do not say it, or say no."""
        if not module.calls(node, "torch.load") or not isinstance(node, ast.Call):
            return
        given = {k.arg: k.value for k in node.keywords}
        said = given.get("weights_only")
        if isinstance(said, ast.Constant) and said.value is False:
            yield self.review(node, module, "`weights_only=False` executes what the file tells it to", SAFE)
        elif "weights_only" not in given and None not in given:
            told = "without `weights_only` torch before 2.6 executes what the file says, and later ones may refuse it"
            yield self.review(node, module, told, SAFE, residual=True, besides=True)
