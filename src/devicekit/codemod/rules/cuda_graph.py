"""CUDA graphs: work that is recorded once and replayed.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

GRAPHS = ("CUDAGraph", "graph", "make_graphed_callables", "graph_pool_handle", "is_current_stream_capturing")


class CudaGraph(Rule):
    """No other device of torch has a call that does the same: without them the same code runs, only slower."""

    name = "cuda-graph"
    visits = (ast.Call,)
    examples = (
        Reports("import torch\n\n\ndef record():\n    return torch.cuda.CUDAGraph()\n", kind=Kind.CANNOT),
        Reports(
            "from torch.cuda import graph\n\n\ndef run(g, f):\n    with graph(g):\n        f()\n", kind=Kind.CANNOT
        ),
        Leaves("import graphs as torch\n\ntorch.cuda.graph(1)\n", because="it is no torch"),
        Leaves("class Plot:\n    def graph(self):\n        return self.graph()\n", because="this graph is a method"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls."""
        assert isinstance(node, ast.Call)
        name = function(node.func, module)
        if name in GRAPHS:
            message = f"`torch.cuda.{name}` is about CUDA graphs, which only CUDA has"
            yield self.cannot(node, module, message, "run it without a graph where dm.device.type is not cuda")
