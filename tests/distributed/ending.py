"""Two ranks meet; then rank 1 ends in the way of the argument, while rank 0 waits for it in a collective."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

import devicekit as dk

dm = dk.DeviceManager("cpu")
with dm.init_distributed(timeout=float(sys.argv[2])) as world:
    world.barrier()
    if world.rank == 1:
        match sys.argv[1]:
            case "raises":
                raise LookupError("rank 1 has had enough")
            case "exits":
                sys.exit(0)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "never comes":
                time.sleep(600)
    torch.distributed.all_reduce(torch.ones(1))
    print("went on")
