"""What was measured to be best, and where it was measured: it counts nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devicekit.backend import Backend
from devicekit.container import usable_cpus
from devicekit.host import Host
from devicekit.values import DeviceInfo

__all__ = ["DTYPES", "FORMAT", "LONGEST", "VERSION", "WORDS", "Fingerprint", "Tuning", "fingerprint", "fingerprint_of"]

FORMAT = "devicekit.tuning"
VERSION = 1
LONGEST = 200
"""Letters of a text in a file."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Where a tuning counts: on a machine and a device like these, with this software."""

    processor: str
    cpus: int
    """CPUs that this process may use: the affinity mask, cut by the container's quota."""
    quota: float | None
    """CPUs' worth of time that the container gives; None: no quota."""
    backend: str
    device: str
    architecture: str | None
    torch: str
    devicekit: str
    """The part of the version that changes with what a tuning means: ``0.1``, ``2``."""

    def difference(self, other: Fingerprint) -> str:
        """Why a tuning of ``other`` does not count here, in words; empty where it does."""
        for name, words in WORDS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"it was measured with {words} {theirs!r}, and here it is {mine!r}"
        return ""


WORDS = {
    "processor": "the processor",
    "cpus": "a number of usable CPUs of",
    "quota": "a CPU quota of",
    "backend": "the backend",
    "device": "the device",
    "architecture": "the architecture",
    "torch": "torch",
    "devicekit": "devicekit",
}
"""Each part of a fingerprint, for people."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The choices that were fastest, each with what it was measured against."""

    fingerprint: Fingerprint
    created: str
    """When, in UTC: ``2026-01-31T12:00:00+00:00``."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``: the default of ``DeviceManager.dtype``."""
    threads: int | None = None
    """For the processor's own work; None: torch's number, or this device does the work."""
    own_threads: int | None = None
    """What torch had chosen by itself where this was measured; another number there means that the user chose."""
    attention: str | None = None
    """The kernel that was faster than torch's choice, for ``DeviceManager.attention``; None: leave it to torch."""
    channels_last: bool | None = None
    """Convolutions are faster with ``memory_format=torch.channels_last``; None: it cannot be told."""
    allocator: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables that made it faster or smaller; they count only before a process starts, so devicekit
    cannot set them."""
    seconds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """What was measured: question, to choice, to seconds."""

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dict; what a file holds."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}


# -- where it counts -----------------------------------------------------------------------------
def fingerprint(host: Host, backend: str, device: DeviceInfo, torch_version: str) -> Fingerprint:
    """The fingerprint of a device on this host."""
    from devicekit import __version__, reporting

    major, minor = __version__.split(".")[:2]
    return Fingerprint(
        processor=_plain(reporting.processor(host)),
        cpus=usable_cpus(host.cgroup()),
        quota=host.cgroup().cpu_quota(),
        backend=backend,
        device=_plain(device.name),
        architecture=None if device.architecture is None else _plain(device.architecture),
        torch=torch_version,
        devicekit=major if major != "0" else f"0.{minor}",  # before 1.0 the minor is what the major is later
    )


def _plain(text: str) -> str:
    """As a file may hold it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:LONGEST]


def fingerprint_of(backend: Backend, index: int) -> Fingerprint:
    """The same for a backend's device. May start its runtime."""
    return fingerprint(backend.host, backend.name, backend.describe(index), str(backend.torch.__version__))
