"""``torch.load`` puts tensors back on the device that they were saved from, unless it is told another one.

Without that device it raises "Attempting to deserialize object on a CUDA device".
https://docs.pytorch.org/docs/stable/generated/torch.load.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.facts.devices import Device, device
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

SAVED = "it loads onto the device that it was saved from, which may not be there"
KEEPS = re.compile(r"ema|sched|state|memory|buffer|queue|replay|stat|norm|tracker|metric", re.IGNORECASE)
"""Names of what may keep the loaded tensors themselves: only modules and optimizers are known to copy."""


class TorchLoad(Rule):
    """``load_state_dict`` copies into what is there, so the file may come by the CPU; else the reader must choose."""

    name = "torch-load"
    visits = (ast.Call,)
    hints = ("load",)
    examples = (
        rewrites(
            "def load(model, path):\n    model.load_state_dict(torch.load(path))",
            'def load(model, path):\n    model.load_state_dict(torch.load(path, map_location="cpu"))',
        ),
        rewrites(
            "def load(model, path):\n    saved = torch.load(path + '.pt')\n    model.load_state_dict(saved['model'])",
            "def load(model, path):\n    saved = torch.load(path + '.pt', map_location='cpu')\n"
            "    model.load_state_dict(saved['model'])",
        ),
        rewrites(
            'def load(path):\n    return torch.load(path, map_location="cuda")',
            "def load(path):\n    return torch.load(path, map_location=dm.device)",
        ),
        rewrites(
            "def load(path, n):\n    return torch.load(path, lambda storage, loc: storage.cuda(n))",
            "def load(path, n):\n    return torch.load(path, dm.device_at(n))",
        ),
        Leaves('import torch\n\n\ndef load(path):\n    return torch.load(path, "cpu")\n', because="it says where to"),
        Leaves("import numpy as torch\n\n\ndef load(path):\n    return torch.load(path)\n", because="this is NumPy"),
        Leaves(
            "import torch\n\n\ndef load(path):\n    return torch.load(path, map_location=lambda s, loc: s)\n",
            because="it says the CPU",
        ),
        Reports("import torch\n\n\ndef load(path):\n    return torch.load(path)\n"),
        Reports("import torch\n\n\ndef load(model, path):\n    model.load_state_dict(torch.load(path), assign=True)\n"),
        Reports("import torch\n\n\ndef load(path, n):\n    return torch.load(path, {'cuda:0': f'cuda:{n}'})\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that say nothing of the device, or CUDA."""
        if not module.calls(node, "torch.load") or not isinstance(node, ast.Call):
            return
        given = {k.arg: k.value for k in node.keywords}
        where = node.args[1] if len(node.args) > 1 else given.get("map_location")
        if where is None or (isinstance(where, ast.Constant) and where.value is None):
            yield self._unsaid(node, where, module, hidden=None in given)
            return
        meant = device(where, module) or _of_lambda(where, module)
        if meant is not None:
            said = "it loads onto a CUDA device"
            yield self.rewrite(node, module, said, module.replace(where, meant.as_device(module)))
        elif isinstance(where, ast.Dict) and any(device(value, module) for value in where.values):
            how = "map_location=dm.device_at(n), if all of it may go there"
            yield self.review(node, module, "it moves what was on one CUDA device to another, and nothing else", how)

    def _unsaid(self, call: ast.Call, where: ast.expr | None, module: Module, *, hidden: bool) -> Finding:
        if hidden:
            return self.review(call, module, f"{SAVED}, unless `**` says where to", "map_location=dm.device")
        if not _is_copied(call, module):
            how = 'map_location=dm.device, or "cpu" where it is copied from'
            return self.review(call, module, SAVED, how)
        code = module.code(call)
        cpu = "'cpu'" if "'" in code and '"' not in code else '"cpu"'
        edit = module.append_argument(call, f"map_location={cpu}") if where is None else module.replace(where, cpu)
        return self.rewrite(call, module, f"{SAVED}; what is read is copied from here", edit)


def _of_lambda(node: ast.expr, module: Module) -> Device | None:
    """``lambda storage, loc: storage.cuda(n)``."""
    body = node.body if isinstance(node, ast.Lambda) and node.args.args else None
    if not (isinstance(body, ast.Call) and isinstance(body.func, ast.Attribute) and body.func.attr == "cuda"):
        return None
    receiver = body.func.value
    if not (isinstance(receiver, ast.Name) and receiver.id == node.args.args[0].arg) or len(body.args) > 1:  # type: ignore[attr-defined]
        return None
    return Device(module.code(body.args[0])) if body.args else Device()


def _is_copied(call: ast.Call, module: Module) -> bool:
    """All that is read goes into ``load_state_dict`` of a module or an optimizer."""
    whole = _with_subscripts(call, module)
    above = module.parent(whole)
    if isinstance(above, ast.Assign) and above.value is whole and len(above.targets) == 1:
        target = above.targets[0]
        return isinstance(target, ast.Name) and _all_uses_are_copied(target, module)
    return _copies(above, whole, module)


def _with_subscripts(node: ast.AST, module: Module) -> ast.AST:
    above = module.parent(node)
    while isinstance(above, ast.Subscript) and above.value is node and isinstance(above.ctx, ast.Load):
        node, above = above, module.parent(above)
    return node


def _copies(call: ast.AST | None, argument: ast.AST, module: Module) -> bool:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
        return False
    receiver = module.code(call.func.value).rpartition(".")[2]
    plain = call.args[:1] == [argument] and len(call.args) <= 2
    plain = plain and call.func.attr == "load_state_dict"
    return plain and {k.arg for k in call.keywords} <= {"strict"} and not KEEPS.search(receiver) and not _own(module)


def _all_uses_are_copied(target: ast.Name, module: Module) -> bool:
    around = module.function(target)
    uses = [n for n in module.names.uses[target.id] if around is None or around in module.parents(n)]
    reads = [n for n in uses if isinstance(n.ctx, ast.Load)]
    stores = [n for n in uses if isinstance(n.ctx, ast.Store)]
    whole = [_with_subscripts(n, module) for n in reads]
    return len(stores) == 1 and bool(reads) and all(_copies(module.parent(w), w, module) for w in whole)


def _own(module: Module) -> bool:
    """A class of the file says itself what ``load_state_dict`` does."""
    known = module.memo.get(__name__)
    if known is None:
        known = module.memo[__name__] = any(
            getattr(node, "name", "") == "load_state_dict" for node in module.every(ast.FunctionDef)
        )
    return bool(known)
