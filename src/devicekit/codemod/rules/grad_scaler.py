"""``GradScaler`` is CUDA's where it is not told another device.

``torch.cuda.amp.GradScaler`` and ``torch.amp.GradScaler()``, whose device is "cuda" by default, warn and pass
everything through where there is no CUDA. Read in torch/amp/grad_scaler.py of torch 2.6 and 2.13.
https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind, is_handed_on, only_on_accelerator, put_first
from devicekit.codemod.facts.devices import device, text_of_cuda
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule, rewrites

CUDA = ("torch.cuda.amp.GradScaler", "torch.cuda.amp.grad_scaler.GradScaler")
ANY = ("torch.amp.GradScaler", "torch.amp.grad_scaler.GradScaler", "torch.GradScaler")
PARAMETERS = ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled")
SAID = "the gradient scaler is CUDA's, and passes everything through elsewhere"
BY_HAND = "torch.amp.GradScaler(dm.device.type, enabled=... and dm.is_accelerator)"


class GradScaler(Rule):
    """``torch.amp.GradScaler`` takes any device's type; it scales with an accelerator, where it did for CUDA."""

    name = "grad-scaler"
    visits = (ast.Call, ast.Name, ast.Attribute)
    hints = ("GradScaler",)
    examples = (
        rewrites(
            "scaler = torch.cuda.amp.GradScaler()",
            "scaler = torch.amp.GradScaler(dm.device.type, enabled=dm.is_accelerator)",
            gives="scaler.is_enabled() == torch.cuda.is_available() or scaler.is_enabled()",
        ),
        rewrites(
            "half = True\nscaler = torch.amp.GradScaler(init_scale=8.0, enabled=half)",
            "half = True\nscaler = torch.amp.GradScaler(dm.device.type, init_scale=8.0, enabled=half and "
            "dm.is_accelerator)",
            gives="float(scaler.scale(torch.ones(1))) in (1.0, 8.0)",
            runs=False,
        ),
        Rewrites(
            "import torch\nfrom torch.cuda.amp import GradScaler\n\nscaler = GradScaler(8.0)\n"
            "known = isinstance(scaler, GradScaler)\n",
            "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n"
            "scaler = torch.amp.GradScaler(dm.device.type, 8.0, enabled=dm.is_accelerator)\n"
            "known = isinstance(scaler, torch.amp.GradScaler)\n",
            gives="known",
        ),
        rewrites(
            'scaler = torch.amp.GradScaler("cuda", enabled=False)',
            "scaler = torch.amp.GradScaler(dm.device.type, enabled=False)",
            gives="scaler.is_enabled()",
        ),
        Leaves("import torch\n\nscaler = torch.amp.GradScaler('cpu')\n", because="it is the CPU's"),
        Leaves("class GradScaler:\n    pass\n\n\nscaler = GradScaler()\n", because="it is a class of this file"),
        Leaves(
            "import torch\n\n\ndef run(kind):\n    return torch.amp.GradScaler(kind)\n",
            because="the device is handed in",
        ),
        Reports("from torch.cuda.amp import GradScaler\n\n\nclass Own(GradScaler):\n    pass\n"),
        Reports("from torch.cuda.amp import GradScaler\n\n\ndef run(options):\n    return GradScaler(**options)\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls, and the class where it is only named."""
        if isinstance(node, ast.Call):
            name = module.name(node.func)
            if name in CUDA:
                yield self._of_cuda(node, module)
            elif name in ANY:
                yield from self._of_any(node, module)
        elif is_handed_on(node, module, *CUDA):
            yield self._named(node, module)

    def _of_cuda(self, call: ast.Call, module: Module) -> Finding:
        given = bind(call, *PARAMETERS)
        if given is None:
            return self.review(call, module, f"{SAID}; what it is given cannot be told from the text", BY_HAND)
        named = module.replace(call.func, f"{module.torch}.amp.GradScaler")
        first = put_first(call, f"{module.device}.type", given.get("enabled"), module)
        return self.rewrite(call, module, SAID, named, *first)

    def _of_any(self, call: ast.Call, module: Module) -> Iterator[Finding]:
        given = bind(call, "device", *PARAMETERS)
        if given is None:
            yield self.review(call, module, "whose the gradient scaler is cannot be told from the text", BY_HAND)
            return
        kind = given.get("device")
        if kind is None:
            first = put_first(call, f"{module.device}.type", given.get("enabled"), module)
            yield self.rewrite(call, module, SAID, *first)
        elif device(kind, module) is not None:
            was_off = text_of_cuda(kind, module) is not None  # without CUDA; not so where it said the CPU then
            switch = only_on_accelerator(call, given.get("enabled"), module) if was_off else []
            yield self.rewrite(call, module, SAID, module.replace(kind, f"{module.device}.type"), *switch)

    def _named(self, node: ast.AST, module: Module) -> Finding:
        said = "the rewritten scaler is a `torch.amp.GradScaler`, of which this class is a special case"
        if _is_annotation(node, module) or _is_asked(node, module):
            return self.rewrite(node, module, said, module.replace(node, f"{module.torch}.amp.GradScaler"))
        return self.review(node, module, f"CUDA's gradient scaler is handed on; {said}", BY_HAND, residual=True)


def _is_annotation(node: ast.AST, module: Module) -> bool:
    child = node
    for above in module.parents(node):
        if isinstance(above, (ast.stmt, ast.arg)):
            return child in (getattr(above, "annotation", None), getattr(above, "returns", None))
        child = above
    return False


def _is_asked(node: ast.AST, module: Module) -> bool:
    above = module.parent(node)
    if isinstance(above, ast.Tuple):
        above = module.parent(above)
    return isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id == "isinstance"
