"""NVIDIA's management library, through nvidia-ml-py: it tells of cards without starting CUDA on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Card:
    """A physical GPU as NVML sees it; memory in bytes."""

    uuid: str
    name: str
    capability: int
    total: int | None
    free: int | None
    sliced: bool


@contextmanager
def session(nvml: Any) -> Iterator[bool]:
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        nvml.nvmlShutdown()


def cards(nvml: Any) -> list[Card]:
    return [_card(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]


def _card(nvml: Any, handle: Any) -> Card:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    total, free = _memory(nvml, handle)
    return Card(
        uuid=text(nvml.nvmlDeviceGetUUID(handle)),
        name=text(nvml.nvmlDeviceGetName(handle)),
        capability=major * 10 + minor,
        total=total,
        free=free,
        sliced=_is_sliced(nvml, handle),
    )


def _memory(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Total and free bytes; GPUs with unified memory (GB10) answer "not supported"."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return None, None
    return int(memory.total), int(memory.free)


def _is_sliced(nvml: Any, handle: Any) -> bool:
    """MIG is on: CUDA will show a slice, not the card, so the card's memory says nothing."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False


def text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def slice_card(nvml: Any, uuid: str) -> Card:
    """A MIG slice by its UUID: its own memory, on the card that it is cut from.

    Raises:
        NVMLError: there is no such slice.
    """
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    card = _card(nvml, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))
    total, free = _memory(nvml, handle)
    return replace(card, name=f"{card.name} (MIG slice)", total=total, free=free, sliced=False)
