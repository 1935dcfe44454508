"""``torch.cuda.manual_seed`` seeds the generators of CUDA devices, and no other's.

``torch.manual_seed`` seeds the CPU's and all devices' by itself.
https://docs.pytorch.org/docs/stable/generated/torch.manual_seed.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind, is_called
from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.facts.usage import called_instead, line_of
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

SEEDS = ("manual_seed", "manual_seed_all")
OTHERS = {
    "seed": "dm.manual_seed(secrets.randbits(63))",
    "seed_all": "dm.manual_seed(secrets.randbits(63))",
    "initial_seed": "keep the seed that was given to dm.manual_seed",
    "get_rng_state": "dm.rng_state(), which holds Python's, NumPy's and torch's generators as well",
    "get_rng_state_all": "dm.rng_state(), which holds Python's, NumPy's and torch's generators as well",
    "set_rng_state": "dm.set_rng_state(state), with a state of dm.rng_state()",
    "set_rng_state_all": "dm.set_rng_state(state), with a state of dm.rng_state()",
}
SILENT = ("seed", "seed_all", "get_rng_state_all")
"""Without CUDA they do nothing (``_lazy_call`` in torch/cuda/__init__.py keeps them for later), or give nothing."""


class CudaSeed(Rule):
    """The facade seeds all devices of whatever backend there is. On the CPU nothing happens, as in torch."""

    name = "cuda-seed"
    visits = (ast.Call, ast.Attribute, ast.Name)
    examples = (
        rewrites("torch.cuda.manual_seed_all(7)", "dm.manual_seed(7)"),
        rewrites("torch.cuda.manual_seed(7)\ntorch.cuda.manual_seed_all(7)", "dm.manual_seed(7)"),
        rewrites(
            "torch.manual_seed(7)\ntorch.cuda.manual_seed(seed=7)\nx = torch.rand(2)",
            "torch.manual_seed(7)\ndm.manual_seed(7)\nx = torch.rand(2)",
            gives="x",
        ),
        rewrites(
            "seeds = [torch.manual_seed, torch.cuda.manual_seed_all]",
            "seeds = [torch.manual_seed, dm.manual_seed]",
            gives="[seed(3) for seed in seeds][1]",
        ),
        Reports("import torch\n\nstates = torch.cuda.get_rng_state_all()\n"),
        Reports("import torch as th\n\nth.cuda.random.set_rng_state(th.get_rng_state())\n"),
        Leaves("import torch\n\ntorch.manual_seed(1)\n", because="this seeds every device"),
        Leaves(
            "class Torch:\n    cuda = None\n\n\ntorch = Torch()\ntorch.cuda.manual_seed(1)\n", because="a local torch"
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, and the functions handed on."""
        if not isinstance(node, ast.Call):
            if function(node, module) in SEEDS and not is_called(node, module):
                message = f"`torch.cuda.{function(node, module)}` seeds CUDA devices only"
                yield self.rewrite(node, module, message, module.replace(node, f"{module.manager}.manual_seed"))
            return
        name = function(node.func, module)
        given = bind(node, "seed")
        if name in SEEDS and given:
            again = _said_again(node, module)
            edits = called_instead(node, given["seed"], f"{module.manager}.manual_seed", module)
            message = f"`torch.cuda.{name}` seeds CUDA devices only"
            yield self.rewrite(node, module, message, *([again] if again is not None else edits))
        elif name in SEEDS:
            yield self.review(node, module, f"`torch.cuda.{name}` seeds CUDA devices only", "dm.manual_seed(seed)")
        elif name in OTHERS:
            yield self.review(
                node,
                module,
                f"`torch.cuda.{name}` is about CUDA's generators only",
                OTHERS[name],
                stays=name not in SILENT,
            )


def _said_again(node: ast.Call, module: Module) -> Edit | None:
    """The line goes where the one before seeds with the same: ``manual_seed(s)``, then ``manual_seed_all(s)``."""
    statement = module.statement(node)
    before = module.neighbour(statement, -1)
    called = before.value if isinstance(before, ast.Expr) and isinstance(statement, ast.Expr) else None
    if not isinstance(called, ast.Call) or function(called.func, module) not in SEEDS or not node.args:
        return None
    same = list(map(ast.dump, called.args)) == list(map(ast.dump, node.args))
    return line_of(statement, module) if same else None
