"""What both ends of the pipe agree on: the mark, the names of the steps, the question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from devicekit.formats import FORMATS

__all__ = ["MARK", "SECONDS", "Wanted", "closer_steps", "label"]

SECONDS = 60.0
"""How long one step may take. Importing torch from a cold disk takes 20 s, the first start of CUDA 10 s."""

MARK = "\x1edevicekit "
"""Begins every line of ours; what plugins print beside it is noise."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to ask."""

    device: str | None = None
    """Instead of the pins."""
    strict: bool = False
    """No other device than the one that is asked for."""
    everything: bool = True
    """False: only what the decision needs."""
    describe: bool = True
    verify: bool = False
    seconds: float = SECONDS


def label(name: str, index: object = None) -> str:
    """How one asks for a device: ``cuda:0``, ``mps``."""
    return name if index is None else f"{name}:{index}"


def closer_steps(position: int, availability: dict[str, Any], wanted: Wanted) -> Iterator[str]:
    """What is asked of a backend that said yes."""
    if not availability["usable"]:
        return
    if wanted.describe:
        yield f"versions {position}"
    for device in availability["devices"]:
        if device["usable"]:
            where = f"{position} {device['index']}"
            yield from [f"describe {where}"] * wanted.describe + [f"verify {where}"] * wanted.verify
            yield from [f"try {where} {form}" for form in FORMATS if wanted.verify and wanted.describe]
