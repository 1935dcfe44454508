"""``torch.cuda.empty_cache`` and what counts CUDA's memory.

Without CUDA some of them give 0 and some raise (``mem_get_info``, ``memory_summary``). The facade's figures are this
process's on a CPU, so a log that showed 0 there shows what is used.
https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind, is_called
from devicekit.codemod.facts.cuda_calls import Asked, asked, function
from devicekit.codemod.facts.usage import in_parentheses, is_dropped, is_told, stands_alone, under_index
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

FIGURES = {
    "memory_allocated": "allocated",
    "max_memory_allocated": "peak",
    "memory_reserved": "reserved",
    "memory_cached": "reserved",
}
RESETS = ("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached")
ENTRIES: dict[str, dict[object, str]] = {
    "memory_stats": {
        "allocated_bytes.all.current": "allocated",
        "allocated_bytes.all.peak": "peak",
        "reserved_bytes.all.current": "reserved",
    },
    "mem_get_info": {0: "available", 1: "total"},
}
GUARD = 'keep it under `if dm.device.type == "cuda":`'
LEFT = {
    "max_memory_reserved": "dm.memory_stats() has .reserved now and .peak of what is allocated",
    "max_memory_cached": "dm.memory_stats() has .reserved now and .peak of what is allocated",
    "memory_stats": "dm.memory_stats(), with .total .available .allocated .reserved .peak",
    "ipc_collect": 'if dm.device.type == "cuda": torch.cuda.ipc_collect()',
    "set_per_process_memory_fraction": 'if dm.device.type == "cuda": set it',
    "memory_snapshot": GUARD,
    "reset_accumulated_memory_stats": GUARD,
    "_record_memory_history": GUARD,
    "_dump_snapshot": GUARD,
    "_snapshot": GUARD,
}
SILENT = ("max_memory_reserved", "max_memory_cached", "memory_stats")
"""They give 0 and an empty dict without CUDA."""


class CudaMemory(Rule):
    """The facade has the same figures, in bytes, and None for what a runtime cannot tell: there stands 0, as torch
    says without CUDA.
    """

    name = "cuda-memory"
    visits = (ast.Call, ast.Attribute, ast.Name, ast.Subscript)
    examples = (
        rewrites("torch.cuda.empty_cache()", "dm.empty_cache()"),
        rewrites(
            "peak = torch.cuda.max_memory_allocated() / 2**20",
            "peak = (dm.memory_stats().peak or 0) / 2**20",
        ),
        rewrites(
            "free, total = torch.cuda.mem_get_info()\nroom = torch.cuda.mem_get_info('cuda')[0]",
            "free, total = dm.memory_stats().available or 0, dm.memory_stats().total or 0\n"
            "room = dm.memory_stats().available or 0",
            gives="room <= total",
        ),
        rewrites(
            "print(torch.cuda.memory_summary(device='cuda', abbreviated=True))",
            "print(dm.memory_stats())",
        ),
        rewrites(
            "def clean(device):\n    torch.cuda.reset_peak_memory_stats(device)  # anew",
            "def clean(device):\n    with dm.device_index(device):\n        dm.reset_peak_memory()  # anew",
            gives="clean(0)",
        ),
        rewrites("clean = torch.cuda.empty_cache", "clean = dm.empty_cache", gives="clean()"),
        Reports("import torch\n\n\ndef peak(device):\n    return torch.cuda.max_memory_allocated(device)\n"),
        Reports("from torch import cuda\n\ntop = cuda.max_memory_reserved()\n"),
        Reports("import torch\n\nif torch.cuda.device_count() > 1:\n    torch.cuda.ipc_collect()\n"),
        Leaves("import torch\n\ntorch.mps.empty_cache()\n", because="it is another vendor's"),
        Leaves("import cupy as torch\n\ntorch.cuda.empty_cache()\n", because="torch is cupy here"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, functions that are handed on, and entries of ``memory_stats()``."""
        if isinstance(node, ast.Subscript):
            yield from self._entry(node, module)
            return
        if not isinstance(node, ast.Call):
            yield from self._handed_on(node, module)
            return
        name = function(node.func, module)
        message = f"`torch.cuda.{name}` is about CUDA's memory only"
        if name in LEFT:
            if not _part(module.parent(node), module):
                yield self.review(node, module, message, LEFT[name], stays=name not in SILENT)
        elif name in FIGURES or name in (*RESETS, "empty_cache", "mem_get_info", "memory_summary"):
            yield self._call(name, node, module, message)

    def _call(self, name: str, node: ast.Call, module: Module, message: str) -> Finding:
        given = bind(node, *(("device", "abbreviated") if name == "memory_summary" else ("device",)))
        which = Asked.UNKNOWN if given is None else asked(given.get("device"), module)
        if which == Asked.CURRENT:
            return self.rewrite(node, module, message, module.replace(node, _text(name, node, module, module.manager)))
        if which == Asked.NUMBER and given is not None and name in FIGURES:
            manager = f"devicekit.DeviceManager({module.code(given['device'])})"
            return self.rewrite(node, module, message, module.replace(node, _text(name, node, module, manager)))
        if given is not None and name in RESETS and stands_alone(node, module):
            return self.rewrite(
                node, module, message, *under_index(node, given["device"], "reset_peak_memory()", module)
            )
        return self.review(
            node,
            module,
            f"{message}, and the device that it asks about is not known here",
            f"with dm.device_index(...): {_text(name, node, module, 'dm')}",
            stays=name in ("mem_get_info", "memory_summary", *RESETS),
        )

    def _entry(self, node: ast.Subscript, module: Module) -> Iterator[Finding]:
        part = _part(node, module)
        if part:
            text = in_parentheses(f"{module.manager}.memory_stats().{part} or {_least(node, module)}", node, module)
            message = "`torch.cuda.memory_stats` and `mem_get_info` are about CUDA's memory only"
            yield self.rewrite(node, module, message, module.replace(node, text))

    def _handed_on(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        name = function(node, module)
        if is_called(node, module) or not (name == "empty_cache" or name in FIGURES or name in RESETS):
            return
        manager = module.manager
        text = {"empty_cache": f"{manager}.empty_cache"}.get(name, f"{manager}.reset_peak_memory")
        if name in FIGURES:
            text = f"(lambda: {manager}.memory_stats().{FIGURES[name]} or 0)"
        yield self.rewrite(node, module, f"`torch.cuda.{name}` is about CUDA's memory only", module.replace(node, text))


def _text(name: str, node: ast.Call, module: Module, manager: str) -> str:
    """What to write for a call about the manager's device."""
    stats = f"{manager}.memory_stats()"
    if name == "empty_cache":
        return f"{manager}.empty_cache()"
    if name in RESETS:
        return f"{manager}.reset_peak_memory()"
    if name == "memory_summary":
        return stats if is_told(node, module) or is_dropped(node, module) else f"str({stats})"
    if name in FIGURES:
        return in_parentheses(f"{stats}.{FIGURES[name]} or {_least(node, module)}", node, module)
    both = ", ".join(f"{stats}.{part} or 0" for part in ENTRIES["mem_get_info"].values())
    return both if isinstance(module.parent(node), ast.Assign) else f"({both})"


def _least(node: ast.AST, module: Module) -> int:
    """What stands for a figure that is not known: nothing is divided by 0."""
    above = module.parent(node)
    divides = isinstance(above, ast.BinOp) and isinstance(above.op, (ast.Div, ast.FloorDiv, ast.Mod))
    return 1 if divides and above.right is node else 0  # type: ignore[union-attr]


def _part(node: ast.AST | None, module: Module) -> str:
    """What ``memory_stats()["allocated_bytes.all.peak"]`` or ``mem_get_info()[0]`` of the current device is here."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Call):
        return ""
    parts = ENTRIES.get(function(node.value.func, module), {})
    key = node.slice.value if isinstance(node.slice, ast.Constant) else None
    given = bind(node.value, "device")
    known = key in parts and given is not None and asked(given.get("device"), module) == Asked.CURRENT
    return parts[key] if known else ""
