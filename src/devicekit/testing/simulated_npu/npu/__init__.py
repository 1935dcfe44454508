"""The module that becomes ``torch.npu``: the functions of torch_npu that code really calls.

Names, defaults and errors are those of torch_npu 2.13.0 (Ascend/pytorch at 9e73e708). What is not
here raises AttributeError, rather than pretending.
"""

from __future__ import annotations

import os
import types
import warnings
from collections.abc import Callable

import torch

from devicekit.testing.simulated_npu.machine import device_index, machine
from devicekit.testing.simulated_npu.npu.memory import (
    empty_cache,
    get_per_process_memory_fraction,
    host_empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_stats_as_nested_dict,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from devicekit.testing.simulated_npu.npu.random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from devicekit.testing.simulated_npu.npu.streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    set_stream,
    stream,
)

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "can_device_access_peer",
    "current_device",
    "current_stream",
    "default_generators",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_per_process_memory_fraction",
    "get_rng_state",
    "get_rng_state_all",
    "get_soc_version",
    "host_empty_cache",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "is_jit_compile_false",
    "manual_seed",
    "manual_seed_all",
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
    "seed",
    "seed_all",
    "set_compile_mode",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "stream",
    "synchronize",
    "utilization",
]

Device = torch.device | str | int | None

default_generators: tuple[torch.Generator, ...] = ()
"""One generator a device; filled by ``install``."""


def is_available() -> bool:
    """Whether there is a device; does not initialise it."""
    return device_count() > 0


def device_count() -> int:
    """The number of devices; does not initialise them."""
    return machine().settings.count


def is_initialized() -> bool:
    """Whether the device was used already."""
    return machine().initialized and not machine().forked


def init() -> None:
    """Initialise the device; RuntimeError without one, or in a fork of a process that used it."""
    machine().start()


_lazy_init = init


def _lazy_call(callback: Callable[[], None]) -> None:
    callback()


def _is_in_bad_fork() -> bool:
    return machine().forked


def current_device() -> int:
    """The index of the current device, which is 0."""
    machine().start()
    return 0


def set_device(device: Device) -> None:
    """Make this the current device; RuntimeError when it does not exist."""
    index = device_index(device)
    machine().start()
    if not 0 <= index < device_count():
        raise RuntimeError(f"Invalid device ID: {index}, but there is 1 npu device")


class device:  # noqa: N801  # torch.npu.device is its name
    """Context manager that makes a device the current one."""

    def __init__(self, device: Device) -> None:
        self.idx = device_index(device)

    def __enter__(self) -> None:
        set_device(self.idx)

    def __exit__(self, *_: object) -> None:
        return None


def can_device_access_peer(device: Device, peer: Device) -> bool:
    """Whether a device can reach another one's memory; there is no other one."""
    _checked(device)
    _checked(peer)
    return False


def synchronize(device: Device = None) -> None:
    """Wait for the device, which has always finished."""
    set_device(device)


def get_device_name(device: Device = None) -> str:
    """The chip's name; AssertionError for a device that does not exist."""
    _checked(device)
    return machine().settings.soc


def get_device_properties(device: Device = None) -> types.SimpleNamespace:
    """Name and memory (bytes) of a device; AssertionError for one that does not exist.

    The numbers of cores and the cache (bytes) are those of no particular chip. ``major`` and
    ``minor`` exist and are None, as with torch_npu.
    """
    _checked(device)
    machine().start()
    return types.SimpleNamespace(
        name=machine().settings.soc,
        total_memory=machine().settings.memory,
        cube_core_num=24,
        vector_core_num=48,
        L2_cache_size=192 << 20,
        major=None,
        minor=None,
    )


def get_device_capability(device: Device = None) -> tuple[int, int] | None:
    """What ``TORCH_NPU_DEVICE_CAPABILITY`` says; None and a warning when it says nothing."""
    device_index(device)
    said = os.environ.get("TORCH_NPU_DEVICE_CAPABILITY")
    if said is None:
        name = "TORCH_NPU_DEVICE_CAPABILITY"
        warnings.warn(f"Set {name} to give the device a capability.", stacklevel=2)
        return None
    major, _, minor = said.partition(".")
    return int(major), int(minor)


def get_soc_version() -> int:
    """The number of the chip, see ``settings.SOC_VERSIONS``; initialises the device."""
    machine().start()
    return machine().settings.soc_version


def is_bf16_supported(including_emulation: bool = False) -> bool:  # noqa: ARG001  # nothing is emulated
    """Whether the chip is an Ascend910B1 (220) or later; initialises the device."""
    machine().start()
    return machine().settings.bfloat16


def get_amp_supported_dtype() -> list[torch.dtype]:
    """The types that autocast takes; torch asks for them."""
    if is_bf16_supported():
        return [torch.float16, torch.bfloat16, torch.float32]
    return [torch.float16, torch.float32]


def utilization(device: Device = None) -> int:
    """How busy the device is, in percent: never."""
    _checked(device)
    return 0


def set_compile_mode(jit_compile: bool = False) -> None:
    """Choose between compiling kernels and taking prebuilt ones; kept, without effect."""
    machine().jit_compile = jit_compile


def is_jit_compile_false() -> bool:
    """Whether prebuilt kernels are taken; initialises the device."""
    machine().start()
    return not machine().jit_compile


def _checked(device: Device) -> int:
    index = device_index(device)
    if not 0 <= index < device_count():
        raise AssertionError("Invalid device id")
    return index
