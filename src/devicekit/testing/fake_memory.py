"""The memory of one simulated card: bytes of the storages that were moved to it, and each vendor's words for "full"."""

from __future__ import annotations

from typing import Any

import torch

from devicekit.allocator import BLOCK, in_words, round_up
from devicekit.testing.device_memory import DeviceMemory
from devicekit.testing.machines import Card, Machine

__all__ = ["CardMemory"]

_NO_LIMIT = 2**62
_WATERMARK = 1.7  # PYTORCH_MPS_HIGH_WATERMARK_RATIO's default, torch/include/ATen/mps/MPSAllocator.h
_LABELS = {"nvidia": "CUDA", "amd": "HIP", "intel": "XPU", "huawei": "NPU", "apple": "MPS"}


class CardMemory(DeviceMemory):
    """Counts like the caching allocators do: blocks of 512 bytes, segments of 2 MiB, no fragmentation."""

    def __init__(self, card: Card, machine: Machine) -> None:
        super().__init__(card.total, "NPU 0")
        self.card = card
        self.index = 0
        """The card's number among the visible ones, for the messages."""
        self._others = card.total - card.left
        self._oom_at = machine.faults.oom_bytes
        if card.vendor == "apple":
            self.total = _metal_limit(card, machine)

    @property
    def free(self) -> int:
        """Bytes that neither this process's allocator nor another process holds."""
        return max(0, self.total - self._others - self.reserved.current)

    @property
    def _limit(self) -> int:
        return min(int(self.total * self.fraction), self.total - self._others)

    def require(self, size: int) -> None:
        """Raise what the vendor's allocator raises when ``size`` more bytes do not fit, or are too many at once."""
        size = round_up(size, BLOCK)
        too_many = self._oom_at is not None and size >= self._oom_at
        if size and (too_many or self.allocated.current + size > self._limit):
            self.ooms += 1
            raise self._error(size)

    def copy(self, tensor: Any, dtype: Any) -> Any:
        """The tensor on this card in this dtype: itself where it is there already, else a counted copy."""
        if tensor.layout is not torch.strided:
            return tensor.to(dtype=dtype)  # sparse tensors have no single storage; they are not counted
        if tensor.dtype is dtype and not tensor.is_meta and self.holds(tensor.untyped_storage()):
            return tensor
        self.require(tensor.numel() * dtype.itemsize)
        moved = tensor.to(device="cpu", dtype=dtype, copy=True)
        self.take(moved.untyped_storage())
        return moved

    def _error(self, size: int) -> RuntimeError:
        vendor, words = self.card.vendor, in_words
        if vendor == "apple":  # torch has no class for it (facts read from its 2.13 library: none is referenced)
            return RuntimeError(
                f"MPS backend out of memory (MPS allocated: {words(self.allocated.current)}, other allocations: "
                f"{words(self._others)}, max allowed: {words(self.total)}). Tried to allocate {words(size)} on private "
                "pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may "
                "cause system failure)."
            )
        if vendor == "huawei":
            self._device_name = f"NPU {self.index}"
            return torch.OutOfMemoryError(self._out_of_memory(size))
        return torch.OutOfMemoryError(
            f"{_LABELS[vendor]} out of memory. Tried to allocate {words(size)}. GPU {self.index} has a total capacity "
            f"of {words(self.total)} of which {words(self.free)} is free. Of the allocated memory "
            f"{words(self.allocated.current)} is allocated by PyTorch, and "
            f"{words(self.reserved.current - self.allocated.current)} is reserved by PyTorch but unallocated. "
            + _advice(vendor)
        )


def _advice(vendor: str) -> str:
    """As in pytorch/pytorch#138002 (HIP) and intel/torch-xpu-ops#3157 (XPU)."""
    if vendor == "intel":
        return "Please use `empty_cache` to release all unoccupied cached memory."
    variable = "PYTORCH_CUDA_ALLOC_CONF" if vendor == "nvidia" else "PYTORCH_HIP_ALLOC_CONF"
    return (
        "If reserved but unallocated memory is large try setting "
        f"{variable}=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  "
        "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
    )


def _metal_limit(card: Card, machine: Machine) -> int:
    """What Metal's allocator lets a process take, which is more than it recommends; nothing at all in a VM
    (actions/runner-images#9918: "MPS allocated: 0 bytes ... Tried to allocate 256 bytes").
    """
    if machine.virtual:
        return 0
    ratio = float(machine.env.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO", _WATERMARK))
    return int(card.total * ratio) if ratio else _NO_LIMIT
