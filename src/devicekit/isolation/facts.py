"""What is known when all has been asked: verdicts of torch, backends and devices, and what a program would get."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from devicekit.formats import NO, Trial
from devicekit.request import AUTO
from devicekit.values import DeviceInfo

__all__ = ["WARNING", "BackendFacts", "Choice", "DeviceFacts", "Findings", "TorchFacts"]

WARNING = "warning"
"""The trait that a person should look at."""


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """Whether torch can be imported here."""

    usable: bool
    version: str | None = None
    built_for: str | None = None
    """``CUDA 13.0``; None: for the processor only."""
    installed: bool = True
    reason: str = ""
    fix: str = ""
    lost: bool = False
    """Importing it killed the process, or never came to an end."""
    hung: bool = False
    """It never came to an end."""
    plugin_failures: dict[str, str] = field(default_factory=dict)
    """Module -> why a plugin of torch (entry-point group ``torch.backends``) could not be loaded."""
    plugins_lost: str = ""
    """Why torch could be imported only without its plugins; empty where it could with them."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device, as a child saw it that may start its runtime."""

    label: str
    """How one asks for it: ``cuda:0``, ``mps``."""
    info: DeviceInfo
    """With the memory figures of the runtime, where it gave some."""
    memory_source: str = "the driver, before the runtime was started"
    precisions: dict[str, str] = field(default_factory=dict)
    """Number format -> ``native``, ``emulated``, ``no``; missing: cannot be told."""
    trials: dict[str, Trial] = field(default_factory=dict)
    """Number format -> what a real product in it did; empty where none was tried."""
    traits: dict[str, str] = field(default_factory=dict)
    """What else the backend says, in words."""
    verified: bool | None = None
    """A real kernel ran and was right; None: that was not tried."""
    broke: bool = False
    """The probe called it usable, and a closer look did not."""

    @property
    def contradicted(self) -> tuple[str, ...]:
        """The formats of which a product did what it should not: it ran, or it did not."""
        tried = ((form, trial.ran) for form, trial in self.trials.items() if form in self.precisions)
        return tuple(form for form, ran in tried if ran == (self.precisions[form] == NO))


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """One backend, with its verdict after all that was asked."""

    name: str
    origin: str
    usable: bool
    reason: str
    fix: str = ""
    built: bool = True
    accelerator: bool = True
    automatic: bool = True
    maker: str = ""
    """Whose devices it is for, in the registry's word: ``nvidia``."""
    lost: str = ""
    """How asking it killed the process, or that it never came to an end; empty where neither happened."""
    hung: bool = False
    """It never came to an end."""
    devices: tuple[DeviceFacts, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a program would get, or the error that it would get instead."""

    label: str | None = None
    device: str | None = None
    """The framework's name for it: ROCm's is ``cuda:0``."""
    backend: str | None = None
    index: int | None = None
    requested: str = AUTO
    source: str = "default"
    warning: str | None = None
    error: dict[str, Any] | None = None
    """``what``, ``why``, ``try``, and ``known``: False where the word is no device at all."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found out."""

    torch: TorchFacts
    backends: tuple[BackendFacts, ...]
    """In order of preference."""
    asked: Choice
    """For what was asked for: the argument, a pin, the saved choice."""
    automatic: Choice
    """For nobody asking at all."""
    warnings: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def device(self, label: str | None) -> tuple[BackendFacts, DeviceFacts] | None:
        """The device with this label and its backend; None where there is none."""
        pairs = [(backend, device) for backend in self.backends for device in backend.devices]
        return next(((b, d) for b, d in pairs if d.label == label), None)
