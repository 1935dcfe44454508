"""A parameter that is ``"cuda"`` by default.

Defaults are evaluated when the module is imported, as the manager is made then.
https://docs.python.org/3/reference/compound_stmts.html#function-definitions
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.positions import defaults_of, edits, may_be_missing, says_device
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.names import FUNCTIONS
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

MESSAGE = "a parameter's default is a CUDA device"


class DeviceDefault(Rule):
    """The body may compare or print it, so text stays text, unless the parameter is declared a ``torch.device``."""

    name = "device-default"
    visits = FUNCTIONS
    hints = ("cuda",)
    examples = (
        rewrites(
            'def f(x, device="cuda"):\n    return x.to(device)\n\n\nx = f(torch.ones(2))',
            "def f(x, device=str(dm.device)):\n    return x.to(device)\n\n\nx = f(torch.ones(2))",
            gives="x.sum()",
        ),
        rewrites(
            'def f(n, *, device: torch.device = "cuda:0") -> float:\n    return torch.ones(n, device=device).sum()',
            "def f(n, *, device: torch.device = dm.device) -> float:\n    return torch.ones(n, device=device).sum()",
            gives="f(3)",
        ),
        rewrites(
            "def f(device_type='cuda'):\n    return device_type\n\n\ng = lambda device='cuda': device",
            "def f(device_type=dm.device.type):\n    return device_type\n\n\ng = lambda device=str(dm.device): device",
            gives="(type(f()), type(g()))",
        ),
        Leaves('def f(x, device="cpu"):\n    return x.to(device)\n', because="it names no CUDA"),
        Leaves("def f(x, device=None):\n    return x.to(device)\n", because="there is no device"),
        Reports('def f(accelerator: str = "cuda"):\n    return accelerator\n'),
        Reports('def f(x, device="cuda:1"):\n    return x.to(device)\n'),
        Reports("def build(*, backend='cuda', device='cpu'):\n    return backend, device\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Defaults of functions and lambdas."""
        assert isinstance(node, FUNCTIONS)
        for parameter, default in defaults_of(node.args):
            found = edits(default, module)
            if says_device(parameter.arg) and may_be_missing(found):
                message = (
                    f"{MESSAGE} by number; where there are fewer, asking for it raises, and here already on import"
                )
                yield self.review(default, module, message, f"None as the default, and {found[0].text} in the body")
            elif found and says_device(parameter.arg):
                yield self.rewrite(default, module, MESSAGE, *found)
            elif found:
                message = f'the default of `{parameter.arg}` is "cuda", and whether that is a device is not said'
                yield self.review(default, module, message, f"{found[0].text}, where it is a device")
