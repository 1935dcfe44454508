"""A process ends in each way of the arguments; its torch.distributed says what it is asked to take down."""

from __future__ import annotations

import contextlib
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch

import devicekit as dk
from devicekit.distributed import Processes
from devicekit.testing import simulated_machine


class Telling:
    """What is asked of torch.distributed, for one process that has nobody to wait for."""

    PrefixStore, Backend = torch.distributed.PrefixStore, torch.distributed.Backend

    def __init__(self) -> None:
        self.group = SimpleNamespace(WORLD=None)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return self.group.WORLD is not None

    def is_backend_available(self, name: str) -> bool:
        return name == "nccl"

    def rendezvous(self, url: str, rank: int, size: int, **_: Any) -> Any:
        yield torch.distributed.HashStore(), rank, size

    def init_process_group(self, *_: Any, **__: Any) -> None:
        self.group.WORLD = object()

    def destroy_process_group(self) -> None:
        print("taken down", flush=True)
        self.group.WORLD = None


def end_as(how: str, world: Processes) -> None:
    """Come to the end of the program, or not."""
    match how:
        case "exits":
            sys.exit(0)
        case "closes":
            world.close()
            world.close()
        case "leaves a context":
            with world:
                pass
        case "exits a context":
            with world:
                sys.exit(0)
        case "raises":
            raise LookupError("enough")
        case "fails in a context":
            with contextlib.suppress(LookupError), world:
                raise LookupError("enough")
        case "forks":
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                print("its child has ended", flush=True)


env = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
for how in sys.argv[1:]:
    print(how, flush=True)
    process = os.fork()  # importing torch once is enough
    if process == 0:
        with simulated_machine(cuda=1, env=env) as host:
            host.torch().distributed = Telling()
            end_as(how, dk.DeviceManager().init_distributed())
        break
    print("status", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
