"""``torch.npu.memory``: what the caching allocator says, in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from devicekit.allocator import checked_fraction, flat
from devicekit.testing.device_memory import DeviceMemory
from devicekit.testing.simulated_npu.machine import device_index, machine

__all__ = [
    "empty_cache",
    "get_per_process_memory_fraction",
    "host_empty_cache",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_stats_as_nested_dict",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_peak_memory_stats",
    "set_per_process_memory_fraction",
]

Device = torch.device | str | int | None


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Free and total bytes of the device; initialises it.

    Raises AssertionError for a device that does not exist, and RuntimeError when the machine was
    installed with ``fail_memory_query=True``.
    """
    if not 0 <= device_index(device) < machine().settings.count:
        raise AssertionError("Invalid device id")
    machine().start()
    if machine().settings.fail_memory_query:
        raise RuntimeError("NPU function error: aclrtGetMemInfo failed (a simulated fault)")
    return machine().memory.free, machine().memory.total


def memory_stats_as_nested_dict(device: Device = None) -> dict[str, Any]:
    """All figures as nested dicts; empty before the device is initialised."""
    return _memory(device).as_dict() if machine().initialized else {}


def memory_stats(device: Device = None) -> OrderedDict[str, int]:
    """All figures under names such as ``allocated_bytes.all.peak``, sorted."""
    return OrderedDict(sorted(flat("", memory_stats_as_nested_dict(device))))


def memory_allocated(device: Device = None) -> int:
    """Bytes of the tensors that are alive."""
    return memory_stats(device).get("allocated_bytes.all.current", 0)


def max_memory_allocated(device: Device = None) -> int:
    """The highest ``memory_allocated`` since the start or the last reset."""
    return memory_stats(device).get("allocated_bytes.all.peak", 0)


def memory_reserved(device: Device = None) -> int:
    """Bytes that the allocator holds, tensors included."""
    return memory_stats(device).get("reserved_bytes.all.current", 0)


def max_memory_reserved(device: Device = None) -> int:
    """The highest ``memory_reserved`` since the start or the last reset."""
    return memory_stats(device).get("reserved_bytes.all.peak", 0)


def empty_cache() -> None:
    """Give unused segments back; nothing happens before the device is initialised."""
    if machine().initialized:
        machine().memory.empty_cache()


def host_empty_cache() -> None:
    """Give unused pinned host memory back; there is none."""


def reset_peak_memory_stats(device: Device = None) -> None:
    """Let the peaks start again from what is there now."""
    _memory(device).reset_peak()


def reset_max_memory_allocated(device: Device = None) -> None:
    """The older name of ``reset_peak_memory_stats``."""
    reset_peak_memory_stats(device)


def reset_accumulated_memory_stats(device: Device = None) -> None:
    """Let the sums of what was allocated and freed start again from zero."""
    _memory(device).reset_accumulated()


def get_per_process_memory_fraction(device: Device = None) -> float:
    """The part of the device's memory that this process may take; initialises the device."""
    machine().start()
    return _memory(device).fraction


def set_per_process_memory_fraction(fraction: float, device: Device = None) -> None:
    """Allow this process a part of the device's memory, 0.0 to 1.0; initialises the device."""
    machine().start()
    _memory(device).fraction = checked_fraction(fraction)


def _memory(device: Device) -> DeviceMemory:
    """The memory of a device; ValueError for one of another type."""
    if device_index(device) != 0:
        raise RuntimeError(f"Invalid device ID: {device}, but there is 1 npu device")
    return machine().memory
