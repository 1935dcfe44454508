"""``CUDA_VISIBLE_DEVICES`` chooses NVIDIA's devices, and AMD's where nothing else does.

Each vendor's runtime reads its own variable: HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES (AMD), ZE_AFFINITY_MASK
(Intel), ASCEND_RT_VISIBLE_DEVICES (Ascend); it is read once, when the runtime starts.
https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.positions import last_name
from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule

VISIBLE = "CUDA_VISIBLE_DEVICES"
OTHERS = "ZE_AFFINITY_MASK (Intel), ASCEND_RT_VISIBLE_DEVICES (Ascend)"
NONE = 'os.environ["DEVICEKIT_DEVICE"] = "cpu" beside it, which holds on every machine'
AT_TOP = f"one pin for every machine, DEVICEKIT_DEVICE, such as cuda:1 or npu:1; or the others' own: {OTHERS}"
LATER = "hand the device on, devicekit.DeviceManager(device); or whoever starts the program sets DEVICEKIT_DEVICE"
FOR_ANOTHER = f"{OTHERS} as well; or DEVICEKIT_DEVICE, where what is started has its device from devicekit"
READ = "dm.device_count, how many devices there are; dm.device, which one is used"
WRITERS = ("os.environ.setdefault", "os.environ.pop", "os.environ.update", "os.putenv", "os.unsetenv")
READERS = ("os.environ.get", "os.getenv")


class VisibleDevices(Rule):
    """Which variable has to be set, or read, depends on the machine; a pin of DEVICEKIT_DEVICE holds on all of them."""

    name = "visible-devices"
    visits = (ast.Constant, ast.keyword)
    hints = ("CUDA",)
    examples = (
        Leaves('"""Set CUDA_VISIBLE_DEVICES to choose."""\n', because="it is text"),
        Leaves("import os\n\nhome = os.environ['HOME']\n", because="it is another variable"),
        Leaves("print('CUDA_VISIBLE_DEVICES=0 python train.py')\n", because="it is text as well"),
        Reports("import os\n\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'\n"),
        Reports(
            "import os\n\n\ndef choose(device):\n    if device in ('cpu', 'mps'):\n"
            "        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'\n"
        ),
        Reports("from os import environ\n\nseen = environ.get('CUDA_VISIBLE_DEVICES', '')\n"),
        Reports("import os\n\nenv = dict(os.environ, CUDA_VISIBLE_DEVICES='1')\n"),
        Reports("import os\n\nif 'CUDA_VISIBLE_DEVICES' in os.environ:\n    pass\n"),
        Reports("import os\n\nos.environ['CUDA_LAUNCH_BLOCKING'] = '1'\n", Kind.HARMLESS),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The variable's name where it is all of a string, or a keyword; others of CUDA's in the environment."""
        if isinstance(node, ast.keyword):
            if node.arg == VISIBLE:
                yield self._of_visible(node, node.value, module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "CUDA" in node.value:
            above = module.parent(node)
            if node.value == VISIBLE and not isinstance(above, (ast.Expr, ast.JoinedStr)):
                written = module.parent(above) if above is not None else None
                value = written.value if isinstance(written, ast.Assign) else None
                whole = above if isinstance(above, (ast.Subscript, ast.Call, ast.Compare)) else node
                yield self._of_visible(whole, value, module)
            elif above is not None and _is_environment(above, module):
                yield self.harmless(above, module, f"{node.value} is a setting for CUDA, which other devices ignore")

    def _of_visible(self, node: ast.AST, value: ast.expr | None, module: Module) -> Finding:
        if _is_read(node):
            said = f"{VISIBLE} says nothing of other vendors' devices"
            return self.review(node, module, said, READ)
        said = f"{VISIBLE} chooses NVIDIA's devices, and AMD's; the others do not obey it"
        if not _is_own(node, module):
            return self.review(node, module, said, FOR_ANOTHER)
        if not _is_at_top(node, module):
            return self.review(node, module, said, LATER)
        if isinstance(value, ast.Constant) and value.value in ("", "-1"):
            return self.review(node, module, f"{said}, and stay visible", NONE)
        return self.review(node, module, said, AT_TOP)


def _is_read(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Load)
    is_get = isinstance(node, ast.Call) and last_name(node.func) in ("get", "getenv")
    return is_get or isinstance(node, ast.Compare)


def _is_own(node: ast.AST, module: Module) -> bool:
    """It is this process's environment, and not one that is made for another."""
    if isinstance(node, ast.Subscript):
        return module.name(node.value) == "os.environ"
    call = node if isinstance(node, ast.Call) else module.parent(node)
    called = module.name(call.func) if isinstance(call, ast.Call) else None
    return called in WRITERS


def _is_at_top(node: ast.AST, module: Module) -> bool:
    """It is done as the program starts, whatever is asked of it."""
    above = module.parent(module.statement(node))
    is_main = isinstance(above, ast.If) and "__name__" in ast.unparse(above.test)
    return isinstance(above, ast.Module) or is_main


def _is_environment(node: ast.AST, module: Module) -> bool:
    if isinstance(node, ast.Subscript):
        return module.name(node.value) == "os.environ"
    return module.calls(node, *READERS, *WRITERS)
