"""``torch.cuda.FloatTensor`` says dtype and device in one name. Without CUDA it is there, and raises when called.

torch calls these types legacy: https://docs.pytorch.org/docs/stable/tensors.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.facts.positions import last_name
from devicekit.codemod.facts.tensor_types import DTYPES, cast, chosen_type, made, uses_of
from devicekit.codemod.facts.usage import line_of
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

TEXT = re.compile(r"torch\.cuda\.(\w+Tensor)$")
MODULES = re.compile(r"(?:.*_)?(?:net|model|module|criterion|generator|discriminator)\w*$", re.I)
"""A module's ``type`` changes its whole numbers as well, and ``to`` does not."""


class TypedTensor(Rule):
    """What such a type makes depends on what it is given, sizes or values. Where that is unclear, a reader decides."""

    name = "typed-tensor"
    visits = (ast.Attribute, ast.Name, ast.Call, ast.Compare)
    examples = (
        rewrites(
            "x = torch.ones(2).type(torch.cuda.HalfTensor)",
            "x = torch.ones(2).to(dm.device, torch.float16)",
            gives="x.sum()",
        ),
        rewrites(
            'x = torch.ones(2).type("torch.cuda.LongTensor")',
            "x = torch.ones(2).to(dm.device, torch.int64)",
            gives="x",
        ),
        rewrites(
            "x = torch.cuda.FloatTensor([1, 2])\ny = torch.cuda.LongTensor(2, 3).fill_(1)",
            "x = torch.tensor([1, 2], dtype=torch.float32, device=dm.device)\n"
            "y = torch.empty(2, 3, dtype=torch.int64, device=dm.device).fill_(1)",
            gives="x.sum() + y.sum()",
        ),
        rewrites(
            "cuda = True if torch.cuda.is_available() else False\n"
            "Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor\n\n\n"
            "def ones(n):\n    return Tensor(n, 1).fill_(1.0) + torch.ones(1).type(Tensor)",
            "cuda = True if dm.is_accelerator else False\n\n\n"
            "def ones(n):\n"
            "    return torch.empty(n, 1, dtype=torch.float32, device=dm.device).fill_(1.0) + "
            "torch.ones(1).to(dm.device, torch.float32)",
            gives="ones(2)",
        ),
        rewrites(
            "x = [1]\n\n# Input types\nF = torch.cuda.FloatTensor if torch.cuda.is_available() else torch.Tensor\n"
            "L = torch.cuda.LongTensor if torch.cuda.is_available() else torch.LongTensor\n\n"
            "y = F(x) + L(x)",
            "x = [1]\n\ny = torch.tensor(x, dtype=torch.float32, device=dm.device) + "
            "torch.tensor(x, dtype=torch.int64, device=dm.device)",
            gives="y",
        ),
        Reports("import torch\n\n\ndef f(x):\n    return torch.cuda.FloatTensor(x)\n"),
        Reports("import torch\n\n\ndef f(x):\n    return isinstance(x, torch.cuda.ByteTensor)\n"),
        Reports(
            "import torch\n\n\ndef f(x, on):\n    T = torch.cuda.FloatTensor if on else torch.Tensor\n    return T(x)\n"
        ),
        Reports("def f(x):\n    return x.type() == 'torch.cuda.HalfTensor'\n"),
        Reports('def f(net):\n    return net.type("torch.cuda.FloatTensor")\n'),
        Leaves("import torch\n\nx = torch.FloatTensor([1])\n", because="it is the CPU's"),
        Leaves('x = object()\nx.type("FloatTensor")\n', because="it names no CUDA"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The names, and their text where ``.type`` is given it or compared with it."""
        if isinstance(node, ast.Compare):
            yield from self._compared(node, module)
            return
        if isinstance(node, ast.Call):
            found = _type_in(node.args[0]) if _casts(node) else None
            if found is not None and found[1] in DTYPES:
                yield self._cast(node, DTYPES[found[1]], module)
            return
        dtype, above = DTYPES.get(function(node, module)), module.parent(node)
        if dtype is None:
            return
        if isinstance(above, ast.Call) and above.func is node:
            yield self._called(above, dtype, module)
        elif module.calls(above, "torch.set_default_tensor_type"):
            return  # which is another rule's
        elif isinstance(above, ast.Call) and _casts(above) and above.args[0] is node:
            yield self._cast(above, dtype, module)
        else:
            yield self._named(node, dtype, module)

    def _compared(self, node: ast.Compare, module: Module) -> Iterator[Finding]:
        found = next(filter(None, map(_type_in, [node.left, *node.comparators])), None)
        if found is not None and found[1] in DTYPES:
            message = f"the type is compared with {found[0]!r}, which only CUDA's tensors have"
            suggestion = f"x.dtype == torch.{DTYPES[found[1]]} and x.device.type == dm.device.type"
            yield self.review(node, module, message, suggestion)

    def _called(self, call: ast.Call, dtype: str, module: Module) -> Finding:
        message = f"`{module.code(call.func)}` makes a tensor on a CUDA device"
        edits = made(call, dtype, module)
        if edits:
            return self.rewrite(call, module, message, *edits)
        suggestion = f"torch.tensor(values, dtype=torch.{dtype}, device=dm.device); torch.empty(sizes, ...)"
        return self.review(call, module, f"{message}, of sizes or of values", suggestion, stays=True)

    def _cast(self, call: ast.Call, dtype: str, module: Module) -> Finding:
        message = "`.type` moves to a CUDA device"
        assert isinstance(call.func, ast.Attribute)
        if MODULES.match(last_name(call.func.value)):
            text = f".to(dm.device, torch.{dtype})"
            return self.review(call, module, f"{message}; of a module it changes whole numbers too", text, stays=True)
        return self.rewrite(call, module, message, *cast(call, dtype, module))

    def _named(self, node: ast.AST, dtype: str, module: Module) -> Finding:
        choice = module.parent(node)
        above = module.parent(choice) if choice is not None else None
        message = f"`{module.code(node)}` is a type for CUDA alone"
        if isinstance(above, ast.Assign) and len(above.targets) == 1 and isinstance(above.targets[0], ast.Name):
            edits = self._alias(above, module)
            if edits:
                shown = f"torch.empty(...), torch.tensor(...), .to(...) with {module.device} and the dtype"
                return replace(self.rewrite(above, module, message, *edits), suggestion=shown)
        suggestion = f"dtype=torch.{dtype}, device=dm.device where tensors are made; .to(dm.device, torch.{dtype})"
        is_type_test = isinstance(choice, ast.Call) and last_name(choice.func) in ("isinstance", "issubclass")
        if is_type_test:
            suggestion = f"x.dtype == torch.{dtype}, which says the same on every device"
        stays = not is_type_test and not _is_unused(above, module)
        return self.review(node, module, message, suggestion, stays=stays)

    def _alias(self, statement: ast.Assign, module: Module) -> list[Edit]:
        """All uses of a name for the type, and its assignment, which nothing needs any more."""
        uses, line = _uses(statement, module), line_of(statement, module, among=_like(statement, module))
        return [line, *uses] if uses and line is not None else []


def _uses(statement: ast.stmt, module: Module) -> list[Edit]:
    """Edits for all that is done with the name; nothing where one of them cannot be written."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    if not isinstance(statement, ast.Assign) or not isinstance(target, ast.Name) or len(statement.targets) > 1:
        return []
    dtype = chosen_type(statement.value, module)
    is_only = dtype and values(target, module) == [statement.value]
    return uses_of(target, dtype, module) if is_only else []


def _like(statement: ast.Assign, module: Module) -> list[ast.stmt]:
    """The statement, and those of its kind directly above and below."""
    found: list[ast.stmt] = []
    for other in module.block(statement):
        goes = other is statement or (bool(_uses(other, module)) and line_of(other, module) is not None)
        follows = bool(found) and other.lineno == (found[-1].end_lineno or 0) + 1
        if found and statement in found and not (goes and follows):
            break
        found = ([*found, other] if follows else [other]) if goes else []
    return found


def _casts(call: ast.Call) -> bool:
    is_type = isinstance(call.func, ast.Attribute) and call.func.attr == "type"
    return is_type and len(call.args) == 1 and not call.keywords


def _type_in(node: ast.AST) -> re.Match[str] | None:
    """The name of the type in a string."""
    return TEXT.match(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _is_unused(statement: ast.AST | None, module: Module) -> bool:
    """A name is given to the type, and nothing here uses it."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    uses = module.names.uses.get(target.id, ()) if isinstance(target, ast.Name) else None
    return uses is not None and not any(isinstance(use.ctx, ast.Load) for use in uses)
