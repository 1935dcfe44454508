"""A host made from data: every way out of devicekit leads to a simulated machine instead of this one."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from devicekit.errors import DeviceUnavailableError
from devicekit.host import AUTOLOAD, Host
from devicekit.testing.fake_files import write_files
from devicekit.testing.fake_nvml import FakeNvml
from devicekit.testing.machines import Card, Machine, _size, machine_named
from devicekit.testing.moves import adopted

if TYPE_CHECKING:
    from devicekit.testing.fake_torch import FakeTorch

__all__ = ["FakeHost"]

SIMULATED = frozenset({"torch", "torch_npu", "pynvml", "psutil", "numpy", "triton", "flash_attn"})
"""The modules whose presence the machine decides; all others are this process's own."""

_here = Host()  # the real one: where the real torch comes from


@dataclass(frozen=True)
class _EntryPoint:
    """What ``importlib.metadata.EntryPoint`` is, read from data and loaded through the host."""

    name: str
    value: str
    group: str
    host: FakeHost

    @property
    def dist(self) -> SimpleNamespace:
        """The distribution: named like the package."""
        return SimpleNamespace(name=self.value.partition(":")[0].partition(".")[0])

    def load(self) -> Any:
        """The object that the entry point names."""
        module, _, attribute = self.value.partition(":")
        return getattr(self.host.import_module(module), attribute)


class FakeHost(Host):
    """One simulated machine, with an environment, files and modules of its own.

    Args:
        machine: the machine, or the name of one in :data:`~devicekit.testing.MACHINES`.

    Raises:
        ValueError: there is no machine of this name.
        DeviceUnavailableError: the machine has a torch that works, and this process has none to lend it.
    """

    def __init__(self, machine: Machine | str) -> None:
        self.simulated = machine_named(machine) if isinstance(machine, str) else machine
        super().__init__(env=dict(self.simulated.env))
        working = self.simulated.build is not None and self.simulated.torch_failure is None
        if working and not _here.installed("torch"):
            what = f"the machine {self.simulated.name!r} cannot be simulated."
            why = "its tensors are real ones, and torch is not installed here"
            raise DeviceUnavailableError(what, why=why, try_='pip install torch, or simulate "no-torch"')
        self.platform = self.simulated.platform
        self.ended = threading.Event()
        """Set when the simulation is over: nothing may hang any longer."""
        self.imports: list[str] = []
        """The modules that were imported through this host, in order."""
        self.nvml = FakeNvml(self.simulated, self._in_use)
        self._plugin: Any = None
        self._fake_torch: FakeTorch | None = None
        self.root = Path(tempfile.mkdtemp(prefix="devicekit-"))
        self._remove = weakref.finalize(self, _remove, self.root, os.getpid())
        write_files(self.root, self.simulated)

    def close(self) -> None:
        """End what hangs, and delete the folder."""
        self.ended.set()
        self._remove()

    # -- modules ---------------------------------------------------------------------------------
    def _import_torch(self) -> Any:
        machine = self.simulated
        if machine.build is None:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        if machine.torch_failure:
            raise ImportError(machine.torch_failure)
        from devicekit.testing.fake_torch import FakeTorch  # here, because it imports torch

        torch = self._fake_torch = FakeTorch(machine, _here.torch(), env=self.env)
        if self.env.get(AUTOLOAD, "1") == "1":
            with self.autoload_off():
                for plugin in self.entry_points("torch.backends"):
                    self._load_plugin(plugin, torch)
        return torch

    def import_module(self, name: str) -> Any:
        """A simulated module where the machine has it, this process's own for any other name."""
        self.imports.append(name)
        if name not in SIMULATED:
            return importlib.import_module(name)
        if name == "torch":
            return self.torch()
        if name not in self.simulated.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "torch_npu":
            return self._import_plugin()
        if name == "pynvml":
            return self.nvml
        return self._psutil() if name == "psutil" else importlib.import_module(name)

    def _import_plugin(self) -> Any:
        from devicekit.testing.fake_npu import import_torch_npu

        if self._fake_torch is None:
            self.torch()  # torch_npu imports torch, and torch may load torch_npu
        if self._plugin is None:
            self._plugin = import_torch_npu(self._fake_torch)
        return self._plugin

    def loaded(self, name: str) -> Any | None:
        """What was imported on this machine; of NumPy also what this process imported."""
        if name == "torch":
            return self._torch
        if name == "torch_npu":
            return self._plugin
        return None if name in SIMULATED and name not in self.simulated.modules else super().loaded(name)

    def installed(self, name: str) -> bool:
        """The machine has it."""
        if name == "torch":
            return self.simulated.build is not None
        if name in ("pynvml", "torch_npu", "triton", "flash_attn"):
            return name in self.simulated.modules
        # NumPy and psutil are lent by this process, like anything that is not simulated.
        return (name not in SIMULATED or name in self.simulated.modules) and super().installed(name)

    def library(self, name: str) -> bool:
        """Only the CUDA driver's library is looked for."""
        return self.simulated.driver is not None and name == (
            "nvcuda.dll" if self.platform == "win32" else "libcuda.so.1"
        )

    def library_number(self, library: str, function: str) -> int | None:
        """Only the CUDA driver's version is asked for."""
        if self.simulated.driver is None or function != "cuDriverGetVersion" or not self.library(library):
            return None
        major, _, minor = self.simulated.driver.partition(".")
        return int(major) * 1000 + int(minor or 0) * 10

    def entry_points(self, group: str) -> Sequence[Any]:
        """The machine's; where it tells nothing of torch's own group, torch_npu's if that is installed."""
        with_npu = group == "torch.backends" and "torch_npu" in self.simulated.modules
        found = self.simulated.entry_points.get(group, {"torch_npu": "torch_npu:_autoload"} if with_npu else {})
        return tuple(_EntryPoint(name, value, group, self) for name, value in found.items())

    # -- the operating system ------------------------------------------------------------------
    @property
    def machine(self) -> str:
        """The processor's architecture."""
        return self.simulated.processor

    def sysctl(self, name: str) -> int | None:
        """The two figures of macOS that devicekit may want."""
        known = {"kern.hv_vmm_present": int(self.simulated.virtual), "hw.memsize": self._memory()[0]}
        return known.get(name) if self.platform == "darwin" else None

    def _memory(self) -> tuple[int, int]:
        total = _size(self.simulated.host_memory, "host_memory")
        free = self.simulated.host_free
        return total, total if free is None else _size(free, "host_free")

    def _psutil(self) -> Any:
        """The machine's memory; this process's own figures are real."""
        total, free = self._memory()
        told = SimpleNamespace(total=total, available=free, used=total - free, free=free, percent=0.0)
        return SimpleNamespace(**{**vars(importlib.import_module("psutil")), "virtual_memory": lambda: told})

    def _in_use(self, card: Card) -> int:
        """Bytes of the card that this process's allocator holds."""
        return 0 if self._fake_torch is None else self._fake_torch._memory_of(card).reserved.current

    def config_file(self, name: str) -> Path:
        """In the machine's own folder."""
        return self.root / "home" / "devicekit" / name

    # -- simulation ----------------------------------------------------------------------------
    def adopt(self, backend: Any) -> Any:
        """Let devicekit's accelerators keep their tensors on the CPU."""
        return adopted(backend)

    def to_json(self) -> str:
        """The machine with its present environment; ``FakeHost.from_json`` stands on it in another process."""
        return replace(self.simulated, env=dict(self.env)).to_json()

    @classmethod
    def from_json(cls, text: str) -> FakeHost:
        """The host that ``to_json`` told of."""
        return cls(Machine.from_json(text))


def _remove(folder: Path, owner: int) -> None:
    """Only by the process that made it: a forked child ends before its parent does."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
