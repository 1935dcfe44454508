"""What a requirement can ask of a device: number formats, kinds, and figures that compare with a value."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from devicekit.cli.output import human_bytes
from devicekit.errors import DeviceKitError
from devicekit.formats import NATIVE, NO
from devicekit.isolation.facts import BackendFacts, DeviceFacts, TorchFacts

__all__ = [
    "ACCELERATOR",
    "DTYPES",
    "FIGURES",
    "Figure",
    "Subject",
    "Told",
    "compare",
    "has_dtype",
    "is_accelerator",
    "is_backend",
    "is_unit",
]

DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp16": "float16", "float16": "float16", "half": "float16",
    "fp32": "float32", "float32": "float32", "float": "float32",
    "fp64": "float64", "float64": "float64", "double": "float64",
    "tf32": "tf32", "fp8": "float8", "float8": "float8", "int8": "int8", "int4": "int4",
}  # fmt: skip
ACCELERATOR = ("gpu", "accelerator")
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip

SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kmgt]i?b|b)", re.IGNORECASE)
POWERS = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Subject:
    """The device that must have it, with its backend and its torch."""

    torch: TorchFacts
    backend: BackendFacts
    device: DeviceFacts


class Told(NamedTuple):
    """A term's answer: met or not, None where it cannot be told, and the actual value in words."""

    met: bool | None
    said: str


class Fact(NamedTuple):
    """A figure, or None with the reason."""

    value: Any
    said: str


# -- values ------------------------------------------------------------------------------------
def _size(text: str) -> int:
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size, which is a number and a unit")
    number, unit = match.groups()
    base = 1024 if unit[1:2].lower() == "i" else 1000
    return int(float(number) * base ** POWERS[unit[0].lower()])


def is_unit(figure: Figure, number: str, word: str) -> bool:
    """Whether this word is the unit of this number, written apart from it."""
    return figure.read is _size and SIZE.fullmatch(number + word) is not None


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def _capability_value(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no compute capability")
    return int(match.group(1)), int(match.group(2) or 0)


def _version(text: str) -> Any:
    try:
        from packaging.version import InvalidVersion, Version  # here, because most requirements need none
    except ImportError as exc:
        raise DeviceKitError("versions cannot be compared.", why=str(exc), try_="pip install packaging") from exc
    try:
        return Version(text)
    except InvalidVersion:
        raise ValueError(f"{text!r} is no version") from None


# -- terms -------------------------------------------------------------------------------------
def has_dtype(subject: Subject, dtype: str) -> Told:
    """Whether it computes this number format natively."""
    word = subject.device.precisions.get(dtype)
    if word is None:
        return Told(None, f"whether it computes {dtype} natively cannot be told")
    return Told(word == NATIVE, f"{dtype} is {'not there' if word == NO else word}")


def is_accelerator(subject: Subject) -> Told:
    """Whether it is no processor."""
    found = subject.backend.accelerator
    return Told(found, f"{subject.device.label} is {'an accelerator' if found else 'the processor'}")


def is_backend(subject: Subject, name: str) -> Told:
    """Whether it belongs to this backend."""
    return Told(subject.backend.name == name, f"the backend is {subject.backend.name}")


def compare(fact: Fact, comparison: str, wanted: Any) -> Told:
    """A figure against a value."""
    if fact.value is None:
        return Told(None, fact.said)
    return Told(COMPARISONS[comparison](fact.value, wanted), fact.said)


def _bytes(what: str, value: int | None, source: str) -> Fact:
    known = "unknown" if value is None else human_bytes(value)
    return Fact(
        value, f"{what} memory is {known}: {source}" if value is None else f"{what} memory is {known} ({source})"
    )


def _total(subject: Subject) -> Fact:
    return _bytes("total", subject.device.info.total_memory, subject.device.memory_source)


def _free(subject: Subject) -> Fact:
    return _bytes("free", subject.device.info.free_memory, subject.device.memory_source)


def _devices(subject: Subject) -> Fact:
    count = sum(device.info.usable for device in subject.backend.devices)
    return Fact(count, f"{subject.backend.name} has {count} usable")


def _capability(subject: Subject) -> Fact:
    architecture = subject.device.info.architecture or ""
    match = re.fullmatch(r"sm_([0-9]+)([0-9])[af]?", architecture)
    if match is None:
        return Fact(
            None, f"compute capability is unknown: only NVIDIA's have one, and this is {architecture or 'another'}"
        )
    text = ".".join(match.groups())
    return Fact(_capability_value(text), f"compute capability is {text}")


def _of_version(name: str, text: str | None, why: str, *, local: bool = True) -> Fact:
    if text is None:
        return Fact(None, f"{name} version is unknown: {why}")
    try:
        found = _version(text if local else text.partition("+")[0])
    except ValueError as exc:
        return Fact(None, f"{name} version is unknown: {exc}")
    return Fact(found, f"{name} version is {text}")


def _torch(subject: Subject) -> Fact:
    # The build's tag (+cu130) is no part of the comparison: "torch==2.13.0" means every build of it.
    return _of_version("torch", subject.torch.version, subject.torch.reason, local=False)


def _driver(subject: Subject) -> Fact:
    return _of_version("driver", subject.backend.versions.get("driver"), f"{subject.backend.name} does not tell it")


class Figure(NamedTuple):
    """A figure of a subject, and how a value for it is read."""

    of: Callable[[Subject], Fact]
    read: Callable[[str], Any]
    example: str


FIGURES = {
    "memory": Figure(_total, _size, "8GiB"),
    "free": Figure(_free, _size, "4GiB"),
    "devices": Figure(_devices, _count, "2"),
    "capability": Figure(_capability, _capability_value, "8.0"),
    "torch": Figure(_torch, _version, "2.6"),
    "driver": Figure(_driver, _version, "550"),
}
