"""What ``torch.accelerator`` asks of an accelerator in C++, answered in Python.

torch_npu answers all of this with its allocator, which a Python backend cannot have: torch's own
functions end in an INTERNAL ASSERT, and ``empty_host_cache`` in SIGSEGV. ``get_device_capability``
is left alone, for torch_npu does not answer it either.
"""

from __future__ import annotations

from typing import Any

import torch

from devicekit.testing.simulated_npu import npu

__all__ = ["answer_torch_accelerator"]


def answer_torch_accelerator() -> None:
    """Put the answers where torch.accelerator looks for them."""
    torch_c: Any = torch._C
    for name, answer in _ANSWERS.items():
        setattr(torch_c, f"_accelerator_{name}", answer)


_ANSWERS: dict[str, Any] = {
    "isAllocatorInitialized": npu.is_initialized,
    "getDeviceStats": npu.memory_stats_as_nested_dict,
    "getMemoryInfo": npu.mem_get_info,
    "emptyCache": npu.empty_cache,
    "emptyHostCache": npu.host_empty_cache,
    "resetPeakStats": npu.reset_peak_memory_stats,
    "resetAccumulatedStats": npu.reset_accumulated_memory_stats,
    "setDeviceIndex": npu.set_device,
    "synchronizeDevice": npu.synchronize,
}
