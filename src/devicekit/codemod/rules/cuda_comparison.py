"""``device == "cuda"`` is false on every other accelerator, and then what was written for the CPU runs there.

https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.devices import text_of_cuda
from devicekit.codemod.facts.guards import guarded
from devicekit.codemod.facts.positions import leaves
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

DEVICE = re.compile(r"dev|location|accelerator|\.type\b|str\(", re.I)
CPU = "cpu"


class Question(NamedTuple):
    """What is asked."""

    subject: ast.expr
    """Of what."""
    word: str
    """The text that it is compared with."""
    wanted: bool
    """True for ``==`` and ``in``."""
    whole: bool
    """The subject has to be the word, and may not only contain it."""


class CudaComparison(Rule):
    """Where every value that a variable is given is in sight, and is the chosen device or the CPU, not to be the CPU
    means the same. Elsewhere it may be another vendor's device that has branches of its own.
    """

    name = "cuda-comparison"
    visits = (ast.Compare, ast.Call, ast.MatchValue)
    examples = (
        rewrites(
            'device = "cuda" if torch.cuda.is_available() else "cpu"\nhalf = device == "cuda"',
            'device = str(dm.device)\nhalf = device != "cpu"',
            gives="type(half).__name__",
        ),
        rewrites(
            'place = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")\nplain = place.type != \'cuda\'',
            "place = dm.device\nplain = place.type == 'cpu'",
            gives="type(plain).__name__",
        ),
        Reports('def f(device):\n    return device == "cuda"\n'),
        Reports('def f(x):\n    return "cuda" == x.device.type\n'),
        Reports('def f(device):\n    return "cuda" in str(device) or device.startswith(("cuda", "xpu"))\n', count=2),
        Reports('import torch\n\ndevice = torch.device("cpu")\nfast = device.type in ("cuda", "mps")\n'),
        Reports('backend = "cuda"\nexec("backend = 1")\nfused = backend == "cuda"\n'),
        Reports('device = "cpu"\nfor device in ("cpu", "mps"):\n    fast = device == "cuda"\n'),
        Leaves('states = {"cuda": 1}\nfound = "cuda" in states\n', because="it is a key"),
        Leaves('def f(device):\n    return device == "cpu"\n', because="it asks for the CPU"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Comparisons, ``startswith``, and ``case "cuda":``."""
        asked = _question(node)
        if asked is None:
            return
        subject = module.code(asked.subject)
        with_dot = asked.subject.attr == "type" if isinstance(asked.subject, ast.Attribute) else False
        new = f'{subject} {"!=" if asked.wanted else "=="} "{CPU}"'
        message = f"`{subject}` is compared with {asked.word}: on every other device the other branch is taken"
        variable = asked.subject.value if with_dot else asked.subject  # type: ignore[attr-defined]
        if isinstance(node, ast.MatchValue) or not _is_device_or_cpu(variable, asked, with_dot, module):
            suggestion = new if DEVICE.search(subject) else f"ask dm.is_accelerator: {new}"
            is_assertion = isinstance(module.statement(node), ast.Assert) and asked.wanted
            yield self.review(node, module, message, suggestion, stays=is_assertion)
            return
        quote = module.code(_word(node))[-1]
        text = new.replace('"', quote)
        yield self.rewrite(node, module, message, module.replace(node, text), guards=guarded(node, module))


def _question(node: ast.AST) -> Question | None:
    if isinstance(node, ast.Compare):
        return _of_comparison(node)
    if isinstance(node, ast.MatchValue):
        word = _cuda(node.value)
        return Question(node.value, repr(word), True, True) if word else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
        first = node.args[0] if node.args else None
        parts = first.elts if isinstance(first, ast.Tuple) else [first]
        word = next(filter(None, map(_cuda, parts)), "")
        return Question(node.func.value, word, True, isinstance(first, ast.Tuple)) if word else None
    return None


def _of_comparison(node: ast.Compare) -> Question | None:
    if len(node.ops) != 1:
        return None
    left, right, op = node.left, node.comparators[0], node.ops[0]
    wanted = isinstance(op, (ast.Eq, ast.In, ast.Is))
    if isinstance(op, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
        word, subject = (_cuda(right), left) if _cuda(right) else (_cuda(left), right)
        return Question(subject, word, wanted, True) if word else None
    if isinstance(op, (ast.In, ast.NotIn)) and isinstance(right, (ast.Tuple, ast.List, ast.Set)):
        word = next(filter(None, map(_cuda, right.elts)), "")
        return Question(left, "/".join(map(ast.unparse, right.elts)), wanted, True) if word else None
    if isinstance(op, (ast.In, ast.NotIn)) and _cuda(left) and DEVICE.search(ast.unparse(right)):
        return Question(right, _cuda(left), wanted, False)
    return None


def _cuda(node: ast.AST | None) -> str:
    said = node.value if isinstance(node, ast.Constant) else None
    return said if isinstance(said, str) and re.match(r"cuda(?::\d+)?$|cuda:$", said) else ""


def _word(node: ast.AST) -> ast.AST:
    return next(part for part in ast.walk(node) if _cuda(part))


def _is_device_or_cpu(variable: ast.expr, asked: Question, is_type: bool, module: Module) -> bool:
    """All that the variable is given is the text of a CUDA device or "cpu"; before ``.type`` a device made of it."""
    if asked.word != "cuda":
        return False
    said = [leaf for value in values(variable, module) for leaf in leaves(value)]
    if is_type:
        made = [leaf.args[0] for leaf in said if isinstance(leaf, ast.Call) and _is_made(leaf, module)]
        said = [leaf for value in made for leaf in leaves(value)] if len(made) == len(said) else []
    words = [_meant(leaf, module) for leaf in said]
    exact = is_type or not asked.whole or "index" not in words
    return bool(words) and None not in words and exact and set(words) != {CPU}


def _is_made(call: ast.Call, module: Module) -> bool:
    return module.name(call.func) == "torch.device" and len(call.args) == 1 and not call.keywords


def _meant(leaf: ast.expr, module: Module) -> str | None:
    if isinstance(leaf, ast.Constant) and leaf.value == CPU:
        return CPU
    found = text_of_cuda(leaf, module)
    return None if found is None else "cuda" if found.index is None else "index"
