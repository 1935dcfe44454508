"""``torch.cuda.amp.custom_fwd`` and ``custom_bwd`` follow CUDA's autocast only.

``torch.amp`` has the same two since torch 2.4, with a ``device_type``. Read in torch/amp/autocast_mode.py of torch 2.6
and 2.13. https://docs.pytorch.org/docs/stable/amp.html#torch.amp.custom_fwd
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import bind, is_handed_on
from devicekit.codemod.facts.devices import text_of_cuda
from devicekit.codemod.facts.mixed_precision import switches_on_elsewhere
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule

NAMES = {
    f"torch.cuda.amp{part}.{name}": name for part in ("", ".autocast_mode") for name in ("custom_fwd", "custom_bwd")
}
SAID = "the function follows CUDA's autocast, and no other device's"
FUNCTION = (
    "class Double(torch.autograd.Function):\n    @staticmethod\n    @{}\n    def forward(ctx, x):\n"
    "        return 2 * x\n\n"
    "    @staticmethod\n    @{}\n    def backward(ctx, grad):\n        return 2 * grad\n\n\n"
    "x = torch.ones(2, requires_grad=True)\nDouble.apply(x).sum().backward()\n"
)
HEAD = "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n\n"


class CustomFwd(Rule):
    """torch.amp's decorators take any device's type; without autocast they do nothing, as before."""

    name = "custom-fwd"
    visits = (ast.FunctionDef, ast.Call, ast.Name, ast.Attribute)
    hints = ("custom_fwd", "custom_bwd")
    examples = (
        Rewrites(
            "import torch\nfrom torch.cuda.amp import custom_bwd, custom_fwd\n\n\n"
            + FUNCTION.format("custom_fwd(cast_inputs=torch.float32)", "custom_bwd"),
            HEAD
            + FUNCTION.format(
                "torch.amp.custom_fwd(device_type=dm.device.type, cast_inputs=torch.float32)",
                "torch.amp.custom_bwd(device_type=dm.device.type)",
            ),
            gives="x.grad",
        ),
        Rewrites(
            "import torch\n\n\ndef double(ctx, x):\n    return 2 * x\n\n\ndouble = torch.cuda.amp.custom_fwd(double)\n",
            HEAD + "def double(ctx, x):\n    return 2 * x\n\n\n"
            "double = torch.amp.custom_fwd(double, device_type=dm.device.type)\n",
        ),
        Rewrites(
            "import torch\n\n\n@torch.amp.custom_bwd(device_type='cuda')\ndef f(ctx, g):\n    return g\n",
            HEAD + "@torch.amp.custom_bwd(device_type=dm.device.type)\ndef f(ctx, g):\n    return g\n",
        ),
        Leaves(
            "import torch\n\n\n@torch.amp.custom_fwd(device_type='cpu')\ndef f(ctx, x):\n    return x\n",
            because="it says its device",
        ),
        Leaves(
            "def custom_fwd(f):\n    return f\n\n\n@custom_fwd\ndef f(ctx, x):\n    return x\n",
            because="this one is the file's own",
        ),
        Reports("import functools\n\nimport torch\n\nfwd = functools.partial(torch.cuda.amp.custom_fwd)\n"),
        Reports(
            "import torch\n\n\n@torch.cuda.amp.custom_fwd\ndef f(ctx, x):\n    with torch.autocast('cpu'):\n"
            "        return x @ x\n"
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Decorators are told at their function, other uses where they are."""
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                edits = _edits(decorator, module)
                if edits is not None:
                    yield self._settled(node, module, edits)
        elif isinstance(node, ast.Call) and not _decorates(node, module):
            edits = _edits(node, module)
            if edits is not None:
                yield self._settled(node, module, edits)
        elif is_handed_on(node, module, *NAMES) and not _decorates(node, module):
            how = "functools.partial(torch.amp.custom_fwd, device_type=dm.device.type)"
            yield self.review(node, module, f"{SAID}; it is handed on here", how, residual=True)

    def _settled(self, node: ast.AST, module: Module, edits: list[Edit]) -> Finding:
        done = self.rewrite(node, module, SAID, *edits)
        if not edits or switches_on_elsewhere(module):
            said = f"{SAID}; on a CPU the rewritten one would follow the CPU's, which this file may switch on"
            how = "torch.amp.custom_fwd(device_type=dm.device.type), if that is wanted"
            return self.review(node, module, said, how)
        return done


def _edits(node: ast.expr, module: Module) -> list[Edit] | None:
    """None: it is not one of them. Empty: it cannot be told what it is given."""
    call = node if isinstance(node, ast.Call) else None
    full = module.name(call.func if call else node) or ""
    general = full.startswith("torch.amp.")
    name = NAMES.get(full.replace("torch.amp.", "torch.cuda.amp."))
    if name is None:
        return None
    torchs, kind = f"{module.torch}.amp.{name}", f"device_type={module.device}.type"
    if call is None:
        return None if general else [module.replace(node, f"{torchs}({kind})")]
    kinds = [k.value for k in call.keywords if k.arg == "device_type"]
    if general:
        return [module.replace(k, f"{module.device}.type") for k in kinds if text_of_cuda(k, module)] or None
    if bind(call, "fwd" if name == "custom_fwd" else "bwd", "cast_inputs") is None:
        return []
    argument = module.append_argument(call, kind) if call.args else module.prepend_argument(call, kind)
    return [module.replace(call.func, torchs), argument]


def _decorates(node: ast.AST, module: Module) -> bool:
    above = module.parent(node)
    return isinstance(above, ast.FunctionDef) and node in above.decorator_list
