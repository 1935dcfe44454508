"""``load_file(path, device="cuda")`` brings weights to a CUDA device.

safetensors wants the device as text or a number, and knows some only: a ``torch.device`` is "invalid" to it, as are
Vulkan's and most plug-ins' names (safetensors 0.8, ``safe_open``). https://huggingface.co/docs/safetensors/api/torch
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import Device, device
from devicekit.codemod.facts.positions import edits
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Rewrites, Rule

LOADS = "safetensors.torch.load_file"
OPENS = ("safetensors.safe_open", "safetensors.torch.safe_open")
MESSAGE = "safetensors loads to a CUDA device"
_HEAD = "import torch\nfrom safetensors.torch import load_file\n\n"
_TO = "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n"


class SafetensorsLoad(Rule):
    """``load_safetensors`` gives the same tensors under the same names, on whatever device there is."""

    name = "safetensors-load"
    visits = (ast.Call,)
    hints = ("cuda", "load_file", "safe_open")
    examples = (
        Rewrites(
            f'{_HEAD}state = load_file("model.safetensors", device="cuda")\n',
            f'{_TO}state = dm.load_safetensors("model.safetensors")\n',
            runs=False,
        ),
        Rewrites(
            "import safetensors.torch\nimport torch\n\n"
            'state = safetensors.torch.load_file("a", device="cuda" if torch.cuda.is_available() else "cpu")\n',
            "import devicekit\nimport safetensors.torch\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n"
            'state = dm.load_safetensors("a")\n',
            runs=False,
        ),
        Rewrites(
            f'{_HEAD}state = load_file("model.safetensors", device=1)\n',
            "import devicekit\nimport torch\nfrom safetensors.torch import load_file\n\n"
            "dm = devicekit.DeviceManager.current()\n\n"
            'state = load_file("model.safetensors", device=str(dm.device_at(1)))\n',
            runs=False,
        ),
        Rewrites(
            "import torch\nfrom safetensors import safe_open\n\n"
            'with safe_open("a.safetensors", framework="pt", device="cuda") as f:\n    x = f.get_tensor("x")\n',
            "import devicekit\nimport torch\nfrom safetensors import safe_open\n\n"
            "dm = devicekit.DeviceManager.current()\n\n"
            'with safe_open("a.safetensors", framework="pt", device=str(dm.device)) as f:\n    x = f.get_tensor("x")\n',
            runs=False,
        ),
        Rewrites(
            f'{_HEAD}try:\n    state = load_file("a", "cuda")\nexcept FileNotFoundError:\n    state = {{}}\n',
            "import devicekit\nimport torch\nfrom safetensors.torch import load_file\n\n"
            "dm = devicekit.DeviceManager.current()\n\n"
            'try:\n    state = load_file("a", str(dm.device))\nexcept FileNotFoundError:\n    state = {}\n',
            gives="state",
        ),
        Leaves(f'{_HEAD}state = load_file("model.safetensors")\n', because="it loads to the CPU"),
        Leaves(f'{_HEAD}state = load_file("model.safetensors", device="cpu")\n', because="it names no CUDA"),
        Leaves(
            f"{_HEAD}\ndef f(path, device):\n    return load_file(path, device=device)\n", because="it is handed in"
        ),
        Leaves('from tool import load_file\n\nx = load_file("a", device="cuda")\n', because="this is another function"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls of safetensors' loaders."""
        assert isinstance(node, ast.Call)
        name = module.name(node.func)
        if name != LOADS and name not in OPENS:
            return
        given = {k.arg: k.value for k in node.keywords}
        position = 1 if name == LOADS else 2
        place = node.args[position] if len(node.args) > position else given.get("device")
        found = _device(place, module)
        if found is None:
            inner = [] if place is None else edits(place, module)
            if inner:
                yield self.rewrite(node, module, MESSAGE, *inner)
        elif name == LOADS and found.as_device(module) == module.device and _is_plain(node, module):
            argument = next((k for k in node.keywords if k.value is place), place)
            assert argument is not None
            called = module.replace(node.func, f"{module.manager}.load_safetensors")
            yield self.rewrite(node, module, MESSAGE, called, module.remove_argument(node, argument))
        else:
            assert place is not None
            yield self.rewrite(node, module, MESSAGE, module.replace(place, found.as_text(module)))


def _device(place: ast.expr | None, module: Module) -> Device | None:
    if isinstance(place, ast.Constant) and type(place.value) is int:
        return Device(str(place.value))
    return device(place, module)


def _is_plain(node: ast.Call, module: Module) -> bool:
    """A path and a device and nothing besides, and nobody who waits for safetensors' own errors."""
    caught = [h for above in module.parents(node) if isinstance(above, ast.Try) for h in above.handlers]
    if any(h.type is not None and ast.unparse(h.type) not in ("Exception", "BaseException") for h in caught):
        return False
    return (
        len(node.args) >= 1 and len(node.args) + len(node.keywords) == 2 and not isinstance(node.args[0], ast.Starred)
    )
