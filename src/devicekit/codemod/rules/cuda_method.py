"""``x.cuda()`` moves to a CUDA device.

Without a number it is the current one, and so it is for None.
https://docs.pytorch.org/docs/stable/generated/torch.Tensor.cuda.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.devices import Device, device
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

CASTS = ("float", "half", "bfloat16")
FROM_NUMPY = ("torch.from_numpy", "torch.as_tensor", "torch.tensor")
MOVES = "moves to a CUDA device"
ELSEWHERE = ("cupy", "numba", "pycuda", "jax", "taichi", "warp", "tvm", "dpctl")
"""Packages with a ``cuda`` of their own."""
RELATIVES = ("Module", "Tensor", "Parameter")


class CudaMethod(Rule):
    """Tensors and modules have ``.to``, which takes any device; what else has a ``cuda`` method may not."""

    name = "cuda-method"
    visits = (ast.Call,)
    hints = ("cuda",)
    examples = (
        rewrites(
            "model = torch.nn.Linear(2, 1).cuda()",
            "model = torch.nn.Linear(2, 1).to(dm.device)",
            gives="sum(p.numel() for p in model.parameters())",
        ),
        rewrites(
            "x = torch.ones(3).cuda(non_blocking=True)",
            "x = torch.ones(3).to(dm.device, non_blocking=True)",
            gives="x.sum()",
        ),
        rewrites(
            "rank = 0\nx = torch.ones(3).cuda(rank, non_blocking=True)",
            "rank = 0\nx = torch.ones(3).to(dm.device_at(rank), non_blocking=True)",
            gives="x.sum()",
        ),
        rewrites(
            'x = torch.ones(3).cuda(device="cuda:1")', "x = torch.ones(3).to(device=dm.device_at(1))", gives="x.sum()"
        ),
        rewrites(
            "class P:\n    def cuda(self):\n        return 3\n\n\np = P()\nx = torch.ones(p.cuda()).cuda()",
            "class P:\n    def cuda(self):\n        return 3\n\n\np = P()\nx = torch.ones(p.cuda()).to(dm.device)",
            gives="x.sum()",
        ),
        rewrites(
            "x = torch.tensor([1.0]).cuda().half()",
            "x = torch.tensor([1.0]).half().to(dm.device)",
            gives="x",
        ),
        Leaves("import cupy\n\ncupy.cuda()\n", because="cupy is a package"),
        Leaves("from numba import cuda\n\ncuda.jit()\n", because="this is another cuda"),
        Leaves("x = {}\nx.cuda\n", because="nothing is called"),
        Reports("class Solver:\n    def cuda(self):\n        pass\n\n\ndef run(solver):\n    solver.cuda()\n"),
        Reports("import settings\n\nsettings.model.cuda()\n"),
        Reports("def f(x, where):\n    return x.cuda(*where)\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls of a method of this name."""
        assert isinstance(node, ast.Call)
        if not isinstance(node.func, ast.Attribute) or node.func.attr != "cuda":
            return
        name = module.name(node.func) or ""
        if name.partition(".")[0] in ELSEWHERE or _is_own(node.func.value, module):
            return
        given = {k.arg: k.value for k in node.keywords}
        index = node.args[0] if node.args else given.pop("device", None)
        hidden = isinstance(index, ast.Starred) or len(node.args) > 1 or set(given) - {"non_blocking", "memory_format"}
        doubt = "its arguments are unusual" if hidden else _doubt(node.func.value, name, module)
        if doubt:
            yield self.review(node, module, f"`.cuda()` {MOVES}; {doubt}", f".to({module.device})", stays=True)
            return
        renamed = module.rename(node.func, "to")
        cast = _cast_after(node, module) if index is None and not given else None
        if cast is not None:  # first, for NumPy's numbers are float64 as a rule, which not every device takes
            start, end = module.attribute(node.func)[0], module.span(cast)[1]
            text = f"{module.text[module.span(node)[1] + 1 : end]}.to({module.device})"
            yield self.rewrite(node, module, f"`.cuda()` {MOVES}", Edit(start, end, text))
        elif index is None:
            added = module.prepend_argument(node, module.device)
            yield self.rewrite(node, module, f"`.cuda()` {MOVES}", renamed, added)
        else:
            placed = module.replace(index, _text(index, module))
            yield self.rewrite(node, module, f"`.cuda(n)` {MOVES}", renamed, placed)


def _text(index: ast.expr, module: Module) -> str:
    found = device(index, module) or Device(module.code(index))
    return found.as_device(module)


def _doubt(receiver: ast.expr, name: str, module: Module) -> str:
    """What speaks against its being a tensor or a module with torch's own method."""
    if name:
        return "what is moved comes from another module"
    if _classes(module) and not _is_torch(receiver, module):
        return "a class of this file has a method of its own of this name"
    return ""


def _is_torch(node: ast.expr, module: Module) -> bool:
    """Torch made it, in plain sight."""
    if isinstance(node, ast.Call):
        if (module.name(node.func) or "").startswith("torch."):
            return True
        return isinstance(node.func, ast.Attribute) and _is_torch(node.func.value, module)
    made = [value for value in values(node, module) if value is not node]
    return isinstance(node, ast.Name) and bool(made) and all(isinstance(v, ast.Call) and _made(v, module) for v in made)


def _made(call: ast.Call, module: Module) -> bool:
    return (module.name(call.func) or "").startswith("torch.")


def _is_own(receiver: ast.expr, module: Module) -> bool:
    """It is an instance of a class of this file that is no relative of a tensor or module, and has its own method."""
    made = values(receiver, module)
    own = {c.name for c in _classes(module) if not any(_last(base) in RELATIVES for base in c.bases)}
    return bool(made) and all(
        isinstance(v, ast.Call) and isinstance(v.func, ast.Name) and v.func.id in own for v in made
    )


def _last(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _classes(module: Module) -> list[ast.ClassDef]:
    """Those of this file that define the method."""
    known = module.memo.get(__name__)
    if known is None:
        known = module.memo[__name__] = [
            node
            for node in module.every(ast.ClassDef)
            if isinstance(node, ast.ClassDef)
            and any(isinstance(part, ast.FunctionDef) and part.name == "cuda" for part in node.body)
        ]
    assert isinstance(known, list)
    return known


def _cast_after(node: ast.Call, module: Module) -> ast.Call | None:
    """The call of ``.float()`` right after ``torch.from_numpy(x).cuda()``."""
    name, call = module.parent(node), module.parent(module.parent(node) or node)
    is_cast = isinstance(name, ast.Attribute) and name.attr in CASTS and isinstance(call, ast.Call)
    from_numpy = module.calls(node.func.value, *FROM_NUMPY)  # type: ignore[attr-defined]
    if not (is_cast and from_numpy and isinstance(call, ast.Call) and call.func is name):
        return None
    together = module.text[module.span(node)[1] : module.span(call)[1]]
    return call if not call.args and not call.keywords and together.startswith(".") else None
