"""``DistributedDataParallel(model, device_ids=[rank])`` names the number of a device.

A model on the CPU must not have any: "device_ids and output_device arguments only work with single-device GPU modules".
Read in torch/nn/parallel/distributed.py of torch 2.6 and 2.13; torch/nn/parallel/data_parallel.py ignores its
``device_ids`` where there is no GPU.
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.calls import needs_device
from devicekit.codemod.finding import Edit, Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule

PARALLEL = ("torch.nn.parallel.DistributedDataParallel", "torch.nn.parallel.distributed.DistributedDataParallel")
DATA_PARALLEL = ("torch.nn.DataParallel", "torch.nn.parallel.DataParallel")
HOW = "torch.nn.parallel.DistributedDataParallel, a process for each device: docs/howto/several-processes.md"
SAID = "a model on the CPU has no device number, and is refused with `{}`"


class Ddp(Rule):
    """With an accelerator the number is the same as before; without one there is none."""

    name = "ddp"
    visits = (ast.Call,)
    hints = ("DataParallel",)
    examples = (
        Rewrites(
            "from torch.nn.parallel import DistributedDataParallel as DDP\n\n\ndef wrap(model, rank):\n"
            "    return DDP(model, device_ids=[rank], output_device=rank)\n",
            "import devicekit\nfrom torch.nn.parallel import DistributedDataParallel as DDP\n\n"
            "dm = devicekit.DeviceManager.current()\n\n\ndef wrap(model, rank):\n"
            "    return DDP(model, device_ids=[rank] if dm.is_accelerator else None, "
            "output_device=rank if dm.is_accelerator else None)\n",
        ),
        Rewrites(
            "import torch\n\n\ndef wrap(model, rank):\n    ids = [rank]\n"
            "    return torch.nn.parallel.DistributedDataParallel(model, ids)\n",
            "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n\ndef wrap(model, rank):\n"
            "    ids = [rank]\n"
            "    return torch.nn.parallel.DistributedDataParallel(model, ids if dm.is_accelerator else None)\n",
        ),
        Leaves(
            "import torch\n\n\ndef wrap(model, rank, gpu):\n    DDP = torch.nn.parallel.DistributedDataParallel\n"
            "    return DDP(model)\n",
            because="it names no device",
        ),
        Leaves(
            "from torch.nn.parallel import DistributedDataParallel\n\n\ndef wrap(model, rank, gpu):\n"
            "    return DistributedDataParallel(model, device_ids=[rank] if gpu else None)\n",
            because="it is chosen already",
        ),
        Reports(
            "from torch.nn.parallel import DistributedDataParallel\n\n\ndef wrap(model, ids):\n"
            "    return DistributedDataParallel(model, device_ids=ids)\n"
        ),
        Reports(
            "import torch\n\n\ndef wrap(model, rank):\n    if torch.cuda.is_available():\n"
            "        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank])\n    return model\n",
            Kind.HARMLESS,
        ),
        Reports("import torch\n\n\ndef f(m):\n    return torch.nn.DataParallel(m, device_ids=[0])\n"),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Calls that give numbers of devices."""
        assert isinstance(node, ast.Call)
        name = module.name(node.func)
        given = {k.arg: k.value for k in node.keywords}
        given.update(zip(("module", "device_ids", "output_device"), node.args, strict=False))
        ids = given.get("device_ids")
        values = [value for value in (ids, given.get("output_device")) if value is not None and not _is_settled(value)]
        if name in DATA_PARALLEL:
            yield self.review(node, module, "DataParallel works on several CUDA devices only", HOW)
        elif name in PARALLEL and values:
            said = SAID.format("device_ids" if ids in values else "output_device")
            if needs_device(node, module):
                yield self.harmless(node, module, "this is reached only where there is a device")
            elif ids in values and not _is_list(ids, module):
                how = "device_ids=... if dm.is_accelerator else None"
                yield self.review(node, module, f"{said}; what it is here is told elsewhere", how)
            else:
                ends = [module.span(value)[1] for value in values]
                only = f" if {module.manager}.is_accelerator else None"
                yield self.rewrite(node, module, said, *(Edit(end, end, only) for end in ends))


def _is_settled(value: ast.expr) -> bool:
    """None, or 0 for the output, which torch takes for none; or a choice of the author's."""
    return isinstance(value, ast.IfExp) or (isinstance(value, ast.Constant) and not value.value)


def _is_list(value: ast.expr | None, module: Module) -> bool:
    """It is written as one, also where the only thing that the name is bound to is."""
    if isinstance(value, ast.Name):
        uses = [n for n in module.names.uses.get(value.id, ()) if not isinstance(n.ctx, ast.Load)]
        above = module.parent(uses[0]) if len(uses) == 1 else None
        value = above.value if isinstance(above, ast.Assign) and above.targets == uses else None
    return isinstance(value, (ast.List, ast.Tuple))
