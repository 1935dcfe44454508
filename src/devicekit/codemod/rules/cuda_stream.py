"""Streams and events of CUDA, and marks for its profiler.

Without CUDA they raise (``Tried to instantiate dummy base class Event``). Only CUDA's have an address to hand on:
https://docs.pytorch.org/docs/stable/generated/torch.cuda.Stream.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import argument_span, bind, is_called
from devicekit.codemod.facts.cuda_calls import Asked, asked, function
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

FACADE = {
    "Stream": "create_stream",
    "Event": "create_event",
    "stream": "stream",
    "StreamContext": "stream",
    "set_stream": "set_stream",
    "current_stream": "current_stream",
    "default_stream": "default_stream",
}
KEEP = 'keep it under `if dm.device.type == "cuda":`'
NVTX = "torch.profiler.record_function(name) marks a range on every device"
NATIVE = {
    "cuda_stream", "cuda_event", "_as_parameter_", "__cuda_stream__", "record_stream", "ipc_handle", "from_ipc_handle",
    "CUDAGraph", "make_graphed_callables", "ExternalStream", "get_stream_from_external", "create_execution_context",
}  # fmt: skip
"""What only CUDA's streams have, or is only given those."""
LAUNCHERS = {"cuda", "cupy", "pycuda", "tensorrt", "tensorrt_llm", "torch_tensorrt", "triton"}
"""Packages that work in CUDA's streams."""


class CudaStream(Rule):
    """The facade gives the runtime's own, and stand-ins where all is done in order; nobody else can read their address.

    A file that uses one in a way which only CUDA has keeps all of them.
    """

    name = "cuda-stream"
    visits = (ast.Call, ast.Attribute, ast.Name)
    examples = (
        rewrites(
            "start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))\nstart.record()\nend.record()",
            "start, end = (dm.create_event(enable_timing=True) for _ in range(2))\nstart.record()\nend.record()",
            gives="start.elapsed_time(end) >= 0",
        ),
        rewrites(
            "side = torch.cuda.Stream(priority=-1)  # first\nside.wait_stream(torch.cuda.current_stream())\n"
            "with torch.cuda.stream(side):\n    x = torch.ones(2) * 2\ntorch.cuda.default_stream().wait_stream(side)",
            "side = dm.create_stream(priority=-1)  # first\nside.wait_stream(dm.current_stream())\n"
            "with dm.stream(side):\n    x = torch.ones(2) * 2\ndm.default_stream().wait_stream(side)",
            gives="x.tolist()",
        ),
        rewrites(
            "def make(device, level):\n    return torch.cuda.Stream(device, level)",
            "def make(device, level):\n    return dm.create_stream(device=device, priority=level)",
            gives="make(None, 0).query()",
        ),
        rewrites(
            'torch.cuda.set_stream(torch.cuda.Stream(device="cuda"))',
            "dm.set_stream(dm.create_stream())",
        ),
        Reports("import torch\n\n\ndef here(rank):\n    return torch.cuda.current_stream(rank)\n"),
        Reports("import torch\n\n\ndef run(engine):\n    engine(torch.cuda.current_stream().cuda_stream)\n"),
        Reports("import tensorrt\nimport torch\n\n\ndef start():\n    return torch.cuda.Stream()\n"),
        Reports("import torch as th\n\n\ndef check(s):\n    if not isinstance(s, th.cuda.Stream):\n"
                "        s = th.cuda.Stream()\n", count=2),
        Reports("import torch\n\n\ndef share():\n    return torch.cuda.Event(interprocess=True)\n"),
        Reports("from torch.cuda import nvtx\n\n\ndef step():\n    nvtx.range_push('step')\n"),
        Leaves("import torch\n\nstream = torch.xpu.Stream\n", because="it is another vendor's"),
        Leaves("import cupy\n\nstream = cupy.cuda.Stream()\n", because="it is no torch"),
    )  # fmt: skip

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, annotations, and classes that something is compared with."""
        if not isinstance(node, ast.Call):
            name = function(node, module)
            if name in FACADE and not is_called(node, module) and isinstance(node.ctx, ast.Load):  # type: ignore[attr-defined]
                yield self._named(node, name, module)
            return
        name = function(node.func, module)
        if name in FACADE:
            yield self._called(node, name, module)
        elif name == "ExternalStream":
            message = "`torch.cuda.ExternalStream` is a stream of CUDA's that something else has made"
            yield self.review(node, module, message, KEEP, stays=True)
        elif name.startswith("nvtx."):
            message = f"`torch.cuda.{name}` is for NVIDIA's profiler, and raises without CUDA"
            yield self.review(node, module, message, NVTX, stays=True)

    def _named(self, node: ast.AST, name: str, module: Module) -> Finding:
        if _is_annotation(node, module):
            return self.harmless(node, module, f"`torch.cuda.{name}` in an annotation is there without CUDA as well")
        message = f"`torch.cuda.{name}` is CUDA's, and what becomes of it here is not known"
        return self.review(node, module, message, f"dm.{FACADE[name]}, where it is to be called", stays=True)

    def _called(self, node: ast.Call, name: str, module: Module) -> Finding:
        message = f"`torch.cuda.{name}` is about CUDA's streams, and raises without CUDA"
        native = _native(module)
        if native:
            message += f"; `{native}` in this file may need CUDA's own"
            how = f"dm.{FACADE[name]}(...), if it needs none; else {KEEP}"
            return self.review(node, module, message, how, stays=True)
        edits = _edits(node, name, module)
        if edits is None:
            return self.review(node, module, message, f"dm.{FACADE[name]}(...)", stays=True)
        return self.rewrite(node, module, message, *edits)


def _edits(call: ast.Call, name: str, module: Module) -> list[Edit] | None:
    """The same call of the manager; None where it takes none of the arguments."""
    renamed = module.replace(call.func, f"{module.manager}.{FACADE[name]}")
    if name == "Event":
        return None if bind(call, "enable_timing", "blocking") is None else [renamed]
    if name in ("stream", "StreamContext", "set_stream"):
        return [renamed] if bind(call, "stream") else None
    given = bind(call, "device", "priority") if name == "Stream" else bind(call, "device")
    if given is None:
        return None
    if asked(given.get("device"), module) == Asked.CURRENT and "priority" not in given:
        return [module.replace(call, f"{module.manager}.{FACADE[name]}()")]
    if name != "Stream":
        return None
    named = zip(call.args, ("device=", "priority="), strict=False)
    return [renamed, *(Edit(at, at, word) for a, word in named for at in (argument_span(call, a, module)[0],))]


def _native(module: Module) -> str:
    """What this file has that only works with CUDA's own streams; empty where there is nothing."""
    known = module.memo.get(__name__)
    if known is None:
        known = module.memo[__name__] = next(_natives(module), "")
    assert isinstance(known, str)
    return known


def _natives(module: Module) -> Iterator[str]:
    yield from sorted(n for n in module.names.all if n in NATIVE or n.startswith("execute_async"))
    for node in module.every(ast.Import, ast.ImportFrom):
        roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [_source(node)]
        yield from (root for root in roots if root.partition(".")[0] in LAUNCHERS)
    for node in module.every(ast.Attribute, ast.Name):
        is_class = function(node, module) in ("Stream", "Event") and not is_called(node, module)
        if is_class and not _is_annotation(node, module):
            yield module.code(node)


def _source(node: ast.AST) -> str:
    return node.module or "" if isinstance(node, ast.ImportFrom) and not node.level else ""


def _is_annotation(node: ast.AST, module: Module) -> bool:
    child = node
    for above in module.parents(node):
        if isinstance(above, (ast.arg, ast.AnnAssign)):
            return above.annotation is child
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return above.returns is child
        if isinstance(above, ast.stmt):
            return False
        child = above
    return False
