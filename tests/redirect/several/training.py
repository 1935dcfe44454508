"""A training script as it is written for several cards: NCCL, one process for each, DistributedDataParallel.

Started with a number, it starts so many processes itself; by torchrun it is one of them.
"""

import os
import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

warnings.simplefilter("ignore")  # torch's own, of what it will take away


def check_collectives(rank: int, size: int) -> None:
    """Sums, averages and exchanges, of floats and of whole numbers."""
    x = torch.full((2,), rank + 1.0, device="cuda")
    dist.all_reduce(x)
    assert x.tolist() == [3, 3]

    for asynchronous in (False, True):
        x = torch.full((2,), float(rank), device="cuda")
        n = torch.full((2,), 3 * rank, device="cuda")
        work = [dist.all_reduce(t, op=dist.ReduceOp.AVG, async_op=asynchronous) for t in (x, n)]
        assert all(w.wait() for w in work if w is not None)
        assert x.tolist() == [0.5, 0.5]
        assert n.tolist() == [1, 1]

        x, given = torch.zeros(1, device="cuda"), torch.arange(2.0, device="cuda") + rank
        work = dist.reduce_scatter_tensor(x, given, op=dist.ReduceOp.AVG, async_op=asynchronous)
        assert work is None or work.wait()
        assert x.tolist() == [0.5 + rank]
        assert given.tolist() == [rank, rank + 1]

    x = torch.full((2,), float(rank), device="cuda")
    dist.reduce(x, 1, op=dist.ReduceOp.AVG)
    assert x.tolist() == ([0.5, 0.5] if rank == 1 else [0, 0])

    x = torch.zeros(2, device="cuda")
    dist.all_gather_into_tensor(x, torch.full((1,), float(rank), device="cuda"))
    assert x.tolist() == [0, 1]

    x = torch.zeros(1, device="cuda")
    exchange = [
        dist.P2POp(dist.isend, torch.full((1,), float(rank)).cuda(), 1 - rank),
        dist.P2POp(dist.irecv, x, 1 - rank),
    ]
    for request in dist.batch_isend_irecv(exchange):
        request.wait()
    assert x.item() == 1 - rank

    said = [f"from {rank}"]
    dist.broadcast_object_list(said, 0, device=torch.device("cuda"))
    assert said == ["from 0"]
    dist.barrier(device_ids=[rank])


def check_groups(rank: int) -> None:
    """Groups by several spellings, and a mesh."""
    assert dist.is_nccl_available()
    assert dist.is_backend_available("nccl")
    assert dist.get_backend() == "gloo"
    for name in ("nccl", "NCCL", "cuda:nccl,cpu:gloo", None):
        group = dist.new_group([0, 1], backend=name)
        x = torch.ones(1).cuda()
        dist.all_reduce(x, group=group)
        assert x.item() == 2
        assert dist.get_backend(group) == "gloo"
    alone = dist.new_group([0], backend="nccl")
    x = torch.full((1,), 4.0).cuda()
    if rank == 0:
        dist.all_reduce(x, op=dist.ReduceOp.AVG, group=alone)
    assert x.item() == 4
    mesh = dist.device_mesh.init_device_mesh("cuda", (2,))
    assert mesh.get_group().size() == 2


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def check_training(rank: int, size: int) -> None:
    """Data-parallel training with synchronized statistics has the gradients of one process with the whole batch."""
    torch.manual_seed(7)
    batch = torch.randn(8, 3)
    alone = network().double()
    alone(batch.double()).square().mean().backward()

    model = nn.SyncBatchNorm.convert_sync_batchnorm(network()).double().cuda(rank)
    assert isinstance(model[1], nn.SyncBatchNorm)
    ddp = DistributedDataParallel(model, device_ids=[rank], output_device=rank)
    ddp(batch[rank::size].double().cuda(rank, non_blocking=True)).square().mean().backward()
    for mine, whole in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), whole.grad)
    torch.testing.assert_close(model[1].running_mean.cpu(), alone[1].running_mean)
    torch.testing.assert_close(model[1].running_var.cpu(), alone[1].running_var)

    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    optimizer.step()
    ddp.eval()
    with torch.no_grad():
        ddp(batch[:2].double().cuda())


def run(rank: int, size: int) -> None:
    """One process."""
    device = torch.device("cuda", rank)
    dist.init_process_group("nccl", rank=rank, world_size=size, device_id=device)
    check_collectives(rank, size)
    check_groups(rank)
    check_training(rank, size)
    sys.stdout.write(f"rank {rank} of {size}: {torch.zeros(1, device=device).device}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        mp.spawn(run, args=(int(sys.argv[1]),), nprocs=int(sys.argv[1]))
    else:
        run(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
