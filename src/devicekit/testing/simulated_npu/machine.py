"""The one simulated machine of this process: its settings, and what has happened to it.

torch can rename PrivateUse1 once per process, so there is one machine and no way back.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from devicekit.testing.device_memory import DeviceMemory

if TYPE_CHECKING:
    from devicekit.testing.simulated_npu.settings import Settings

__all__ = ["NAME", "Machine", "NO_DEVICE", "device_index", "is_installed", "machine", "set_machine"]

NAME = "npu"
NO_DEVICE = "No NPUs are available"


class Machine:
    """Settings and state, shared by all that plays a part of the device."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.memory = DeviceMemory(settings.memory, "NPU 0")
        self.generators: tuple[torch.Generator, ...] = ()
        self.initialized = False
        self.forked = False
        self.jit_compile = False
        if hasattr(os, "register_at_fork"):  # Windows cannot fork
            os.register_at_fork(after_in_child=self._remember_fork)

    @property
    def generator(self) -> torch.Generator:
        """The device's own generator; RuntimeError without a device."""
        if not self.generators:
            raise RuntimeError(NO_DEVICE)
        return self.generators[0]

    def start(self) -> None:
        """Do what the runtime does at first use.

        Raises RuntimeError without a device, or in a fork of a process that used it already.
        """
        if self.forked:
            raise RuntimeError(
                "Cannot re-initialize NPU in forked subprocess. To use NPU with "
                "multiprocessing, you must use the 'spawn' start method"
            )
        if self.settings.count == 0:
            raise RuntimeError(NO_DEVICE)
        self.initialized = True

    def _remember_fork(self) -> None:
        self.forked = self.initialized


_machine: Machine | None = None


def machine() -> Machine:
    """The machine that ``install`` made."""
    if _machine is None:
        raise RuntimeError("there is no simulated npu yet: call simulated_npu.install() first")
    return _machine


def is_installed() -> bool:
    """Whether this process has its machine already."""
    return _machine is not None


def set_machine(made: Machine) -> None:
    """Make this the machine of the process, for good."""
    global _machine
    _machine = made


def device_index(device: torch.device | str | int | None = None) -> int:
    """The index that ``device`` means; None and ``"npu"`` mean the current one, which is 0.

    Raises ValueError for a device of another type. An index that does not exist is returned as
    it is: what torch_npu does about it differs from function to function.
    """
    if device is None:
        return 0
    if isinstance(device, int):
        return device
    device = torch.device(device)
    if device.type != NAME:
        raise ValueError(f"Expected a npu device, but got: {device}")
    return device.index or 0
