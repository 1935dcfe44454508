"""What "cuda" stands for: the contract, and the device that was decided on."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from devicekit.numbering import name_of
from devicekit.resolve import Decision
from devicekit.values import MemoryStats

__all__ = ["Card", "DecidedTarget", "Target"]


@dataclass(frozen=True)
class Card:
    """What a program can ask about one device: the figures of ``torch.cuda.get_device_properties``."""

    name: str
    total_memory: int
    """Bytes; 0 where nobody can tell."""
    capability: tuple[int, int] = (0, 0)
    """The compute capability; (0, 0) for what is no NVIDIA GPU, so that programs take their most careful path."""
    multi_processor_count: int = 1


class Target(ABC):
    """The devices that "cuda:0", "cuda:1" and so on stand for. An index is always a real one, never CURRENT."""

    torch: Any
    count: int
    """How many there are; at least one."""

    @property
    @abstractmethod
    def current(self) -> int:
        """The number of the current device, in this thread."""

    @abstractmethod
    def make_current(self, index: int) -> None:
        """Make it the current device, in this thread."""

    @abstractmethod
    def real(self, index: int) -> Any:
        """The torch.device where tensors of this device really lie.

        Raises:
            RuntimeError: there is no device of this number.
        """

    @abstractmethod
    def card(self, index: int) -> Card:
        """What can be asked about the device."""

    @abstractmethod
    def memory_stats(self, index: int) -> MemoryStats:
        """Bytes."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Give cached memory back."""

    @abstractmethod
    def reset_peak_memory(self, index: int) -> None:
        """Start the peak anew."""

    @abstractmethod
    def synchronize(self, index: int) -> None:
        """Wait until the device has done all that it was given."""

    @property
    @abstractmethod
    def streams(self) -> Any:
        """What has torch.cuda's ``Stream``, ``Event``, ``stream`` and so on."""

    @property
    @abstractmethod
    def collective(self) -> str:
        """The library that moves tensors between processes, by torch's name for it."""

    @property
    def device_type(self) -> str:
        """What torch calls the real device; also the type that autocast is asked for."""
        return str(self.real(0).type)

    @property
    def on_host(self) -> bool:
        """The real device is the host's processor, so that copies must be made where a card would need none."""
        return self.device_type == "cpu"

    @contextmanager
    def while_current(self, index: int) -> Iterator[None]:
        """Inside, it is the current device."""
        before = self.current
        self.make_current(index)
        try:
            yield
        finally:
            self.make_current(before)


class DecidedTarget(Target):
    """The device that was decided on, told truly.

    Args:
        decision: which device.
        count: how many devices a processor is to stand for. It can stand for any number, so by default one for each
            process that a launcher started here; a number beyond that is the processor as well.
    """

    def __init__(self, decision: Decision, count: int | None = None) -> None:
        self._decision = decision
        self._backend = decision.backend
        self.torch = decision.backend.torch
        usable = [device for device in decision.answer.devices if device.usable]
        started = os.environ.get("LOCAL_WORLD_SIZE", "")
        self.count = len(usable) if self._backend.indexed else count or int(started if started.isdecimal() else 1) or 1
        self._thread = _Current()

    @property
    def current(self) -> int:
        """As the runtime has it; on a processor a number that is only remembered."""
        return (self._backend.current_index() or 0) if self._backend.indexed else self._thread.index

    def make_current(self, index: int) -> None:
        """The runtime's own, where it has one."""
        if self._backend.indexed:
            self._backend.make_current(index)
        self._thread.index = index

    def real(self, index: int) -> Any:
        """The runtime complains itself about a device that it does not have."""
        return self._backend.device(index)

    def card(self, index: int) -> Card:
        """The device's own name and memory."""
        processors = 1 if self._backend.accelerator else os.cpu_count() or 1
        total = self._backend.memory_stats(self._own(index)).total
        return Card(name_of(self._decision, self._own(index)), total or 0, multi_processor_count=processors)

    def memory_stats(self, index: int) -> MemoryStats:
        """What the facade says."""
        return self._backend.memory_stats(self._own(index))

    def empty_cache(self) -> None:
        """The current device's."""
        self._backend.empty_cache(self._own(self.current))

    def reset_peak_memory(self, index: int) -> None:
        """Where the runtime keeps one."""
        self._backend.reset_peak_memory(self._own(index))

    def synchronize(self, index: int) -> None:
        """Nothing to wait for on a processor."""
        self._backend.synchronize(self._own(index))

    @property
    def streams(self) -> Any:
        """The runtime's, or stand-ins for one queue of work."""
        return self._backend.streams()

    @property
    def collective(self) -> str:
        """Gloo for a processor."""
        return self._backend.collective

    def _own(self, index: int) -> int:
        return index if self._backend.indexed else 0


class _Current(threading.local):
    index = 0
