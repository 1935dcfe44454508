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

__all__ = ["Card", "Current", "DecidedTarget", "Target", "invalid_ordinal"]


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

    # -- what has an answer that is right for most -----------------------------------------------
    def exists(self, index: int) -> bool:
        """There is a device of this number."""
        return 0 <= index < self.count

    def bfloat16(self, index: int) -> str:
        """``native``, ``emulated`` or ``no``, as :mod:`devicekit.formats` has it; GPUs have it from 8.0 on."""
        return "native" if self.card(index).capability >= (8, 0) else "emulated"

    def generator(self, index: int) -> Any:
        """The default generator of a device; a processor's is the one that the host has."""
        return self.torch.default_generator

    def manual_seed(self, seed: int, *, every: bool) -> None:
        """Seed the default generator of the current device, or of every one."""
        self.torch.default_generator.manual_seed(seed)

    def limit_memory(self, index: int, fraction: float) -> None:
        """Let this process have no more than this part of the device's memory; nothing, where that cannot be."""

    def compile_problem(self) -> str:
        """Why torch's own compiler makes nothing for the device; empty where it does."""
        return ""

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
        self._thread = Current()

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

    def exists(self, index: int) -> bool:
        """Where there is only one device, any number means it."""
        return not self._backend.indexed or super().exists(index)

    def bfloat16(self, index: int) -> str:
        """As the facade says; what it cannot tell runs, and nobody knows how."""
        return self._backend.precisions(self._own(index)).get("bfloat16", "emulated")

    def generator(self, index: int) -> Any:
        """The runtime's own, which it makes when it starts."""
        if not self._backend.accelerator:
            return super().generator(index)
        runtime = self._runtime
        if not hasattr(runtime, "default_generators"):  # torch.mps, which has one device
            return runtime._get_default_mps_generator()
        runtime.init()
        return runtime.default_generators[index]

    def manual_seed(self, seed: int, *, every: bool) -> None:
        """As the runtime does it: a seed that comes before its start waits for it, and starts nothing."""
        if not self._backend.accelerator:
            super().manual_seed(seed, every=every)
        elif every:
            self._backend.manual_seed(seed)
        else:
            self._runtime.manual_seed(seed)

    def limit_memory(self, index: int, fraction: float) -> None:
        """Where the runtime has numbered devices and such a limit."""
        limit = getattr(self._runtime, "set_per_process_memory_fraction", None) if self._backend.indexed else None
        if limit is not None:
            limit(fraction, index)

    def compile_problem(self) -> str:
        """The backend's own."""
        return self._backend.compile_problem(self._own(self.current))

    @property
    def streams(self) -> Any:
        """The runtime's, or stand-ins for one queue of work."""
        return self._backend.streams()

    @property
    def collective(self) -> str:
        """Gloo for a processor."""
        return self._backend.collective

    @property
    def _runtime(self) -> Any:
        return getattr(self.torch, self._backend.device_type)

    def _own(self, index: int) -> int:
        return index if self._backend.indexed else 0


class Current(threading.local):
    """The number of the current device, where it is only remembered: each thread has its own, and starts with 0."""

    index = 0


def invalid_ordinal(torch: Any) -> Exception:
    """What CUDA raises for the number of a device that is not there."""
    error: Exception = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: invalid device ordinal")
    return error
