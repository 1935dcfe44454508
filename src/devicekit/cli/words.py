"""The findings in words for people, and as data for programs; what info and doctor share."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from devicekit.cli.output import human_bytes, one_line
from devicekit.isolation.facts import BackendFacts, DeviceFacts, Findings

__all__ = ["backend_as_data", "device_in_words", "headline", "memory_in_words", "native_dtypes"]


def headline(found: Findings) -> str:
    """devicekit, Python, torch and the machine in one line."""
    versions, machine, torch = found.versions, found.machine, found.torch
    parts = [f"devicekit {versions.get('devicekit', '?')}", f"Python {versions.get('python', '?')}"]
    if torch.usable:
        parts += [f"torch {torch.version}" + (f" (built for {torch.built_for})" if torch.built_for else "")]
    elif not torch.installed:
        parts += ["no torch"]
    else:
        parts += ["torch cannot be imported"]
    if machine:
        parts += [f"{machine['system']} ({machine['architecture']})"]
    return ", ".join(parts)


def device_in_words(device: DeviceFacts) -> list[str]:
    """Name, chip and number formats in one line, memory in another."""
    info = device.info
    parts = [", ".join(one_line(part) for part in (info.name, info.architecture) if part)]
    native = native_dtypes(device)
    if native:
        parts.append(f"native formats: {', '.join(native)}")
    if device.verified:
        parts.append("a test kernel ran and was right")
    return ["; ".join(parts), memory_in_words(device)]


def memory_in_words(device: DeviceFacts) -> str:
    """Total, free and who said so; unknown where it is."""
    info, source = device.info, one_line(device.memory_source)
    if info.total_memory is None and info.free_memory is None:
        return f"memory unknown: {source}"
    total, free = human_bytes(info.total_memory), human_bytes(info.free_memory)
    said_by = f"the container's limit, {source}" if source.startswith("cgroup") else source
    return f"memory {total}, free {free}; source: {textwrap.shorten(said_by, 120, placeholder=' ...')}"


def native_dtypes(device: DeviceFacts) -> list[str]:
    """The number formats that it computes itself."""
    return [name for name, native in device.dtypes.items() if native]


def backend_as_data(backend: BackendFacts, chosen: str | None) -> dict[str, Any]:
    """As in :func:`devicekit.info`, with what the runtimes told besides."""
    told = {"chosen": backend.name == chosen, **dataclasses.asdict(backend)}
    return {
        **{key: told[key] for key in ("name", "usable", "reason", "fix", "chosen", "origin", "built", "lost")},
        "devices": [_device_as_data(device) for device in backend.devices],
        "versions": backend.versions,
    }


def _device_as_data(device: DeviceFacts) -> dict[str, Any]:
    return {
        "label": device.label,
        **dataclasses.asdict(device.info),
        "memory_source": device.memory_source,
        "dtypes": device.dtypes,
        "verified": device.verified,
    }
