"""The results as one document, for programs and for comparing machines; its schema has a number.

``schema`` 1::

    schema      {"name": "devicekit.bench", "version": 1}; a field that changes its meaning changes the version
    created     when it was begun, in UTC
    machine     as in devicekit.info()
    versions    package or driver, to version
    devices     label, backend, name, architecture, memory before measuring, dtype of models, torch's threads where the
                processor computes, tuning or null
    settings    what was asked for; an empty list: what suits the device
    rows        as devicekit.bench.rows.Row; seconds and bytes, null where it was not measured or cannot be told
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timezone
from typing import Any

from devicekit import reporting
from devicekit.backend import Backend
from devicekit.bench.cases import Settings
from devicekit.bench.rows import Row
from devicekit.host import Host
from devicekit.manager import DeviceManager
from devicekit.values import MemoryStats

__all__ = ["SCHEMA", "about", "as_text", "document", "now", "unknown"]

SCHEMA = {"name": "devicekit.bench", "version": 1}


def now() -> str:
    """The time as text."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def about(label: str, manager: DeviceManager, backend: Backend) -> dict[str, Any]:
    """What is known of a device before it is measured. Raises what its runtime raises."""
    info, tuning = backend.describe(manager.index or 0), manager.tuning
    computes = backend.needs_torch and not backend.accelerator
    return {
        "label": label,
        "backend": manager.backend,
        "name": info.name,
        "architecture": info.architecture,
        "memory": manager.memory_stats().to_dict(),
        "dtype": str(manager.dtype).removeprefix("torch."),
        "threads": backend.torch.get_num_threads() if computes else None,
        "tuning": None if tuning is None else tuning.to_dict(),
    }


def unknown(label: str, backend: Backend) -> dict[str, Any]:
    """The same of a device that cannot even be asked."""
    return {
        "label": label,
        "backend": backend.name,
        "name": "",
        "architecture": None,
        "memory": MemoryStats().to_dict(),
        "dtype": None,
        "threads": None,
        "tuning": None,
    }


def document(
    created: str,
    host: Host,
    devices: list[dict[str, Any]],
    backends: list[Backend],
    settings: Settings,
    rows: list[Row],
) -> dict[str, Any]:
    """All of it."""
    versions: dict[str, str] = {}
    for backend in backends:
        versions.update(reporting.versions(backend))
    return {
        "schema": SCHEMA,
        "created": created,
        "machine": reporting.machine(host),
        "versions": versions,
        "devices": devices,
        "settings": dataclasses.asdict(settings),
        "rows": [row.to_dict() for row in rows],
    }


def as_text(told: dict[str, Any]) -> bytes:
    """What a file holds."""
    return (json.dumps(told, indent=2, allow_nan=False) + "\n").encode()
