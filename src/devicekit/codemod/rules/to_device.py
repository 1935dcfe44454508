"""``.to("cuda")`` moves to a CUDA device; ``.to(rank)`` to the accelerator of that number.

Without an accelerator a number raises, whatever it is.
https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.positions import edits
from devicekit.codemod.facts.ranks import is_number, looks_like_number
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

MOVES = "moves to a CUDA device"


class ToDevice(Rule):
    """``.to`` takes any device; only its name is CUDA's."""

    name = "to-device"
    visits = (ast.Call,)
    hints = ("cuda", "rank", "gpu", "device_id", ".to(0)")
    examples = (
        rewrites('x = torch.ones(2).to("cuda")', "x = torch.ones(2).to(dm.device)", gives="x.sum()"),
        rewrites(
            "x = torch.ones(2).to('cuda', torch.bfloat16)",
            "x = torch.ones(2).to(dm.device, torch.bfloat16)",
            gives="x.float().sum()",
        ),
        rewrites(
            'x = torch.ones(2).to(dtype=torch.float64, device="cuda", non_blocking=True)',
            "x = torch.ones(2).to(dtype=torch.float64, device=dm.device, non_blocking=True)",
            gives="x.float().sum()",
        ),
        rewrites('x = torch.ones(2).to("cuda:1")', "x = torch.ones(2).to(dm.device_at(1))", gives="x.sum()"),
        rewrites(
            'on = False\nx = torch.ones(2).to("cuda" if on else "cpu")',
            'on = False\nx = torch.ones(2).to(dm.device if on else "cpu")',
            gives="x.sum()",
        ),
        rewrites(
            'def f(x, rank):\n    return x.to(rank)\n\n\nlocal_rank = int("0")\nx = torch.ones(2).to(local_rank)',
            'def f(x, rank):\n    return x.to(dm.device_at(rank))\n\n\nlocal_rank = int("0")\n'
            "x = torch.ones(2).to(dm.device_at(local_rank))",
            gives="x.sum()",
        ),
        Leaves("import torch\n\nx = torch.ones(2).to(torch.float16)\n", because="this is a dtype"),
        Leaves("def f(x, device):\n    return x.to(device)\n", because="the device is handed in"),
        Leaves('def f(x):\n    return x.to("cpu")\n', because="it names no CUDA"),
        Leaves("def f(mail):\n    return mail.to(3)\n", because="a file without torch has no tensors"),
        Reports("import torch\n\n\ndef f(x, args):\n    return x.to(args.gpu)\n"),
        Reports("import torch as th\n\n\ndef f(x, gpu=None):\n    return th.relu(x.to(gpu))\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls of a method of this name."""
        assert isinstance(node, ast.Call)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "to" and module.name(node.func) is None):
            return
        place = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "device"), None)
        if place is None:
            return
        inner = edits(place, module)
        if inner:
            yield self.rewrite(node, module, f'`.to("cuda")` {MOVES}', *inner)
        elif isinstance(place, ast.Constant) or looks_like_number(place):
            yield from self._of_number(node, place, module)

    def _of_number(self, node: ast.Call, place: ast.expr, module: Module) -> Iterator[Finding]:
        text = f"{module.manager}.device_at({module.code(place)})"
        if module.names.at_top("torch") is None:
            return
        if is_number(place, module):
            message = "`.to` a number needs an accelerator"
            yield self.rewrite(node, module, message, module.replace(place, text))
        elif not isinstance(place, ast.Constant):
            message = "`.to` what may be a number, which needs an accelerator; or it may be None, and nothing is moved"
            yield self.review(node, module, message, f".to({text})", stays=True)
