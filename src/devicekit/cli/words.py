"""The findings in words for people, and as data for programs; what info and doctor share."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from devicekit.cli.output import UNKNOWN, human_bytes, one_line
from devicekit.formats import EMULATED, FORMATS, NATIVE, NO
from devicekit.isolation.facts import WARNING, BackendFacts, DeviceFacts, Findings

__all__ = ["backend_as_data", "device_in_words", "format_in_words", "headline", "memory_in_words"]


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
    """Name and chip, memory, number formats, and what else there is to say."""
    info = device.info
    parts = [", ".join(one_line(part) for part in (info.name, info.architecture) if part)]
    if device.verified:
        parts.append("a test kernel ran and was right")
    traits = [f"{one_line(name)}: {one_line(text)}" for name, text in device.traits.items() if name != WARNING]
    return ["; ".join(parts), memory_in_words(device), *formats_in_words(device), *filter(None, ["; ".join(traits)])]


def formats_in_words(device: DeviceFacts) -> list[str]:
    """The number formats by their word in one line; each in a line of its own where it was tried."""
    if device.trials:
        return [f"{form:<8}  {format_in_words(device, form)}" for form in FORMATS]
    lists = {word: [form for form in FORMATS if device.precisions.get(form) == word] for word in (NATIVE, EMULATED, NO)}
    told = "; ".join(f"{word} {', '.join(forms)}" for word, forms in lists.items() if forms)
    return [f"formats: {told or UNKNOWN}"]


def format_in_words(device: DeviceFacts, form: str) -> str:
    """What is said of a format, and what a product in it did: ``native, ran, 2.1x float32``."""
    word, trial = device.precisions.get(form, UNKNOWN), device.trials.get(form)
    if trial is None:
        return word
    and_yet = "and yet it " if form in device.contradicted else ""
    if not trial.ran:
        reason = one_line(trial.reason)
        return f"{word}, {and_yet}did not run ({reason})" if word != NO else f"no ({reason})"
    speed = "" if trial.speed is None else f", {float(f'{trial.speed:.2g}'):g}x float32"  # two digits, never 1e+02
    return f"{word}, {and_yet}ran{speed}"


def memory_in_words(device: DeviceFacts) -> str:
    """Total, free and who said so; unknown where it is."""
    info, source = device.info, one_line(device.memory_source)
    if info.total_memory is None and info.free_memory is None:
        return f"memory unknown: {source}"
    total, free = human_bytes(info.total_memory), human_bytes(info.free_memory)
    said_by = f"the container's limit, {source}" if source.startswith("cgroup") else source
    return f"memory {total}, free {free}; source: {textwrap.shorten(said_by, 120, placeholder=' ...')}"


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
        "precisions": {form: device.precisions.get(form) for form in FORMATS},
        "trials": {form: dataclasses.asdict(trial) for form, trial in device.trials.items()},
        "traits": device.traits,
        "verified": device.verified,
    }
