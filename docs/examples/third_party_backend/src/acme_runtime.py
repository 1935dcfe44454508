"""Stands for the vendor's own package: one card. A real one would call a driver."""

from __future__ import annotations

GIB = 1024**3


class DriverError(Exception):
    """The driver does not answer."""


class Card:
    """One card, as a driver tells of it."""

    name = "Acme One"
    generation = "acme2"
    total_memory = 8 * GIB

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.free_memory = self.total_memory


_CARDS = (Card("A-0001"),)


def driver_version() -> str:
    """The version of the kernel driver."""
    return "2.4"


def cards() -> tuple[Card, ...]:
    """The cards in the machine. Starts nothing."""
    return _CARDS


def release_cached_memory(card: Card) -> None:
    """Give unused memory back."""
    card.free_memory = card.total_memory
