"""The rows of known backends, in order of preference, and the door for those of third parties.

A row is text: nothing is imported before its backend is asked. A third party's backend comes in by one entry point in
the group ``devicekit.backends``; one that cannot be loaded becomes a :class:`BrokenBackend`, which says why.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from devicekit.backend import Backend
from devicekit.host import Host
from devicekit.values import Availability, MemoryStats

__all__ = ["BUILTIN", "GROUP", "BrokenBackend", "Row", "load", "rows"]

log = logging.getLogger("devicekit")

GROUP = "devicekit.backends"

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One backend, before it is imported."""

    name: str
    target: str
    """``package.module:Class``."""
    also: tuple[str, ...] = ()
    """Other spellings that mean this backend."""
    hints: tuple[str, ...] = ()
    """Words that people write when they mean it; they are not accepted, but answered with this name."""
    automatic: bool = True
    """Taken without being asked for by name."""
    origin: str = "devicekit"
    """The distribution that it comes from."""
    problem: str = ""
    """Why it cannot be loaded at all: a taken name, a name that is no word."""


_BEFORE_PLUGINS = (
    Row("cuda", "devicekit.backends.cuda:CudaBackend", hints=("nvidia", "geforce", "tensorrt")),
    Row("rocm", "devicekit.backends.rocm:RocmBackend", also=("hip",), hints=("amd", "radeon", "amdgpu")),
    Row("xpu", "devicekit.backends.xpu:XpuBackend", hints=("intel", "oneapi", "sycl", "arc")),
    Row("npu", "devicekit.backends.npu:NpuBackend", hints=("ascend", "huawei", "cann")),
    Row("mps", "devicekit.backends.mps:MpsBackend", hints=("apple", "metal")),
)
_AFTER_PLUGINS = (
    Row("cpu", "devicekit.backends.cpu:CpuBackend", hints=("host",)),
    Row("numpy", "devicekit.backends.numpy:NumpyBackend", hints=("np",)),
    Row("vulkan", "devicekit.backends.vulkan:VulkanBackend", automatic=False),
)
BUILTIN = (*_BEFORE_PLUGINS, *_AFTER_PLUGINS)


def rows(host: Host) -> tuple[Row, ...]:
    """All rows in order of preference; third parties stand after the accelerators and before the processor."""
    return (*_BEFORE_PLUGINS, *_plugins(host), *_AFTER_PLUGINS)


def _plugins(host: Host) -> Iterable[Row]:
    taken = {word for row in BUILTIN for word in (row.name, *row.also)} | {"auto", "gpu"}
    for entry in sorted(host.entry_points(GROUP), key=lambda e: (e.name, e.value)):
        name = str(entry.name).strip().lower()
        origin = str(getattr(getattr(entry, "dist", None), "name", None) or "unknown distribution")
        problem = ""
        if not _NAME.fullmatch(name):
            problem = f"{entry.name!r} is no name for a backend: letters, digits and _ only"
        elif name in taken:
            problem = f"the name {name!r} is taken"
        taken.add(name)
        yield Row(name, entry.value, origin=origin, problem=problem)


def load(row: Row, host: Host) -> Backend:
    """The backend of a row. Never raises: what cannot be loaded is a :class:`BrokenBackend`."""
    if row.problem:
        return BrokenBackend(host, row.name, row.problem)
    module, _, attribute = row.target.partition(":")
    try:
        made = getattr(host.import_module(module), attribute)(host)
    except (Exception, SystemExit) as exc:
        log.warning("backend %s of %s cannot be loaded", row.name, row.origin, exc_info=True)
        return BrokenBackend(host, row.name, f"loading {row.target} raised {type(exc).__name__}: {exc}")
    if not isinstance(made, Backend):
        return BrokenBackend(host, row.name, f"{row.target} made a {type(made).__name__}, not a devicekit Backend")
    adopted: Backend = host.adopt(made)
    return adopted


class BrokenBackend(Backend):
    """Stands in for a backend that cannot be loaded, and says why."""

    name = "broken"
    needs_torch = False
    quick_probe = True

    def __init__(self, host: Host, name: str, reason: str) -> None:
        super().__init__(host)
        self.name = name  # type: ignore[misc]  # the one backend whose name is not its class's
        self.reason = reason

    def probe(self) -> Availability:
        """Never usable."""
        return Availability.no(self.reason, "update or uninstall the package that it comes from")

    def preferred_dtype(self, index: int = 0) -> Any:
        """Nobody asks: the probe said no."""
        raise NotImplementedError(self.reason)

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """Nobody asks: the probe said no."""
        raise NotImplementedError(self.reason)

    def memory_stats(self, index: int = 0) -> MemoryStats:
        """Nothing is known."""
        return MemoryStats(source=self.reason)

    def empty_cache(self, index: int = 0) -> None:
        """There is nothing to empty."""
