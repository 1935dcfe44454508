"""Devices by number: what code means that was written for several GPUs, also where devices have no numbers."""

from __future__ import annotations

import contextlib
import numbers
from contextlib import AbstractContextManager
from typing import Any

from devicekit.errors import DeviceUnavailableError, UnknownDeviceError
from devicekit.resolve import Decision, index_problem, resolver

__all__ = ["count", "device_at", "make_current", "name_of", "number", "while_current"]

CPU = "cpu"


def count(decision: Decision) -> int:
    """How many devices of this backend can be used here; none of the processor, as ``torch.accelerator`` counts."""
    return sum(device.usable for device in decision.answer.devices) if decision.backend.accelerator else 0


def name_of(decision: Decision, index: int) -> str:
    """What the probe calls the device; the device's type where it has no name for it."""
    found = decision.answer.device(index)
    return str(found.name) if found is not None and found.name else decision.backend.device_type


def device_at(decision: Decision, index: object) -> Any:
    """The device that a number, a word or a ``torch.device`` means on this backend; None: the one decided on.

    Whether there is one of this number shows when it is used, as for ``torch.device("cuda:8")``: a program may name
    devices of other hosts, or be about to choose which are visible.

    Raises:
        UnknownDeviceError: it is no device.
    """
    if index is None:
        return decision.device
    if isinstance(index, str) and index.isdecimal():  # "cuda:" + number, where the number came as text
        index = int(index)
    backend = decision.backend
    asked = resolver(backend.host).parse(index, "argument")
    if asked.word == CPU and backend.accelerator:
        return backend.torch.device(CPU)
    if asked.index is None or not backend.indexed:
        return decision.device
    return backend.device(asked.index)


def make_current(decision: Decision, index: object) -> None:
    """Make it the runtime's current device, where that changes anything."""
    at = number(decision, index)
    if at is not None:
        decision.backend.make_current(at)


def while_current(decision: Decision, index: object) -> AbstractContextManager[None]:
    """A context in which it is the runtime's current device."""
    at = None if index is None else number(decision, index)
    return contextlib.nullcontext() if at is None else decision.backend.being_current(at)


def number(decision: Decision, index: object, becomes: str = "made current") -> int | None:
    """The number of the device that is to be current, or given something else. None: the one that is current anyway,
    because devices have no numbers here, or none is named, or it is negative, which torch.cuda takes for that.

    Raises:
        UnknownDeviceError: it is no device of this backend.
        DeviceUnavailableError: there is no device of this number.
    """
    if isinstance(index, numbers.Integral) and int(index) < 0:
        return None
    device = device_at(decision, index)
    if not decision.backend.indexed:
        return None
    if device.type != decision.device.type:
        raise UnknownDeviceError(
            f"{str(device)!r} cannot be {becomes}.",
            why=f"only {decision.name} devices can be",
            try_=f'a number, or "{decision.name}:0"',
        )
    problem = None if device.index is None else index_problem(decision.name, decision.answer, device.index)
    if problem is not None:
        what = f"{str(index)!r} was asked for, but it cannot be used here."
        raise DeviceUnavailableError(what, why=problem[0], try_=problem[1])
    return device.index  # type: ignore[no-any-return]
