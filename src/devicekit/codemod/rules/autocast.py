"""``torch.cuda.amp.autocast`` and ``torch.autocast("cuda")`` compute in 16 bits on CUDA only.

Without CUDA both warn and do nothing, so they must go on doing nothing on a CPU.
``torch.cuda.amp.autocast`` has ``enabled`` first, ``torch.autocast`` the device and then ``dtype``; the first one's
dtype is float16 also inside of another autocast, the second's is then that one's. Read in torch/amp/autocast_mode.py
and torch/cuda/amp/autocast_mode.py of torch 2.6 and 2.13. https://docs.pytorch.org/docs/stable/amp.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind, by_name, is_called, is_handed_on, only_on_accelerator, put_first
from devicekit.codemod.facts.devices import device, text_of_cuda
from devicekit.codemod.facts.mixed_precision import AUTOCAST, CUDA_AUTOCAST, switches_on_elsewhere
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule, rewrites

PARAMETERS = ("enabled", "dtype", "cache_enabled")
BY_HAND = "torch.autocast(dm.device.type, dtype=..., enabled=... and dm.is_accelerator)"


class Autocast(Rule):
    """``torch.autocast`` takes any device's type; it is switched on with an accelerator, where it was for CUDA."""

    name = "autocast"
    visits = (ast.Call, ast.Name, ast.Attribute)
    hints = ("autocast",)
    examples = (
        rewrites(
            "with torch.cuda.amp.autocast():\n    y = torch.ones(2, 2) @ torch.ones(2, 2)",
            "with torch.autocast(dm.device.type, dtype=torch.float16, enabled=dm.is_accelerator):\n"
            "    y = torch.ones(2, 2) @ torch.ones(2, 2)",
            gives="y.dtype",
        ),
        rewrites(
            "half = True\nwith torch.cuda.amp.autocast(half or 0, torch.bfloat16, False):\n    y = torch.ones(2).sum()",
            "half = True\nwith torch.autocast(dm.device.type, enabled=(half or 0) and dm.is_accelerator, "
            "dtype=torch.bfloat16, cache_enabled=False):\n    y = torch.ones(2).sum()",
            gives="y",
        ),
        Rewrites(
            "import torch\nfrom torch.cuda.amp import autocast\n\n\n@autocast(enabled=False)\ndef double(x):\n"
            "    return 2 * x\n",
            "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n\n"
            "@torch.autocast(dm.device.type, enabled=False)\ndef double(x):\n    return 2 * x\n",
            gives="double(torch.ones(2))",
        ),
        rewrites(
            'a = b = False\nwith torch.autocast("cuda", torch.bfloat16, a or b):\n    y = torch.ones(2).sum()',
            "a = b = False\nwith torch.autocast(dm.device.type, torch.bfloat16, (a or b) and dm.is_accelerator):\n"
            "    y = torch.ones(2).sum()",
            gives="y",
        ),
        rewrites(
            'context = torch.autocast(device_type="cuda" if torch.cuda.is_available() else "cpu")',
            "context = torch.autocast(device_type=dm.device.type)",
            gives="context.fast_dtype is torch.bfloat16 or dm.is_accelerator",
            runs=False,
        ),
        Leaves(
            "import torch\n\n\ndef run(device):\n    return torch.autocast('cpu'), torch.autocast(device.type)\n",
            because="these are the CPU's, and one that is handed in",
        ),
        Leaves(
            "def autocast():\n    pass\n\n\ndef run(accelerator):\n    accelerator.autocast()\n    autocast()\n",
            because="these are not torch's",
        ),
        Reports("import torch\n\n\ndef run(options):\n    return torch.cuda.amp.autocast(**options)\n"),
        Reports(
            "import torch\n\nwith torch.autocast('cpu'):\n    with torch.cuda.amp.autocast(enabled=False):\n"
            "        pass\n"
        ),
        Reports(
            "from contextlib import nullcontext\n\nfrom torch import autocast\n\nhalf = False\n"
            "scope = autocast if half else nullcontext\nwith scope('cuda'):\n    pass\n"
        ),
        Reports("import torch\n\nautocast = torch.cuda.amp.autocast\n"),
        Reports(
            "import torch\n\n\n@torch.jit.script\ndef f(x):\n    with torch.cuda.amp.autocast(False):\n"
            "        return x + 1\n"
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls of autocast, of what is one under another name, and CUDA's where it is passed on."""
        if isinstance(node, ast.Call):
            name = module.name(node.func)
            if name in CUDA_AUTOCAST:
                yield self._settled(node, module, self._of_cuda(node, module))
            elif name in AUTOCAST:
                yield from self._of_any(node, module)
            elif isinstance(node.func, ast.Name) and _names_cuda(node, module) and _is_other_name(node.func, module):
                yield self.review(node, module, f"`{node.func.id}` may be autocast, for CUDA", BY_HAND)
        elif is_handed_on(node, module, *CUDA_AUTOCAST):
            said = "CUDA's autocast is handed on, and what is made of it cannot be told here"
            yield self.review(node, module, said, BY_HAND, residual=True)

    def _of_cuda(self, call: ast.Call, module: Module) -> list[Edit] | None:
        given = bind(call, *PARAMETERS)
        if given is None:
            return None
        switch = given.get("enabled")
        first = f"{module.device}.type"
        if "dtype" not in given and not (isinstance(switch, ast.Constant) and not switch.value):
            first += f", dtype={module.torch}.float16"
        edits = by_name(call, put_first(call, first, switch, module), PARAMETERS, module)
        return [module.replace(call.func, f"{module.torch}.autocast"), *edits]

    def _of_any(self, call: ast.Call, module: Module) -> Iterator[Finding]:
        given = bind(call, "device_type", "dtype", "enabled", "cache_enabled")
        if given is None:
            if _names_cuda(call, module):
                yield self._settled(call, module, None)
            return
        kind = given.get("device_type")
        meant = device(kind, module)
        if kind is None or meant is None:
            return
        edits = [module.replace(kind, f"{module.device}.type")]
        if text_of_cuda(kind, module) is None:  # the CPU's was on already where there is no CUDA
            yield self.rewrite(call, module, "autocast reaches CUDA and the CPU only", *edits)
        else:
            edits += only_on_accelerator(call, given.get("enabled"), module)
            yield self._settled(call, module, edits if meant.index is None else None)

    def _settled(self, call: ast.Call, module: Module, edits: list[Edit] | None) -> Finding:
        said = "autocast is CUDA's, and does nothing elsewhere"
        if edits is None:
            return self.review(call, module, f"{said}; what it is given cannot be told from the text", BY_HAND)
        if switches_on_elsewhere(module):
            said += "; this file has an autocast that may be the CPU's, which the rewritten one would switch off"
            done = self.rewrite(call, module, said, *edits)
            return self.review(call, module, said, f"if they are not nested: {done.suggestion}")
        return self.rewrite(call, module, said, *edits)


def _names_cuda(call: ast.Call, module: Module) -> bool:
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "device_type")]
    return any(text_of_cuda(value, module) is not None for value in given)


def _is_other_name(name: ast.Name, module: Module) -> bool:
    """It is bound to an expression that has an autocast in it, uncalled."""
    bound = [module.parent(n) for n in module.names.uses.get(name.id, ())]
    parts = [part for b in bound if isinstance(b, ast.Assign) for part in ast.walk(b.value)]
    return any(module.name(part) in AUTOCAST + CUDA_AUTOCAST and not is_called(part, module) for part in parts)
