"""The worker plan: who does the work of a graph on a device, how many of each, and why; from what devicekit tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import devicekit as dk

__all__ = ["Choice", "Plan", "plan"]

SPARE = 0.1
"""The part of the free memory that is left to others."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Choice:
    """A number, and what it rests on."""

    value: int | None
    """None: it cannot be told, or is not ours to choose."""
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a graph is run on one device."""

    workers: Choice
    """They share the work of a step."""
    schedulers: Choice
    """They hand the steps out, one after the other, and do none of their work."""
    runs: Choice
    """Runs of the graph for which there is memory at the same time."""

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The same as a JSON-able dict."""
        return asdict(self)


def plan(dm: dk.DeviceManager, machine: Mapping[str, Any], nbytes: int) -> Plan:
    """The plan for a device.

    Args:
        dm: the device.
        machine: what ``devicekit.info()`` gave; asked once for all devices.
        nbytes: what one run of the graph takes.
    """
    workers = _workers(dm, machine)
    return Plan(workers, _schedulers(dm, workers), _runs(dm, nbytes))


def _workers(dm: dk.DeviceManager, machine: Mapping[str, Any]) -> Choice:
    if dm.is_accelerator:
        return Choice(None, "the device spreads a step over its own units; how many it has is not told")
    pinned = {name: text for name, text in machine["environment"].items() if name in THREADS and text.isdecimal()}
    for name, text in pinned.items():
        return Choice(max(1, int(text)), f"{name} says so")
    if dm.tuning is not None and dm.tuning.threads is not None:
        return Choice(dm.tuning.threads, "devicekit tune found it fastest on this machine")
    facts = machine["machine"]
    quota = facts["cpu_quota"]
    limit = "" if quota is None else f", and the container gives {quota:g} CPUs' worth of time"
    return Choice(facts["usable_cpus"], f"{facts['usable_cpus']} of {facts['cpus']} CPUs are usable{limit}")


def _schedulers(dm: dk.DeviceManager, workers: Choice) -> Choice:
    if dm.is_accelerator:
        return Choice(1, "one thread of the host fills the device's queue, and waits only at the end")
    if workers.value == 1:
        return Choice(0, "the only worker goes through the steps itself")
    return Choice(1, "one thread goes through the steps, and each is shared by the workers")


def _runs(dm: dk.DeviceManager, nbytes: int) -> Choice:
    memory = dm.memory_stats()
    if memory.available is None:
        return Choice(None, f"free memory cannot be told ({memory.source})")
    free = int(memory.available * (1 - SPARE))
    return Choice(free // nbytes, f"{_mib(free)} of free memory to use ({memory.source}), {_mib(nbytes)} for each run")


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
