"""``x.is_cuda`` is false on every other accelerator.

https://docs.pytorch.org/docs/stable/generated/torch.Tensor.is_cuda.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import device
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites


class IsCuda(Rule):
    """Whether what it decides about is CUDA's own or any accelerator's is for a reader; only to move a tensor where it
    is not yet means the same everywhere.
    """

    name = "is-cuda"
    visits = (ast.Attribute,)
    examples = (
        rewrites(
            "x = torch.ones(2)\nif not x.is_cuda:\n    x = x.cuda()",
            "x = torch.ones(2)\nif x.device.type != dm.device.type:\n    x = x.to(dm.device)",
            gives="x",
        ),
        Reports("def f(x):\n    return x.get_device() if x.is_cuda else -1\n"),
        Reports("def f(*tensors):\n    assert all(x.is_cuda for x in tensors)\n"),
        Reports("def f(x, y):\n    if not x.is_cuda:\n        y = x.cuda()\n    return y\n"),
        Leaves("class Tensor:\n    def mark(self):\n        self.is_cuda = True\n", because="it is set, not asked"),
        Leaves("def f(x):\n    return x.is_xpu\n", because="it is another vendor's"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The attribute, where it is read."""
        assert isinstance(node, ast.Attribute)
        if node.attr != "is_cuda" or not isinstance(node.ctx, ast.Load):
            return
        tensor = module.code(node.value)
        message = f"`{tensor}.is_cuda` is false on every other accelerator"
        moved = _only_moves(node, module)
        if moved is not None:
            text = f"{tensor}.device.type != {module.device}.type"
            yield self.rewrite(moved, module, message, module.replace(moved, text))
            return
        is_assertion = isinstance(module.statement(node), ast.Assert)
        suggestion = f'{tensor}.device.type != "cpu", or {tensor}.device.type == dm.device.type'
        yield self.review(node, module, message, suggestion, stays=is_assertion)


def _only_moves(node: ast.Attribute, module: Module) -> ast.UnaryOp | None:
    """The ``not x.is_cuda`` of ``if not x.is_cuda: x = x.cuda()``."""
    negated = module.parent(node)
    above = module.parent(negated) if isinstance(negated, ast.UnaryOp) and isinstance(negated.op, ast.Not) else None
    if not isinstance(above, ast.If) or above.test is not negated or above.orelse or len(above.body) != 1:
        return None
    step = above.body[0]
    moves = (
        isinstance(step, ast.Assign)
        and [ast.unparse(target) for target in step.targets] == [module.code(node.value)]
        and isinstance(step.value, ast.Call)
        and isinstance(step.value.func, ast.Attribute)
        and ast.unparse(step.value.func.value) == module.code(node.value)
        and _to_cuda(step.value, module)
    )
    return negated if moves and isinstance(negated, ast.UnaryOp) else None


def _to_cuda(call: ast.Call, module: Module) -> bool:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr == "cuda":
        return not call.args and not call.keywords
    found = device(call.args[0], module) if call.func.attr == "to" and len(call.args) == 1 else None
    return found is not None and found.index is None
