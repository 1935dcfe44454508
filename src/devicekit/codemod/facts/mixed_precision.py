"""Names of torch's mixed precision, and what else in a file may switch it on."""

from __future__ import annotations

import ast

from devicekit.codemod.facts.devices import text_of_cuda
from devicekit.codemod.module import Module

__all__ = ["AUTOCAST", "CUDA_AUTOCAST", "switches_on_elsewhere"]

CUDA_AUTOCAST = ("torch.cuda.amp.autocast", "torch.cuda.amp.autocast_mode.autocast")
"""Parameters: enabled, dtype, cache_enabled."""
AUTOCAST = ("torch.autocast", "torch.amp.autocast", "torch.amp.autocast_mode.autocast")
"""Parameters: device_type, dtype, enabled, cache_enabled."""
CPU_AUTOCAST = ("torch.cpu.amp.autocast", "torch.cpu.amp.autocast_mode.autocast")


def switches_on_elsewhere(module: Module) -> bool:
    """The file has an autocast that may be the CPU's.

    CUDA's does nothing on the CPU. Rewritten it is the CPU's there, and off: inside of another one of the CPU it would
    switch that off.
    """
    known = module.memo.get(__name__)
    if known is None:
        calls = module.every(ast.Call)
        known = module.memo[__name__] = any(_may_be_cpu(c, module) for c in calls if isinstance(c, ast.Call))
    return bool(known)


def _may_be_cpu(call: ast.Call, module: Module) -> bool:
    name = module.name(call.func)
    if name not in AUTOCAST:
        return name in CPU_AUTOCAST
    given = {k.arg: k.value for k in call.keywords}
    switch = call.args[2] if len(call.args) > 2 else given.get("enabled")
    if isinstance(switch, ast.Constant) and not switch.value:
        return False
    kind = call.args[0] if call.args else given.get("device_type")
    if isinstance(kind, ast.Attribute) and module.code(kind) == f"{module.device}.type":
        return not (switch is not None and f"{module.manager}.is_accelerator" in module.code(switch))
    return kind is not None and text_of_cuda(kind, module) is None
