"""What a CUDA device is called and can do.

``get_device_name`` and the others raise where there is no CUDA; ``is_bf16_supported`` is False there. With CUDA it is
True on every card, for what a card does not compute itself is emulated (torch/cuda/__init__.py).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind
from devicekit.codemod.facts.cuda_calls import Asked, asked, function
from devicekit.codemod.facts.devices import is_available
from devicekit.codemod.facts.usage import in_parentheses, is_told, quoted
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

LEFT = {
    "get_device_properties": 'dm.name, dm.memory_stats().total; the rest under `if dm.device.type == "cuda":`',
    "get_device_capability": "dm.supports(dtype), where it decides about a number format",
    "get_arch_list": 'keep it under `if dm.device.type == "cuda":`',
    "get_gencode_flags": 'keep it under `if dm.device.type == "cuda":`',
    "is_initialized": "leave it, where a False does no harm",
    "is_tf32_supported": 'dm.supports("tf32") == "native"',
    "init": "remove it: a runtime starts by itself",
}
SILENT = ("get_arch_list", "get_gencode_flags", "is_initialized", "is_tf32_supported")
"""They answer without CUDA as well: empty, or False."""


class CudaProperties(Rule):
    """Names are for logs and figures for decisions: the facade has those that mean something on every device."""

    name = "cuda-properties"
    visits = (ast.Call, ast.Attribute)
    examples = (
        rewrites("print(torch.cuda.get_device_name(0))", "print(dm.name)"),
        rewrites(
            'dtype = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float16"',
            'dtype = "bfloat16" if dm.is_accelerator and dm.supports(torch.bfloat16) != "no" else "float16"',
            gives="len(dtype) < 9",
        ),
        rewrites(
            "half = torch.cuda.is_bf16_supported()",
            'half = dm.is_accelerator and dm.supports(torch.bfloat16) != "no"',
            gives="type(half).__name__",
        ),
        rewrites(
            "total = torch.cuda.get_device_properties('cuda').total_memory / 2**30",
            "total = (dm.memory_stats().total or 0) / 2**30",
            gives="total >= 0",
        ),
        Reports('import torch\n\nis_h100 = "H100" in torch.cuda.get_device_name()\n'),
        Reports("import torch as th\n\nif th.cuda.device_count():\n    major, _ = th.cuda.get_device_capability()\n"),
        Reports("import torch\n\n\ndef blocks(x):\n    return torch.cuda.get_device_properties(x.device).major\n"),
        Leaves("import torch\n\nprint(torch.xpu.get_device_name(0))\n", because="it is another vendor's"),
        Leaves("def f(props):\n    return props.total_memory\n", because="whose properties they are is not said here"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, and ``.total_memory`` of one."""
        if isinstance(node, ast.Attribute):
            yield from self._total(node, module)
            return
        assert isinstance(node, ast.Call)
        name = function(node.func, module)
        if name == "get_device_name":
            yield self._name(node, module)
        elif name == "is_bf16_supported":
            yield self._bfloat16(node, module)
        elif name in LEFT and not _total_of(module.parent(node), module):
            stays = name not in SILENT
            message = f"`torch.cuda.{name}` is about CUDA devices only" + (", and raises without one" if stays else "")
            yield self.review(node, module, message, LEFT[name], stays=stays)

    def _name(self, node: ast.Call, module: Module) -> Finding:
        message = "`torch.cuda.get_device_name` is about CUDA devices only, and raises without one"
        given = bind(node, "device")
        which = Asked.UNKNOWN if given is None else asked(given.get("device"), module)
        if given is None or which == Asked.UNKNOWN:
            return self.review(node, module, message, "devicekit.DeviceManager(index).name", stays=True)
        if not is_told(node, module):
            message += "; whether the name is only shown is not known here"
            return self.review(node, module, message, "dm.name", stays=True)
        manager = module.manager
        if which == Asked.NUMBER:
            manager = f"devicekit.DeviceManager({module.code(given['device'])})"
        return self.rewrite(node, module, message, module.replace(node, f"{manager}.name"))

    def _bfloat16(self, node: ast.Call, module: Module) -> Finding:
        message = "`torch.cuda.is_bf16_supported()` is True with CUDA, and False on every other device"
        if node.args or node.keywords:
            return self.review(node, module, message, 'dm.supports(torch.bfloat16) == "native"')
        no = quoted("no", node, module)
        text = f"{module.manager}.supports({module.torch}.bfloat16) != {no}"
        if not _after_is_available(node, module):
            text = f"{module.manager}.is_accelerator and {text}"
        above = module.parent(node)
        is_test = isinstance(above, (ast.If, ast.IfExp, ast.While)) and above.test is node
        if not is_test and not (isinstance(above, ast.BoolOp) and isinstance(above.op, ast.And)):
            text = in_parentheses(text, node, module)
        return self.rewrite(node, module, message, module.replace(node, text))

    def _total(self, node: ast.Attribute, module: Module) -> Iterator[Finding]:
        which = _total_of(node, module)
        if which and which != Asked.UNKNOWN:
            call = node.value
            assert isinstance(call, ast.Call)
            manager = module.manager
            if which == Asked.NUMBER:
                manager = f"devicekit.DeviceManager({module.code(call.args[0])})"
            text = in_parentheses(f"{manager}.memory_stats().total or 0", node, module)
            message = "`torch.cuda.get_device_properties` is about CUDA devices only, and raises without one"
            yield self.rewrite(node, module, message, module.replace(node, text))


def _total_of(node: ast.AST | None, module: Module) -> str:
    """Whose ``total_memory`` it is; empty where it is something else."""
    if not isinstance(node, ast.Attribute) or node.attr != "total_memory" or not isinstance(node.value, ast.Call):
        return ""
    call = node.value
    if function(call.func, module) != "get_device_properties" or len(call.args) > 1 or (call.keywords and call.args):
        return ""
    given = bind(call, "device")
    which = Asked.UNKNOWN if given is None else asked(given.get("device"), module)
    return "" if which == Asked.UNKNOWN or (which == Asked.NUMBER and not call.args) else which


def _after_is_available(node: ast.AST, module: Module) -> bool:
    """What runs it has asked whether there is a device."""
    for above in module.parents(node):
        if isinstance(above, ast.BoolOp) and isinstance(above.op, ast.And):
            before = above.values[: next(i for i, v in enumerate(above.values) if node is v or _holds(v, node))]
            if any(is_available(value, module) for value in before):
                return True
        elif isinstance(above, (ast.If, ast.IfExp)) and is_available(above.test, module):
            body = above.body if isinstance(above.body, list) else [above.body]
            return any(part is node or _holds(part, node) for part in body)
        elif isinstance(above, ast.FunctionDef):
            return False
    return False


def _holds(part: ast.AST, node: ast.AST) -> bool:
    return any(inner is node for inner in ast.walk(part))
