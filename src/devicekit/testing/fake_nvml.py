"""pynvml of a machine that is data: it sees cards, not masks, counts along the PCI bus, and knows MIG slices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from devicekit.testing.machines import Card, Machine

__all__ = ["FakeNvml"]


class NVMLError(Exception):
    """As in nvidia-ml-py, without its numbers."""


class FakeNvml:
    """The module, under its own long names."""

    NVMLError = NVMLError

    def __init__(self, machine: Machine, in_use: Any) -> None:
        self._machine = machine
        self._in_use = in_use
        self.sessions = 0
        """``nvmlInit`` less ``nvmlShutdown``."""
        for name, method in {
            "nvmlInit": self._start,
            "nvmlShutdown": self._stop,
            "nvmlSystemGetCudaDriverVersion_v2": self._cuda_version,
            "nvmlSystemGetDriverVersion": lambda: self._asked("580.65.06"),
            "nvmlDeviceGetCount": lambda: self._asked(len(self._cards())),
            "nvmlDeviceGetHandleByIndex": lambda index: self._asked(self._cards()[index]),
            "nvmlDeviceGetHandleByUUID": self._by_uuid,
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": self._parent,
            "nvmlDeviceGetName": lambda card: self._asked(card.name),
            "nvmlDeviceGetUUID": lambda card: self._asked(card.uuid),
            "nvmlDeviceGetCudaComputeCapability": lambda card: self._asked(divmod(card.number, 10)),
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetMigMode": self._mig_mode,
        }.items():
            setattr(self, name, method)

    def _cards(self) -> tuple[Card, ...]:
        return self._machine.cards_of("nvidia")

    def _asked(self, answer: Any) -> Any:
        if self.sessions <= 0:
            raise NVMLError("Uninitialized")
        return answer

    def _start(self) -> None:
        if self._machine.driver is None or not self._machine.nvml:
            raise NVMLError("NVML Shared Library Not Found")
        self.sessions += 1

    def _stop(self) -> None:
        self._asked(None)
        self.sessions -= 1

    def _cuda_version(self) -> int:
        major, _, minor = str(self._machine.driver).partition(".")
        return int(self._asked(int(major) * 1000 + int(minor or 0) * 10))

    def _by_uuid(self, uuid: str) -> Card:
        known = {c.uuid: c for card in self._cards() for c in (card, *card.slices)}
        if uuid not in known:
            raise NVMLError("Not Found")
        card: Card = self._asked(known[uuid])
        return card

    def _parent(self, part: Card) -> Card:
        return next(card for card in self._cards() if part in card.slices)

    def _memory(self, card: Card) -> Any:
        if card.integrated or self._machine.faults.no_memory_query:  # a GB10 or a Jetson
            raise NVMLError("Not Supported")
        free = self._asked(max(0, card.left - self._in_use(card)))
        return SimpleNamespace(total=card.total, free=free, used=card.total - free)

    def _mig_mode(self, card: Card) -> list[int]:
        if card.number < 80:
            raise NVMLError("Not Supported")
        return [int(bool(card.slices))] * 2
