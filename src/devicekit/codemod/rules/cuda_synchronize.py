"""``torch.cuda.synchronize`` waits for a CUDA device, and raises where there is none.

https://docs.pytorch.org/docs/stable/generated/torch.cuda.synchronize.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind, is_called
from devicekit.codemod.facts.cuda_calls import Asked, asked, function
from devicekit.codemod.facts.usage import stands_alone, under_index
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

MESSAGE = "`torch.cuda.synchronize` waits for CUDA only, and raises without it"


class CudaSynchronize(Rule):
    """The facade waits for whatever device there is, and not at all where there is nothing to wait for."""

    name = "cuda-synchronize"
    visits = (ast.Call, ast.Attribute, ast.Name)
    examples = (
        rewrites("torch.cuda.synchronize()", "dm.synchronize()"),
        rewrites(
            'device = torch.device("cuda" if torch.cuda.is_available() else "cpu")\ntorch.cuda.synchronize(device)',
            "device = dm.device\ndm.synchronize()",
            gives="device.type",
        ),
        rewrites(
            "def wait(device=None):\n    torch.cuda.synchronize(device=device)",
            "def wait(device=None):\n    with dm.device_index(device):\n        dm.synchronize()",
            gives="wait()",
        ),
        rewrites("wait = torch.cuda.synchronize", "wait = dm.synchronize", gives="wait()"),
        Reports("import torch\n\n\ndef wait(rank): torch.cuda.synchronize(rank)\n"),
        Reports("import torch\n\ntorch.cuda.synchronize(*[0])\n"),
        Leaves("def wait(torch):\n    torch.cuda.synchronize()\n", because="this torch is handed in"),
        Leaves("import torch\n\ntorch.mps.synchronize()\n", because="it is another vendor's"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, and the function handed on."""
        if not isinstance(node, ast.Call):
            if function(node, module) == "synchronize" and not is_called(node, module):
                yield self.rewrite(node, module, MESSAGE, module.replace(node, f"{module.manager}.synchronize"))
            return
        if function(node.func, module) != "synchronize":
            return
        given = bind(node, "device")
        device = None if given is None else given.get("device")
        if given is not None and asked(device, module) == Asked.CURRENT:
            yield self.rewrite(node, module, MESSAGE, module.replace(node, f"{module.manager}.synchronize()"))
        elif device is not None and stands_alone(node, module):
            yield self.rewrite(node, module, MESSAGE, *under_index(node, device, "synchronize()", module))
        else:
            yield self.review(node, module, MESSAGE, "with dm.device_index(...): dm.synchronize()", stays=True)
