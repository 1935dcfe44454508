"""``torch.Generator("cuda")`` draws on a CUDA device.

A generator works only for tensors of its own type of device, and not every device has one: Vulkan draws on the CPU.
https://docs.pytorch.org/docs/stable/generated/torch.Generator.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import device
from devicekit.codemod.facts.positions import edits
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Rule, rewrites

MESSAGE = "`torch.Generator` of CUDA"


class Generator(Rule):
    """``create_generator`` makes one that the device's factories accept. Without a seed torch's own stays: its default
    seed is fixed, and the manager's is not.
    """

    name = "generator"
    visits = (ast.Call,)
    hints = ("cuda",)
    examples = (
        rewrites('g = torch.Generator("cuda").manual_seed(3)', "g = dm.create_generator(3)", gives="g.initial_seed()"),
        rewrites(
            "g = torch.Generator(device='cuda' if torch.cuda.is_available() else 'cpu').manual_seed(int(3.5))",
            "g = dm.create_generator(int(3.5))",
            gives="g.initial_seed()",
        ),
        rewrites(
            'g = torch.Generator(device="cuda")',
            "g = torch.Generator(device=dm.device)",
            gives="g.initial_seed()",
        ),
        rewrites(
            'g = torch.Generator("cuda:1").manual_seed(3)',
            "g = torch.Generator(dm.device_at(1)).manual_seed(3)",
            gives="g.initial_seed()",
        ),
        Leaves("import torch\n\ng = torch.Generator().manual_seed(0)\n", because="it draws on the CPU"),
        Leaves('import torch\n\ng = torch.Generator(device="cpu")\n', because="it names no CUDA"),
        Leaves(
            "import torch\n\n\ndef f(device):\n    return torch.Generator(device)\n", because="the device is handed in"
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls of ``torch.Generator``."""
        assert isinstance(node, ast.Call)
        if module.name(node.func) != "torch.Generator":
            return
        place = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "device"), None)
        found = None if place is None else device(place, module)
        method = module.parent(node)
        seeds = isinstance(method, ast.Attribute) and method.attr == "manual_seed"
        if found is not None and place is not None and "#" not in module.code(node):
            text = found.as_device(module)
            if seeds and text == module.device:
                assert method is not None
                whole = module.parent(method) or node
                yield self.rewrite(whole, module, MESSAGE, module.replace(method, f"{module.manager}.create_generator"))
            else:
                yield self.rewrite(node, module, MESSAGE, module.replace(place, text))
        elif place is not None and (inner := edits(place, module)):
            yield self.rewrite(node, module, MESSAGE, *inner)
