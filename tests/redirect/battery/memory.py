"""Memory: what is counted, and what happens at the limit."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import torch

from tests.redirect.battery.checking import Raises, Skipped, check, group

group("memory")


def _ints(*values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)


@check("memory_allocated, reserved and their peaks are whole numbers")
def _() -> Any:
    c = torch.cuda
    return _ints(c.memory_allocated(), c.memory_reserved(), c.max_memory_allocated(), c.max_memory_reserved())


@check("memory_allocated(0), ('cuda'), (device)")
def _() -> Any:
    return _ints(*(torch.cuda.memory_allocated(d) for d in (0, "cuda", "cuda:0", torch.device("cuda"))))


@check("memory_allocated() / 1024**3 in a format", "GB")
def _() -> Any:
    return f"{torch.cuda.max_memory_allocated() / 1024**3:.2f} GB"[-2:]


@check(
    "memory_allocated counts a tensor",
    [1 << 20, 0],
    translated=Skipped("a processor's memory is the process's"),
    npu=[1 << 20, 0],
)
def _() -> Any:
    gc.collect()
    before = torch.cuda.memory_allocated()
    x = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    after = torch.cuda.memory_allocated()
    del x
    return [after - before, torch.cuda.memory_allocated() - before]


@check(
    "memory_allocated rounds up to 512 bytes",
    512,
    translated=Skipped("a processor's memory is the process's"),
    npu=Skipped("other sizes"),
)
def _() -> Any:
    gc.collect()
    before = torch.cuda.memory_allocated()
    x = torch.ones(1, device="cuda")
    return torch.cuda.memory_allocated() - before + 0 * int(x.item())


@check("a view takes no memory", 0, translated=Skipped("a processor's memory is the process's"), npu=0)
def _() -> Any:
    x = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_allocated()
    y = x.view(2, -1)[0]
    return torch.cuda.memory_allocated() - before + 0 * len(y)


@check(
    "max_memory_allocated remembers, until it is reset",
    [True, True],
    translated=Skipped("a processor's memory is the process's"),
    npu=[True, True],
)
def _() -> Any:
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    x = torch.empty(4 << 20, dtype=torch.uint8, device="cuda")
    del x
    remembered = torch.cuda.max_memory_allocated() >= before + (4 << 20)
    torch.cuda.reset_peak_memory_stats()
    return [remembered, torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()]


@check("reset_peak_memory_stats, reset_max_memory_allocated", [None, None])
def _() -> Any:
    return [torch.cuda.reset_peak_memory_stats(), torch.cuda.reset_max_memory_allocated()]


@check("reset_accumulated_memory_stats", None)
def _() -> Any:
    return torch.cuda.reset_accumulated_memory_stats()


@check("mem_get_info(): free and total")
def _() -> Any:
    free, total = torch.cuda.mem_get_info()
    return _ints(free, total) and 0 < free <= total


@check("mem_get_info total is the properties' total_memory")
def _() -> Any:
    total, told = torch.cuda.mem_get_info(0)[1], torch.cuda.get_device_properties(0).total_memory
    return abs(total - told) < 0.05 * told


@check("memory_stats(): the keys that programs read")
def _() -> Any:
    stats = torch.cuda.memory_stats()
    names = (
        "allocated_bytes.all.current",
        "allocated_bytes.all.peak",
        "reserved_bytes.all.current",
        "num_alloc_retries",
        "num_ooms",
    )
    return all(isinstance(stats[name], int) for name in names)


@check("memory_summary() is a text", [True, True])
def _() -> Any:
    return [isinstance(torch.cuda.memory_summary(*a), str) for a in ((), ("cuda", True))]


@check("memory_summary(device=None, abbreviated=True)", True)
def _() -> Any:
    return len(torch.cuda.memory_summary(device=None, abbreviated=True)) > 0


@check("memory_snapshot() is a list", True)
def _() -> Any:
    return isinstance(torch.cuda.memory_snapshot(), list)


@check(
    "empty_cache() lets memory_reserved fall",
    True,
    translated=Skipped("a processor's memory is the process's"),
    npu=True,
)
def _() -> Any:
    x = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_reserved()
    del x
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() < before


@check(
    "more than there is",
    Raises(
        torch.OutOfMemoryError, r"CUDA out of memory. Tried to allocate 1048576.00 GiB. GPU 0 has a total capacity of "
    ),
    translated=Raises(RuntimeError, "memory"),
    npu=Raises(torch.OutOfMemoryError, "out of memory"),
)
def _() -> Any:
    return torch.empty(1 << 50, dtype=torch.uint8, device="cuda")


@check("except torch.cuda.OutOfMemoryError", "smaller", translated=Raises(RuntimeError, "memory"), npu="smaller")
def _() -> Any:
    try:
        return torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "smaller"


@check("except RuntimeError: 'out of memory' in str(error)", True, translated=False, npu=True)
def _() -> Any:
    try:
        return torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    except RuntimeError as error:
        return "out of memory" in str(error)


@check("after running out, the device can still be used", 2.0)
def _() -> Any:
    with contextlib.suppress(RuntimeError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    return torch.ones(2, device="cuda").sum().item()


@check("set_per_process_memory_fraction(0.5)", None, process=True)
def _() -> Any:
    return torch.cuda.set_per_process_memory_fraction(0.5, 0)


@check(
    "memory of another device is counted there",
    [0, 1 << 20],
    translated=Skipped("a processor's memory is the process's"),
    npu=Skipped("one device"),
    needs_devices=2,
)
def _() -> Any:
    gc.collect()
    before = [torch.cuda.memory_allocated(i) for i in (0, 1)]
    x = torch.empty(1 << 20, dtype=torch.uint8, device="cuda:1")
    return [torch.cuda.memory_allocated(i) - before[i] + 0 * len(x.shape) for i in (0, 1)]


@check("the host's tensors are not counted", 0, translated=Skipped("a processor's memory is the process's"), npu=0)
def _() -> Any:
    gc.collect()
    before = torch.cuda.memory_allocated()
    x = torch.empty(1 << 20, dtype=torch.uint8)
    return torch.cuda.memory_allocated() - before + 0 * len(x.shape)
