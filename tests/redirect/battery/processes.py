"""Processes that a program starts: all of them have the same devices."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from tests.redirect.battery.checking import Skipped, check, group

group("processes")
NO_CHILDREN = Skipped("the simulated npu belongs to one process")


def _put(queue: Any) -> None:
    queue.put(torch.ones(3).cuda().sum().item())


def _check_rank(rank: int, results: str) -> None:
    torch.cuda.set_device(0)
    with open(f"{results}/{rank}", "w") as file:  # noqa: PTH123
        file.write(str(torch.ones(2, device="cuda").sum().item()))


class _OnDevice(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return torch.full((1,), float(index), device="cuda").cpu()


@check("torch.multiprocessing.spawn", ["2.0", "2.0"], npu=NO_CHILDREN, process=True)
def _() -> Any:
    import tempfile
    from pathlib import Path

    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_check_rank, (folder,), nprocs=2)
        return [Path(folder, str(rank)).read_text() for rank in range(2)]


@check("a spawned process and a queue", 3.0, npu=NO_CHILDREN, process=True)
def _() -> Any:
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_put, args=(queue,))
    child.start()
    found = queue.get(timeout=120)
    child.join()
    return found


@check("a subprocess", "3.0", npu=NO_CHILDREN, process=True)
def _() -> Any:
    code = "import torch; print(torch.ones(3).cuda().sum().item())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@check("DataLoader workers that are spawned and use the device", 1.0, npu=NO_CHILDREN, process=True)
def _() -> Any:
    made = torch.utils.data.DataLoader(_OnDevice(), num_workers=1, multiprocessing_context="spawn")
    return sum(x.item() for x in made)


@check("x.share_memory_() of a host tensor", True, npu=NO_CHILDREN, process=True)
def _() -> Any:
    return torch.ones(2).share_memory_().is_shared()


@check("torchrun with two processes", 0, npu=NO_CHILDREN, process=True)
def _() -> Any:
    import tempfile
    from pathlib import Path

    program = (
        "import os, torch, torch.distributed as dist\n"
        "rank = int(os.environ['LOCAL_RANK'])\n"
        "torch.cuda.set_device(rank % torch.cuda.device_count())\n"
        "dist.init_process_group('gloo' if torch.cuda.device_count() < 2 else 'nccl')\n"
        "x = torch.ones(1).cuda(); dist.all_reduce(x); assert x.item() == 2\n"
        "dist.destroy_process_group()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(path)]
        return subprocess.run(command, capture_output=True, check=False, timeout=240).returncode
