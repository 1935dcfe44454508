"""Acme accelerators, through the vendor's package acme_runtime.

A whole backend for devicekit. The card does not exist: acme_runtime stands for a vendor's package, and torch computes
on the processor, so that this example runs anywhere.
"""

from __future__ import annotations

from typing import Any

from devicekit.backend import Backend, seeded
from devicekit.values import Availability, DeviceInfo, MemoryStats

MASK = "ACME_VISIBLE_DEVICES"


class AcmeBackend(Backend):
    """The cards that the Acme driver shows."""

    name = "acme"
    # What torch calls the device, and that there is one without a number. A vendor whose package registers the device
    # with torch under the backend's name leaves both lines out.
    device_type = "cpu"
    indexed = False

    # -- the five questions --------------------------------------------------------------------
    def probe(self) -> Availability:
        """The vendor's package, its driver, and at least one card that the mask leaves."""
        if not self.host.installed("acme_runtime"):
            return Availability.absent("acme_runtime is not installed", "pip install acme-device")
        runtime = self._runtime
        try:
            cards = runtime.cards()
        except runtime.DriverError as exc:
            return Availability.no(f"the Acme driver does not answer: {exc}", "acme-smi, or reboot")
        mask = self.host.env.get(MASK)
        if mask is not None:
            cards = [card for card in cards if card.serial in mask.split(",")]
        if not cards:
            told = f"{MASK}={mask!r} hides every card" if mask is not None else "no Acme card is here"
            return Availability.no(told, f"unset {MASK}" if mask is not None else 'device="auto"')
        return Availability.yes(
            DeviceInfo(
                index,
                card.name,
                architecture=card.generation,
                total_memory=card.total_memory,
                free_memory=card.free_memory,
                integrated=False,
                bfloat16=True,
            )
            for index, card in enumerate(cards)
        )

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16, which every Acme card computes itself."""
        return self.torch.bfloat16

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A generator that the device's factories accept."""
        return seeded(self.torch.Generator(device=self.device_type), seed)

    def memory_stats(self, index: int = 0) -> MemoryStats:
        """The driver knows the card; how much of it is torch's, nobody counts."""
        card = self._runtime.cards()[index]
        return MemoryStats(
            total=card.total_memory,
            available=card.free_memory,
            allocated=None,
            unified=False,
            source="the Acme driver (the whole card)",
        )

    def empty_cache(self, index: int = 0) -> None:
        """Have the driver take back what is not used."""
        self._runtime.release_cached_memory(self._runtime.cards()[index])

    # -- where the defaults do not fit ---------------------------------------------------------
    def storable(self, dtype: Any) -> Any:
        """Acme cards have no double precision."""
        return self.torch.float32 if dtype is self.torch.float64 else dtype

    def versions(self) -> dict[str, str]:
        """The driver's version, for reports."""
        return {"acme_driver": self._runtime.driver_version()}

    @property
    def _runtime(self) -> Any:
        """The vendor's package. Through the host, never by an import at the top of the file."""
        return self.host.import_module("acme_runtime")
