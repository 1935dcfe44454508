"""``"nccl"`` moves CUDA's tensors between processes, and no other device's.

The others have their own: ``xccl`` (Intel), ``hccl`` (Ascend), ``gloo`` (the CPU). Without CUDA torch says "Distributed
package doesn't have NCCL built in". https://docs.pytorch.org/docs/stable/distributed.html#backends
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.codemod.facts.calls import needs_device
from devicekit.codemod.facts.devices import AVAILABLE
from devicekit.codemod.facts.positions import last_name, parameter_of
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

SAID = '"nccl" moves CUDA\'s tensors only'
MIXED = re.compile(r"\w+:\w+(,\w+:\w+)*$")
MEMBERS = {"torch.distributed.Backend.NCCL": "nccl", "torch.distributed.Backend.GLOO": "gloo"}
NCCL_AVAILABLE = "torch.distributed.is_nccl_available"


class ProcessGroup(Rule):
    """``dm.distributed_backend`` is "nccl" with CUDA and ROCm, and the device's own library elsewhere."""

    name = "process-group"
    visits = (ast.Constant, ast.Call, ast.Attribute)
    hints = ("nccl", "NCCL")
    examples = (
        rewrites(
            'def start():\n    torch.distributed.init_process_group("nccl", rank=0, world_size=1)',
            "def start():\n    torch.distributed.init_process_group(dm.distributed_backend, rank=0, world_size=1)",
        ),
        rewrites(
            'def start(device):\n    torch.distributed.init_process_group(backend="nccl", device_id=device)',
            "def start(device):\n    torch.distributed.init_process_group(backend=dm.distributed_backend, "
            'device_id=device if dm.distributed_backend != "gloo" else None)',
        ),
        rewrites(
            'backend = "nccl" if torch.cuda.is_available() else "gloo"',
            'backend = dm.distributed_backend or "gloo"',
            gives='backend in ("gloo", "nccl", "xccl", "hccl")',
        ),
        rewrites(
            'def add(parser):\n    parser.add_argument("--backend", default="nccl")',
            'def add(parser):\n    parser.add_argument("--backend", default=dm.distributed_backend or "gloo")',
            runs=False,
        ),
        rewrites(
            "dist_backend = 'nccl'  # or gloo", "dist_backend = dm.distributed_backend or 'gloo'  # or gloo", runs=False
        ),
        rewrites(
            "def start():\n    torch.distributed.init_process_group(torch.distributed.Backend.NCCL)",
            "def start():\n    torch.distributed.init_process_group(dm.distributed_backend)",
        ),
        Reports("import torch\n\nif torch.distributed.get_backend() == torch.distributed.Backend.NCCL:\n    pass\n"),
        Leaves('"""Uses nccl."""\n\nbackend = "gloo"\n', because="the CPU's is meant"),
        Leaves('levels = {"nccl": 1}\n', because="it is a key"),
        Reports('import torch\n\nif torch.distributed.get_backend() == "nccl":\n    pass\n'),
        rewrites(
            'def library():\n    return "gloo" if not torch.cuda.is_available() else "nccl"',
            'def library():\n    return dm.distributed_backend or "gloo"',
            gives="isinstance(library(), str)",
        ),
        Reports('def run(flag):\n    return "nccl" if flag else "gloo"\n'),
        Reports('import torch\n\n\ndef f():\n    torch.distributed.init_process_group("cuda:nccl,cpu:gloo")\n'),
        Reports("import torch\n\nif torch.distributed.is_nccl_available():\n    pass\n"),
        Reports('names = ["gloo", "nccl"]\n'),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """The string, by what it is given to."""
        if isinstance(node, ast.Call):
            if module.name(node.func) == NCCL_AVAILABLE:
                said = "this asks whether torch has NCCL"
                yield self.review(node, module, said, "dm.distributed_backend", residual=True)
            return
        text = node.value if isinstance(node, ast.Constant) else MEMBERS.get(module.name(node) or "")
        if not isinstance(text, str) or "nccl" not in text.lower():
            return
        above = module.parent(node)
        if MIXED.match(text) and not isinstance(above, (ast.Dict, ast.Expr)):
            how = 'f"cpu:gloo,{dm.device.type}:{dm.distributed_backend}" if dm.is_accelerator else "gloo"'
            yield self.review(node, module, "this names the libraries of the CPU and of CUDA", how)
        elif text.lower() == "nccl" and not _is_name_only(node, above):
            yield self._of_one(node, above, module)

    def _of_one(self, node: ast.AST, above: ast.AST | None, module: Module) -> Finding:
        choice = above if isinstance(above, ast.IfExp) and node is not above.test else None
        if choice is not None and not _is_availability_choice(choice, module):
            how = "dm.distributed_backend, which is gloo on the CPU"
            return self.review(choice, module, f"{SAID}; it is chosen by something else than the device", how)
        place = choice or node
        if choice is not None or "backend" in _given_to(place, module).lower():
            call = next((n for n in [above, module.parent(above or node)] if isinstance(n, ast.Call)), None)
            text, gloo = f"{module.manager}.distributed_backend", _gloo(node, module)
            if not (call is not None and last_name(call.func) == "init_process_group"):
                text += f" or {gloo}"  # None, where this torch is without the library, is no text
            edits = [module.replace(place, text), *_device_id(call, gloo, module)]
            return self.rewrite(call or place, module, SAID, *edits)
        if isinstance(above, ast.Compare):
            how = "compare with dm.distributed_backend, or ask dm.is_accelerator"
            return self.review(above, module, "with another device's library this is false", how)
        return self.review(node, module, SAID, "dm.distributed_backend", residual=True)


def _gloo(node: ast.AST, module: Module) -> str:
    """The CPU's library, in the words and quotes of the node."""
    return module.code(node).replace(".NCCL", ".GLOO").replace("nccl", "gloo").replace("NCCL", "gloo")


def _is_name_only(node: ast.AST, above: ast.AST | None) -> bool:
    """A docstring, a key, a subscript, a part of an f-string."""
    is_key = isinstance(above, ast.Dict) and node in above.keys
    return is_key or isinstance(above, (ast.Expr, ast.JoinedStr, ast.Subscript))


def _is_availability_choice(choice: ast.IfExp, module: Module) -> bool:
    test, other = choice.test, choice.orelse
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, other = test.operand, choice.body
    tests = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    by_device = all(module.calls(part, AVAILABLE, NCCL_AVAILABLE) for part in tests)
    is_gloo = isinstance(other, ast.Constant) and other.value == "gloo"
    return by_device and (is_gloo or MEMBERS.get(module.name(other) or "") == "gloo")


def _given_to(place: ast.AST, module: Module) -> str:
    """The name of the parameter, option, key, variable or attribute that it is the value of."""
    above = module.parent(place)
    if isinstance(above, ast.keyword):
        call = module.parent(above)
        is_option = isinstance(call, ast.Call) and last_name(call.func) == "add_argument" and above.arg == "default"
        return "backend" if is_option else above.arg or ""
    if isinstance(above, ast.Call):
        called, before = last_name(above.func), above.args[: above.args.index(place)]  # type: ignore[arg-type]
        if called == "init_process_group":
            return "" if before else "backend"
        return last_name(before[0]) if called in ("get", "getenv", "setdefault") and len(before) == 1 else ""
    if isinstance(above, ast.Assign):
        return last_name(above.targets[0])
    if isinstance(above, ast.AnnAssign):
        return last_name(above.target)
    if isinstance(above, ast.Dict):
        return next((last_name(k) for k, v in zip(above.keys, above.values, strict=True) if k and v is place), "")
    parameter = parameter_of(above, place) if isinstance(above, ast.arguments) else None
    return parameter.arg if parameter is not None else ""


def _device_id(call: ast.Call | None, gloo: str, module: Module) -> list[Edit]:
    """``init_process_group(device_id=)`` refuses the CPU."""
    given = next((k.value for k in call.keywords if k.arg == "device_id"), None) if call is not None else None
    if call is None or given is None or isinstance(given, (ast.IfExp, ast.Constant)) or needs_device(call, module):
        return []
    if module.calls(given, "torch.device"):
        return []  # where the condition is written with the device
    end = module.span(given)[1]
    # gloo has no use for it, and torch wants one with a number, which the CPU and MPS have not
    return [Edit(end, end, f" if {module.manager}.distributed_backend != {gloo} else None")]
