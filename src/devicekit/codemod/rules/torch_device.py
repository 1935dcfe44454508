"""``torch.device("cuda")`` names a CUDA device.

``"cuda"`` is the current one, and so is the manager's ``device``; ``torch.device`` takes a ``torch.device`` as well.
https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import device, text_of_cuda
from devicekit.codemod.facts.positions import edits
from devicekit.codemod.facts.ranks import is_number, looks_like_number
from devicekit.codemod.facts.usage import quoted
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites


class TorchDevice(Rule):
    """The manager has this object already, for whatever device there is."""

    name = "torch-device"
    visits = (ast.Call,)
    hints = ("cuda", ".device(")
    examples = (
        rewrites('device = torch.device("cuda")', "device = dm.device", gives="torch.ones(2, device=device).sum()"),
        rewrites(
            "device = torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
            "device = dm.device",
            gives="device.type",
        ),
        rewrites(
            'use_gpu = False\ndevice = torch.device("cuda" if use_gpu else "cpu")',
            'use_gpu = False\ndevice = dm.device if use_gpu else torch.device("cpu")',
            gives="device.type",
        ),
        rewrites(
            "no_cuda, x = False, [1]\n"
            "x = torch.tensor(x, device=torch.device('cpu' if no_cuda else 'cuda'))\n"
            "y = [torch.device('cuda' if no_cuda else 'cpu').type]",
            "no_cuda, x = False, [1]\n"
            "x = torch.tensor(x, device=torch.device('cpu') if no_cuda else dm.device)\n"
            "y = [torch.device(dm.device if no_cuda else 'cpu').type]",
            gives="x + len(y)",
        ),
        rewrites(
            'rank = 0\ndevice = torch.device("cuda", rank)',
            "rank = 0\ndevice = dm.device_at(rank)",
            gives="device.index in (0, None)",
        ),
        rewrites(
            'rank = 0\nx = torch.ones(2, device=torch.device(f"cuda:{rank}"))  # mine',
            "rank = 0\nx = torch.ones(2, device=dm.device_at(rank))  # mine",
            gives="x.sum()",
        ),
        rewrites(
            'with torch.device("cuda"):\n    x = torch.ones(2)',
            "with dm.device:\n    x = torch.ones(2)",
            gives="x.sum()",
        ),
        rewrites("device = torch.device(0)", "device = dm.device_at(0)", gives="device.type"),
        Leaves('import torch\n\ndevice = torch.device("cpu")\n', because="it names no CUDA"),
        Leaves("import torch\n\n\ndef f(name):\n    return torch.device(name)\n", because="the name is handed in"),
        Leaves(
            'def f(torch):\n    return torch.device("cuda")\n', because="this torch is a parameter, and may be anything"
        ),
        Reports('import torch\n\n\ndef f(x):\n    return x.device == torch.device("cuda")\n'),
        Leaves('import tensorflow as tf\n\ntf.device("cuda")\n', because="this is another package's"),
        Reports('import torch\n\nplaces = {torch.device("cuda"): "nccl", torch.device("cpu"): "gloo"}\n'),
        Reports("import torch\n\n\ndef f(gpu):\n    return torch.device(gpu)\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls of ``torch.device``."""
        assert isinstance(node, ast.Call)
        if module.name(node.func) != "torch.device":
            return
        if _is_compared(node, module):
            if device(node, module) is not None:
                message = "a device is compared with CUDA's, and no other accelerator is equal to it"
                how = "==" if _is_unequal(node, module) else "!="
                yield self.review(node, module, message, f'ask for its type: .type {how} "cpu"', residual=True)
            return
        kind = (
            node.args[0] if node.args else next((k.value for k in node.keywords if k.arg in ("type", "device")), None)
        )
        found = device(node, module)
        above = module.parent(node)
        if found is not None and isinstance(above, ast.Dict) and node in above.keys:
            message = "`torch.device` of CUDA is a key, and on the CPU two keys would be one"
            yield self.review(node, module, message, "see which devices there are to be entries for")
        elif found is not None and "#" not in module.code(node):
            text = found.as_device(module)
            if isinstance(above, ast.keyword) and above.arg == "device_id":
                text += _if_not_gloo(node, module)
            yield self.rewrite(node, module, "`torch.device` of CUDA", module.replace(node, text))
        elif kind is not None and (outer := _turned(node, kind, module)):
            yield self.rewrite(node, module, "`torch.device` of CUDA", *outer)
        elif kind is not None and (inner := edits(kind, module)):
            yield self.rewrite(node, module, "`torch.device` of CUDA", *inner)
        elif kind is not None and len(node.args) == 1 and (looks_like_number(kind) or isinstance(kind, ast.Constant)):
            yield from self._of_number(node, kind, module)

    def _of_number(self, node: ast.Call, kind: ast.expr, module: Module) -> Iterator[Finding]:
        """A number alone is the accelerator's of that number; there is none without an accelerator."""
        text = f"{module.manager}.device_at({module.code(kind)})"
        above = module.parent(node)
        if isinstance(above, ast.keyword) and above.arg == "device_id":
            text += _if_not_gloo(node, module)
        if is_number(kind, module):
            yield self.rewrite(
                node, module, "`torch.device` of a number needs an accelerator", module.replace(node, text)
            )
        elif not isinstance(kind, ast.Constant):
            yield self.review(node, module, "`torch.device` of what may be a number, which needs an accelerator", text)


def _turned(node: ast.Call, kind: ast.expr, module: Module) -> list[Edit]:
    """``torch.device("cuda" if x else "cpu")`` as ``dm.device if x else torch.device("cpu")``, where that can stand."""
    above = module.parent(node)
    is_whole = isinstance(above, (ast.Assign, ast.AnnAssign, ast.Return, ast.keyword, ast.Call))
    is_alone = isinstance(kind, ast.IfExp) and node.args == [kind] and not node.keywords
    if not is_whole or not is_alone or any(mark in module.code(node) for mark in "\n\r#"):
        return []
    assert isinstance(kind, ast.IfExp)
    parts = [kind.body, kind.orelse]
    meant = {part: text_of_cuda(part, module) for part in parts if isinstance(part, ast.Constant)}
    if len(meant) < len(parts) or sum(found is None for found in meant.values()) != 1:
        return []
    (start, end), (first, last), called = module.span(node), module.span(kind), module.code(node.func)
    said = {
        p: f"{called}({module.code(p)})" if found is None else found.as_device(module) for p, found in meant.items()
    }
    return [Edit(start, first, ""), *(module.replace(p, text) for p, text in said.items()), Edit(last, end, "")]


def _is_unequal(node: ast.AST, module: Module) -> bool:
    above = next(a for a in module.parents(node) if isinstance(a, ast.Compare))
    return isinstance(above.ops[0], (ast.NotEq, ast.IsNot))


def _is_compared(node: ast.AST, module: Module) -> bool:
    """``x.device == torch.device("cuda")`` asks a question, and its answer is another rule's matter."""
    above = module.parent(node)
    while isinstance(above, ast.Attribute):
        above = module.parent(above)
    return isinstance(above, ast.Compare)


def _if_not_gloo(node: ast.AST, module: Module) -> str:
    """``init_process_group(device_id=)`` takes no device without a number, and gloo has no use for one."""
    return f" if {module.manager}.distributed_backend != {quoted('gloo', node, module)} else None"
