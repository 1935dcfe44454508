"""``torch.set_default_device("cuda")`` makes tensors on a CUDA device from then on.

https://docs.pytorch.org/docs/stable/generated/torch.set_default_device.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import device
from devicekit.codemod.facts.positions import edits
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Rule, rewrites

MESSAGE = "`set_default_device` of CUDA"


class SetDefaultDevice(Rule):
    """It takes the manager's device as well."""

    name = "set-default-device"
    visits = (ast.Call,)
    hints = ("cuda",)
    examples = (
        rewrites(
            'torch.set_default_device("cuda")\ntorch.set_default_device(None)',
            "torch.set_default_device(dm.device)\ntorch.set_default_device(None)",
            gives="torch.get_default_device().type",
        ),
        rewrites(
            "gpu = False\ntorch.set_default_device('cuda' if gpu else 'cpu')\nx = torch.ones(2)\n"
            "torch.set_default_device(None)",
            "gpu = False\ntorch.set_default_device(dm.device if gpu else 'cpu')\nx = torch.ones(2)\n"
            "torch.set_default_device(None)",
            gives="x.sum()",
        ),
        Leaves('import torch\n\ntorch.set_default_device("cpu")\n', because="it names no CUDA"),
        Leaves("import torch\n\n\ndef f(device):\n    torch.set_default_device(device)\n", because="it is handed in"),
        Leaves('def f(engine):\n    engine.set_default_device("cuda")\n', because="this is another's function"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Its calls."""
        assert isinstance(node, ast.Call)
        if module.name(node.func) != "torch.set_default_device":
            return
        place = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "device"), None)
        found = device(place, module)
        if place is None:
            return
        if found is not None and "#" not in module.code(place):
            yield self.rewrite(node, module, MESSAGE, module.replace(place, found.as_device(module)))
        elif inner := edits(place, module):
            yield self.rewrite(node, module, MESSAGE, *inner)
