"""The answers: frozen values, so that an answer can be kept, compared, printed and sent as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AllocatorOption",
    "AttentionCase",
    "Availability",
    "DeviceInfo",
    "Explanation",
    "LoadResult",
    "MemoryStats",
    "RngState",
    "Verdict",
    "Weights",
]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device of a backend, as far as it can be told without starting its runtime."""

    index: int
    name: str = ""
    usable: bool = True
    reason: str = ""
    """Why it is not usable; empty when it is."""
    fix: str = ""
    architecture: str | None = None
    """The vendor's name of the chip's generation: ``sm_86``, ``gfx1100``, ``Ascend910B3``."""
    total_memory: int | None = None
    """Bytes; None: cannot be told without starting the runtime."""
    free_memory: int | None = None
    """Bytes free at the time of asking; None: cannot be told."""
    integrated: bool | None = None
    """Shares the host's memory; None: cannot be told."""
    bfloat16: bool | None = None
    """Computes bfloat16 natively; None: cannot be told."""


@dataclass(frozen=True, slots=True)
class Availability:
    """The answer to a probe: usable with these devices, or not usable, why, and what to do."""

    usable: bool
    reason: str
    fix: str = ""
    devices: tuple[DeviceInfo, ...] = ()
    built: bool = True
    """False: the software is not there at all, so nobody can have meant this backend on this machine."""

    @classmethod
    def yes(cls, devices: Iterable[DeviceInfo], reason: str = "") -> Availability:
        """At least one of ``devices`` is usable; when none is, the answer becomes a no."""
        found = tuple(devices)
        good = [d for d in found if d.usable]
        if good:
            return cls(True, reason or _count(good), devices=found)
        if found:
            return cls(False, found[0].reason, found[0].fix, found)
        return cls(False, reason or "no device was found")

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Availability:
        """Not usable here, with the reason in words and what to try."""
        return cls(False, reason, fix)

    @classmethod
    def absent(cls, reason: str, fix: str = "") -> Availability:
        """Not usable, because the software for it is not installed or not compiled in."""
        return cls(False, reason, fix, built=False)

    def device(self, index: int) -> DeviceInfo | None:
        """The device with this index, usable or not; None when there is no such device."""
        return next((d for d in self.devices if d.index == index), None)


def _count(devices: list[DeviceInfo]) -> str:
    names = dict.fromkeys(d.name for d in devices if d.name)
    number = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
    return f"{number}: {', '.join(names)}" if names else number


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """What a scaled dot-product attention will be given, as far as the choice of a kernel depends on it."""

    dtype: Any
    head_dim: int | None = None
    """The last dimension of query, key and value; None: one that every kernel takes."""
    mask: bool = False
    dropout: float = 0.0
    training: bool = False
    """Gradients will be asked for."""

    def against(
        self,
        dtypes: Iterable[Any],
        *,
        head_dim: int | None = None,
        multiple: int = 1,
        mask: bool = True,
        dropout: bool = True,
        training: bool = True,
    ) -> str:
        """The first reason against a kernel that takes only this; empty when it takes this case.

        Args:
            dtypes: those that it takes.
            head_dim: the largest that it takes; None: any.
            multiple: of which the head dim must be one.
            mask: it takes a mask.
            dropout: it drops out.
            training: it has gradients.
        """
        if self.dtype not in tuple(dtypes):
            return f"{str(self.dtype).removeprefix('torch.')} is not taken"
        for asked, taken, reason in (
            (self.mask, mask, "a mask is given"),
            (self.dropout > 0, dropout, "dropout is asked for"),
            (self.training, training, "gradients are asked for"),
        ):
            if asked and not taken:
                return reason
        if self.head_dim is None:
            return ""
        if head_dim is not None and self.head_dim > head_dim:
            return f"head dim {self.head_dim} > {head_dim}"
        return f"head dim {self.head_dim} is no multiple of {multiple}" if self.head_dim % multiple else ""


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Memory in bytes. None means that this runtime cannot tell; it never stands for zero."""

    total: int | None = None
    """What this process could use at most: the card's memory, or the container's limit."""
    available: int | None = None
    """What could be allocated now without pushing anyone out."""
    allocated: int | None = None
    """Live tensors; on the CPU the resident set of this process."""
    reserved: int | None = None
    """Held by the framework's caching allocator, live tensors included."""
    peak: int | None = None
    """The highest ``allocated`` since the start or the last reset."""
    unified: bool | None = None
    """The device shares the host's memory."""
    source: str = "unknown"
    """Who said so: the driver, the allocator, the kernel, a cgroup file."""

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class AllocatorOption:
    """An option of a runtime's allocator that wastes less memory, and the variables that it is read from."""

    variables: tuple[str, ...] = ()
    """In the order in which the runtime looks for one that is set; every version reads the first. Empty: no option."""
    option: str = ""
    """Name and value, with a colon between them."""
    excludes: tuple[str, ...] = ()
    """How options begin that cannot stand beside it."""
    late: bool = False
    """The runtime has started, and has read its variables."""
    reason: str = ""
    """Why there is no option, and what there is instead; with one, what else it changes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about one backend."""

    backend: str
    usable: bool
    reason: str
    fix: str = ""
    devices: tuple[DeviceInfo, ...] = ()
    chosen: bool = False
    origin: str = "devicekit"
    """The distribution that the backend comes from."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, what it rests on, and a verdict for every candidate."""

    device: str
    backend: str
    index: int | None
    requested: str
    source: str
    """Where the request came from: ``argument``, a variable's name, ``saved choice`` or ``default``."""
    warning: str | None
    verdicts: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.device} ({self.backend}), asked for {self.requested!r} by {self.source}"]
        if self.warning:
            lines.append(f"warning: {self.warning}")
        for verdict in self.verdicts:
            mark = "*" if verdict.chosen else " "
            state = "usable" if verdict.usable else "not usable"
            lines.append(f"{mark} {verdict.backend:<8} {state}: {verdict.reason}")
            if verdict.fix:
                lines.append(f"           try: {verdict.fix}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class RngState:
    """The state of every random number source that a training step may draw from; picklable."""

    python: Any
    numpy: Any = None
    """None: NumPy was not loaded when the state was taken."""
    torch: Any = None
    """The CPU generator of torch; None on a host without torch."""
    device: Any = None
    """This device's generator; None where the device draws from one of the others."""
    device_type: str = "cpu"


class Weights(dict[str, Any]):
    """Tensors by name, as they were loaded."""

    def __init__(self, tensors: Mapping[str, Any], *, metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata)
        """What the files' ``__metadata__`` says: texts by name, such as ``{"format": "pt"}``."""

    def __reduce__(self) -> tuple[object, ...]:
        # dict's own would call this class without its metadata.
        return _weights, (dict(self), self.metadata)


def _weights(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Weights:
    return Weights(tensors, metadata=metadata)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What loading weights into a module came to, in torch's words (``load_state_dict``)."""

    missing_keys: tuple[str, ...]
    """Of the module, and not in the file: they hold what they held before."""
    unexpected_keys: tuple[str, ...]
    """Of the file, and not in the module: they were not loaded."""
    meta_keys: tuple[str, ...]
    """Of the module, and still on the meta device: they have no values yet."""
    metadata: Mapping[str, str]
    """What the files' ``__metadata__`` says."""
