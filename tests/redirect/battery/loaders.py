"""DataLoader: pinned memory, workers, batches that go to the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.redirect.battery.checking import Skipped, check, group

group("loaders")
NO_PINNING = Skipped("the simulated npu refuses pinned memory in the whole process")


def _data() -> Any:
    return TensorDataset(torch.arange(4.0), torch.arange(4))


@check("a loop over batches, moved to the device", 6.0)
def _() -> Any:
    return sum(x.cuda(non_blocking=True).sum().item() for x, _ in DataLoader(_data(), batch_size=2))


@check("DataLoader(pin_memory=True)", 6.0, npu=NO_PINNING)
def _() -> Any:
    return sum(
        x.to("cuda", non_blocking=True).sum().item() for x, _ in DataLoader(_data(), batch_size=2, pin_memory=True)
    )


@check("batches of DataLoader(pin_memory=True) are pinned", True, translated=False, npu=NO_PINNING)
def _() -> Any:
    return next(iter(DataLoader(_data(), batch_size=2, pin_memory=True)))[0].is_pinned()


@check("DataLoader(pin_memory=True, pin_memory_device='cuda')", 6.0, npu=NO_PINNING)
def _() -> Any:
    made = DataLoader(_data(), batch_size=2, pin_memory=True, pin_memory_device="cuda")
    return sum(x.cuda().sum().item() for x, _ in made)


@check("DataLoader(num_workers=2, pin_memory=True)", 6.0, npu=NO_PINNING, process=True)
def _() -> Any:
    made = DataLoader(_data(), batch_size=2, num_workers=2, pin_memory=True, persistent_workers=True)
    return sum(x.cuda(non_blocking=True).sum().item() for x, _ in made)


@check("a shuffled DataLoader with a generator of the host", 6.0)
def _() -> Any:
    made = DataLoader(_data(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    return sum(x.cuda().sum().item() for x, _ in made)


@check("a collate function that puts the batch onto the device", translated=False)
def _() -> Any:
    made = DataLoader(_data(), batch_size=2, collate_fn=lambda rows: torch.stack([x for x, _ in rows]).cuda())
    return next(iter(made)).is_cuda


@check("a data set whose tensors are on the device", 6.0)
def _() -> Any:
    made = DataLoader(TensorDataset(torch.arange(4.0, device="cuda")), batch_size=2)
    return sum(x.sum().item() for (x,) in made)


@check("random_split, ConcatDataset, WeightedRandomSampler", 4)
def _() -> Any:
    from torch.utils.data import ConcatDataset, WeightedRandomSampler, random_split

    one, other = random_split(_data(), [2, 2], generator=torch.Generator().manual_seed(0))
    joined = ConcatDataset([one, other])
    return sum(len(x) for x, _ in DataLoader(joined, 2, sampler=WeightedRandomSampler([1.0] * 4, 4)))
