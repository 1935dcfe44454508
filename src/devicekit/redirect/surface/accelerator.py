"""``torch.accelerator``: for the program it is the device that "cuda" means; for torch's own code it is the truth."""

from __future__ import annotations

from typing import Any

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import NOBODY, Answers, answer
from devicekit.redirect.surface.namespace import entering

__all__ = ["install"]

AS_CUDA = {
    "current_device_idx": "current_device",
    "current_device_index": "current_device",
    "current_stream": "current_stream",
    "device_count": "device_count",
    "empty_cache": "empty_cache",
    "get_memory_info": "mem_get_info",
    "is_available": "is_available",
    "max_memory_allocated": "max_memory_allocated",
    "max_memory_reserved": "max_memory_reserved",
    "memory_allocated": "memory_allocated",
    "memory_reserved": "memory_reserved",
    "memory_stats": "memory_stats",
    "reset_accumulated_memory_stats": "reset_accumulated_memory_stats",
    "reset_peak_memory_stats": "reset_peak_memory_stats",
    "set_device_idx": "set_device",
    "set_device_index": "set_device",
    "set_stream": "set_stream",
    "synchronize": "synchronize",
}
"""What means the same there, and is called otherwise."""


def install(redirect: Redirect) -> None:
    """After torch.cuda, whose answers these are. Versions of torch before 2.9 have less of it."""
    torch = redirect.torch
    accelerator, answers = redirect.module("torch.accelerator"), Accelerator(redirect)
    same = {name: getattr(torch.cuda, cuda).answer for name, cuda in AS_CUDA.items()}
    answer(redirect, accelerator, {**same, **answers._all()}, NOBODY)
    if hasattr(accelerator, "device_index"):
        entering(redirect, accelerator.device_index, answers, "torch.accelerator.device_index")


class Accelerator(Answers):
    """What torch.cuda has not."""

    def current_accelerator(self, check_available: bool = False) -> Any:
        """The target, without a number; where tensors say that they are on CUDA, it is CUDA."""
        return self._torch.device("cuda" if self._redirect.strict else self._target.device_type)

    def empty_host_cache(self) -> None:
        """Nothing: what a target caches on the host is torch's own affair."""
