"""Two ranks on a simulated machine with two GPUs, meeting through gloo, twice; prints the device of each."""

from __future__ import annotations

import os

import torch

import devicekit as dk
from devicekit.testing import simulated_machine

with simulated_machine(cuda=2, env={k: v for k, v in os.environ.items() if k.isupper()}) as host:
    dm = dk.DeviceManager("cuda")
    for attempt in range(2):
        with dm.init_distributed("gloo", timeout=60) as world:
            ranks = torch.tensor([float(world.rank)])
            torch.distributed.all_reduce(ranks)
            current = host.torch().cuda.current_device()
            print(f"attempt {attempt}: {world}; current {current}; sum {ranks.item():g}\n", end="", flush=True)
