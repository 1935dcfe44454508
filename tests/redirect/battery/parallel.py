"""Several devices and several threads in one process, and process groups of one."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Raises, check, group

group("parallel")


def _in_a_group(program: Callable[[Any], Any], **options: Any) -> Any:
    import torch.distributed as dist

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        dist.init_process_group(**{"backend": "nccl", **options})
        return program(dist)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@check("nn.DataParallel(model).cuda()(x)", [2, 4])
def _() -> Any:
    net = torch.nn.DataParallel(torch.nn.Linear(3, 4)).cuda()
    return list(net(torch.ones(2, 3, device="cuda")).shape)


@check("nn.DataParallel(model, device_ids=[0]).module, state_dict", ["module.weight", "module.bias"])
def _() -> Any:
    net = torch.nn.DataParallel(torch.nn.Linear(3, 4).cuda(), device_ids=[0])
    net(torch.ones(2, 3).cuda()).sum().backward()
    return list(net.state_dict())


@check("nn.DataParallel over two devices, batch on the host", [4, 4], needs_devices=2)
def _() -> Any:
    net = torch.nn.DataParallel(torch.nn.Linear(3, 4).cuda(), device_ids=[0, 1])
    return list(net(torch.ones(4, 3)).shape)


@check("torch.zeros(device='cuda') in a thread", translated=[False])
def _() -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(torch.zeros(1, device="cuda").is_cuda))
    thread.start()
    thread.join()
    return found if found != [True] else True


@check("x.cuda() in a ThreadPoolExecutor", [True] * 3, translated=[False] * 3)
def _() -> Any:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: torch.ones(2).cuda().is_cuda, range(3)))


@check("a thread starts with device 0", [1, 0], npu=Raises(RuntimeError), needs_devices=2)
def _() -> Any:
    found = []
    with torch.cuda.device(1):
        found.append(torch.cuda.current_device())
        thread = threading.Thread(target=lambda: found.append(torch.cuda.current_device()))
        thread.start()
        thread.join()
    return found


@check("torch.distributed.is_nccl_available()", process=True)
def _() -> Any:
    import torch.distributed as dist

    return dist.is_nccl_available()


@check("init_process_group('nccl') and all_reduce", [1.0], process=True)
def _() -> Any:
    def program(dist: Any) -> Any:
        x = torch.ones(1).cuda()
        dist.all_reduce(x)
        dist.barrier()
        return x.tolist()

    return _in_a_group(program)


@check(
    "get_backend() after init_process_group('nccl')",
    "nccl",
    translated="gloo",
    masqueraded=Differs("gloo", "it says what moves the tensors"),
    npu="hccl",
    process=True,
)
def _() -> Any:
    return _in_a_group(lambda dist: dist.get_backend())


@check("init_process_group('cuda:nccl,cpu:gloo')", [1.0], process=True)
def _() -> Any:
    def program(dist: Any) -> Any:
        x, h = torch.ones(1).cuda(), torch.ones(1)
        dist.all_reduce(x)
        dist.all_reduce(h)
        return x.tolist()

    return _in_a_group(program, backend="cuda:nccl,cpu:gloo")


@check("init_process_group(device_id=torch.device('cuda', 0))", [1.0], process=True)
def _() -> Any:
    def program(dist: Any) -> Any:
        x = torch.ones(1, device="cuda")
        dist.all_reduce(x, op=dist.ReduceOp.AVG)
        return x.tolist()

    return _in_a_group(program, device_id=torch.device("cuda", 0))


@check("DistributedDataParallel(device_ids=[0], output_device=0)", [2, 4], process=True)
def _() -> Any:
    def program(dist: Any) -> Any:
        net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 4).cuda(), device_ids=[0], output_device=0)
        out = net(torch.ones(2, 3, device="cuda"))
        out.sum().backward()
        return list(out.shape) if net.module.weight.grad is not None else "no gradient"

    return _in_a_group(program)


@check("barrier(device_ids=[0]), broadcast, all_gather, reduce_scatter", [1.0, 1.0, 1.0], process=True)
def _() -> Any:
    def program(dist: Any) -> Any:
        x, out = torch.ones(1).cuda(), torch.zeros(1).cuda()
        dist.barrier(device_ids=[0])
        dist.broadcast(x, 0)
        gathered = [torch.zeros(1).cuda()]
        dist.all_gather(gathered, x)
        dist.all_gather_into_tensor(out, x)
        scattered = torch.zeros(1).cuda()
        dist.reduce_scatter_tensor(scattered, x)
        return [gathered[0].item(), out.item(), scattered.item()]

    return _in_a_group(program)


@check("new_group(backend='nccl'), init_device_mesh('cuda', (1,))", [1.0, 1], process=True)
def _() -> Any:
    def program(dist: Any) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        x = torch.ones(1).cuda()
        dist.all_reduce(x, group=dist.new_group([0], backend="nccl"))
        return [x.item(), init_device_mesh("cuda", (1,)).size()]

    return _in_a_group(program)
