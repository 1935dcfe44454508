"""One step of data-parallel training, also alone; each rank writes what it has into the folder of the argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import devicekit as dk

dm = dk.DeviceManager("cpu")
world = dm.init_distributed(timeout=60)

torch.manual_seed(world.rank + 7 if world.world_size > 1 else 7)  # rank 0's parameters count
model: torch.nn.Module = dm.to(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)))
if world.world_size > 1:
    model = DistributedDataParallel(model)

batch = dm.to(torch.arange(24.0).view(8, 3) / 24)
mine = batch[world.rank :: world.world_size]
model(mine).square().mean().backward()

told = {
    "rank": world.rank,
    "size": world.world_size,
    "local": world.local_rank,
    "backend": world.backend,
    "main": world.is_main,
    "device": str(world.device),
    "said": str(world),
    "group": torch.distributed.is_initialized(),
    "gradients": [p.grad.flatten().tolist() for p in model.parameters() if p.grad is not None],
}
(Path(sys.argv[1]) / f"{world.rank}.json").write_text(json.dumps(told))
# It ends without closing anything.
