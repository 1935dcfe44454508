"""Machines as data: what is plugged in, which torch is installed, what is broken. No torch in here.

A machine is frozen, can be compared, and survives JSON both ways, so that a child process can stand on the same one.
:data:`MACHINES` holds those that go wrong in the field; ``dataclasses.replace`` makes others from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from devicekit.testing.simulated_npu.settings import SOC_VERSIONS, bytes_from

__all__ = ["MACHINES", "Build", "Card", "Faults", "Machine", "accelerated", "machine_named"]

FOREVER = 3600.0

VENDORS = {"sm_": "nvidia", "gfx": "amd", "xe": "intel", "Ascend": "huawei", "apple": "apple"}
"""How a chip's architecture begins, to who makes it."""

CPU_FLAGS = (
    "avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "amx_fp16", "neon", "fp16_arith", "bf16", "i8mm", "dot", "sve", "sve2", "sve_bf16", "sme", "sme2",
)  # fmt: skip
"""The names that ``torch.cpu.get_capabilities()`` has for what matters to number formats (torch 2.13)."""


def _set(frozen: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _one_of(value: str, allowed: Iterable[str], what: str) -> str:
    known = list(allowed)
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "one of " + ", ".join(known)
    raise ValueError(f"{value!r} is no {what}; {hint}")


def _size(value: int | str, what: str) -> int:
    size = bytes_from(value)
    if isinstance(value, bool) or size < 0:
        raise ValueError(f"{what} is a size such as '24GiB' or a number of bytes, not {value!r}")
    return size


@dataclass(frozen=True)
class Build:
    """One build of torch, as its version and its configuration tell it."""

    version: str = "2.13.0+cpu"
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    mps: bool = False
    vulkan: bool = False
    architectures: tuple[str, ...] = ()
    """What it has kernels for: ``sm_86``, ``compute_90`` (PTX), ``gfx1100``; empty: not known, nothing is refused."""
    cudnn: int = 92100
    """Of a build for CUDA, as ``torch.backends.cudnn.version()`` says it: 9.21."""

    def __post_init__(self) -> None:
        _set(self, architectures=tuple(self.architectures))

    def older_than(self, *release: int) -> bool:
        """Whether this torch came before ``release``, as in ``older_than(2, 9)``."""
        numbers = self.version.partition("+")[0].split(".")[: len(release)]
        return tuple(int(n) for n in numbers) < release


@dataclass(frozen=True)
class Card:
    """One accelerator, or one slice of it."""

    name: str = ""
    memory: int | str = "8GiB"
    """What the device has; on a Mac what Metal recommends to use of the host's memory."""
    architecture: str = "sm_86"
    """``sm_86``, ``gfx1100``, ``Ascend910B3``, ``xe-hpg``, ``apple-m3``: it says who made the chip, too."""
    free: int | str | None = None
    """What other processes leave of ``memory``; None: all of it."""
    integrated: bool = False
    lacks: tuple[str, ...] = ()
    """Number formats without instructions for them, on Intel chips: ``bfloat16``, ``float64``, ``float16``; ``tf32``
    where there are no matrix units (XMX)."""
    uuid: str = ""
    """Given by the machine where it is empty."""
    slices: tuple[Card, ...] = ()
    """MIG is on, and these are its slices; a process sees the first one, or the one that its mask names."""
    hidden: bool = False
    """Another tenant's: it stands in the kernel's table, but may not be read or used."""

    def __post_init__(self) -> None:
        if self.vendor == "huawei":
            _one_of(self.architecture, SOC_VERSIONS, "Ascend chip")
        slices = tuple(Card(**s) if isinstance(s, Mapping) else s for s in self.slices)
        _set(self, lacks=tuple(self.lacks), slices=slices, name=self.name or f"simulated {self.architecture}")
        if not 0 <= self.left <= self.total:
            raise ValueError(f"{self.name}: free={self.free!r} is more than memory={self.memory!r}")

    @property
    def vendor(self) -> str:
        """``nvidia``, ``amd``, ``intel``, ``huawei`` or ``apple``."""
        for start, vendor in VENDORS.items():
            if self.architecture.startswith(start):
                return vendor
        raise ValueError(
            f"{self.architecture!r} is no architecture; write it as sm_86, gfx1100, Ascend910B3, xe-hpg or apple-m3"
        )

    @property
    def total(self) -> int:
        """``memory`` in bytes."""
        return _size(self.memory, "memory")

    @property
    def left(self) -> int:
        """Bytes that other processes leave."""
        return self.total if self.free is None else _size(self.free, "free")

    @property
    def number(self) -> int:
        """The digits of the architecture: 86 for ``sm_86``; AMD's stepping is hexadecimal, so it is not for AMD."""
        return int("".join(c for c in self.architecture if c.isdigit()) or 0)


@dataclass(frozen=True)
class Faults:
    """What is broken on a machine, beyond what its data says."""

    no_kernels: bool = False
    """The probe says yes, and the first kernel raises."""
    hang: float = 0.0
    """Seconds that the accelerator's driver takes to answer a probe; the end of the simulation ends it too."""
    abort: bool = False
    """The probe kills the process (SIGABRT), as torch_npu does beside CUDA. For child processes only."""
    oom_at: int | str | None = None
    """A single allocation of this size or more fails, however much is free."""
    no_memory_query: bool = False
    """The runtime cannot tell its memory."""
    wrong_numbers: bool = False
    """The device computes, but wrongly."""
    shim: bool = False
    """A package has rewritten ``torch.cuda`` to another device (transfer_to_npu, torchada)."""

    def __post_init__(self) -> None:
        if self.oom_at is not None:
            _size(self.oom_at, "oom_at")

    @property
    def oom_bytes(self) -> int | None:
        """``oom_at`` in bytes."""
        return None if self.oom_at is None else _size(self.oom_at, "oom_at")

    @classmethod
    def of(cls, told: Faults | str | Iterable[str] | Mapping[str, Any] | None) -> Faults:
        """Faults by name (``"hang"``, ``["hang", "no_kernels"]``) or by name and value (``{"oom_at": "1GiB"}``)."""
        if isinstance(told, Faults):
            return told
        if not isinstance(told, Mapping):
            names = [told] if isinstance(told, str) else list(told or ())
            told = {name: FOREVER if name == "hang" else True for name in names}
        for name in told:
            _one_of(name, (f.name for f in dataclasses.fields(cls)), "fault")
        if told.get("oom_at") is True:
            raise ValueError("oom_at needs a size: {'oom_at': '1GiB'}")
        return cls(**told)


@dataclass(frozen=True)
class Machine:
    """A machine and the process on it, as far as devicekit can see them."""

    name: str = "a machine"
    platform: str = "linux"
    """``linux``, ``darwin`` or ``win32``."""
    processor: str = "x86_64"
    build: Build | None = field(default_factory=Build)
    """None: torch is not installed."""
    torch_failure: str | None = None
    """What ``import torch`` raises ImportError with."""
    cards: tuple[Card, ...] = ()
    """In the order of the PCI bus."""
    driver: str | None = None
    """The CUDA version that the NVIDIA driver supports; None: there is no such driver."""
    nvml: bool = True
    """The NVIDIA driver comes with its management library; a Jetson's does not."""
    modules: tuple[str, ...] = ("numpy", "psutil")
    """Which of numpy, psutil, pynvml, torch_npu, triton and flash_attn are installed."""
    plugin_failure: str | None = None
    """What ``import torch_npu`` raises ImportError with."""
    macos: str = "14.5"
    virtual: bool = False
    """A virtual machine; only macOS tells."""
    host_memory: int | str = "64GiB"
    host_free: int | str | None = None
    """None: all of it."""
    container: int | str | None = None
    """``memory.max`` of the process's cgroup (v2). A quarter of it counts as used, and as much as page cache."""
    cpu: tuple[str, ...] = ("avx2", "avx512_f")
    """What the processor can, in the words of ``torch.cpu.get_capabilities()``."""
    env: Mapping[str, str] = field(default_factory=dict)
    entry_points: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Group, to name and target: ``{"devicekit.backends": {"acme": "acme.device:Acme"}}``."""
    forked: bool = False
    """This process was forked from one that had started the accelerator's runtime."""
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        _one_of(self.platform, ("linux", "darwin", "win32"), "platform")
        for flag in self.cpu:
            _one_of(flag, CPU_FLAGS, "capability of a processor")
        for size in (self.host_memory, self.host_free, self.container):
            _size(size or 0, "memory")
        build = Build(**self.build) if isinstance(self.build, Mapping) else self.build
        cards = [Card(**c) if isinstance(c, Mapping) else c for c in self.cards]
        named = (replace(c, uuid=c.uuid or _uuid(c, i)) for i, c in enumerate(cards))
        _set(self, build=build, cards=tuple(_with_slice_uuids(c) for c in named), faults=Faults.of(self.faults))
        if len({c.uuid for c in self.cards}) != len(self.cards):
            raise ValueError("two cards have the same uuid")
        _set(self, modules=tuple(self.modules), cpu=tuple(self.cpu), env=dict(self.env))
        _set(self, entry_points={group: dict(found) for group, found in self.entry_points.items()})

    def cards_of(self, vendor: str) -> tuple[Card, ...]:
        """The cards of one vendor that this process may use, in the order of the bus."""
        return tuple(c for c in self.cards if c.vendor == vendor and not c.hidden)

    @property
    def accelerator(self) -> str | None:
        """The backend that this torch was built or extended for; it need not be usable."""
        build = self.build
        if build is None:
            return None
        built = {"cuda": build.cuda, "rocm": build.hip, "xpu": build.xpu, "mps": build.mps, "vulkan": build.vulkan}
        return next((name for name, it in built.items() if it), "npu" if "torch_npu" in self.modules else None)

    def to_json(self) -> str:
        """The machine as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Machine:
        """The machine that ``to_json`` wrote."""
        return cls(**json.loads(text))


def _uuid(card: Card, position: int) -> str:
    return f"GPU-{position + 1:016x}" if card.vendor == "amd" else f"GPU-{position + 1:08x}-5a1e-4d3c-9b7f-0123456789ab"


def _with_slice_uuids(card: Card) -> Card:
    named = (replace(s, uuid=s.uuid or f"MIG-{i + 1:08x}-{card.uuid[4:]}") for i, s in enumerate(card.slices))
    return replace(card, slices=tuple(named))


# -- builds and kinds ------------------------------------------------------------------------------
CPU_BUILD = Build()
CUDA_BUILD = Build("2.13.0+cu130", cuda="13.0", architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))
ROCM_BUILD = Build(
    "2.13.0+rocm7.1", hip="7.1.25424", architectures=("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1201")
)
XPU_BUILD = Build("2.13.0+xpu", xpu="20250301")
MAC_BUILD = Build("2.13.0", mps=True)

WITH_TRITON = ("numpy", "psutil", "triton")
WITH_NVML = (*WITH_TRITON, "pynvml")
WITH_ASCEND = ("numpy", "psutil", "torch_npu")
NO_CANN = "libhccl.so: cannot open shared object file: No such file or directory"

_KINDS = {
    "cuda": (Machine(build=CUDA_BUILD, driver="13.0", modules=WITH_NVML), Card(memory="24GiB")),
    "rocm": (Machine(build=ROCM_BUILD, modules=WITH_TRITON), Card(memory="24GiB", architecture="gfx1100")),
    "xpu": (
        Machine(build=XPU_BUILD, modules=WITH_TRITON),
        Card(memory="16GiB", architecture="xe-hpg", lacks=("float64",)),
    ),
    "npu": (
        Machine(processor="aarch64", modules=WITH_ASCEND, cpu=("neon",)),
        Card(memory="64GiB", architecture="Ascend910B3"),
    ),
    "mps": (
        Machine(platform="darwin", processor="arm64", build=MAC_BUILD, host_memory="36GiB", cpu=("neon", "fp16_arith")),
        Card(memory="27GiB", architecture="apple-m3", integrated=True),
    ),
}


def accelerated(kind: str, count: int, memory: int | str | None = None, architecture: str | None = None) -> Machine:
    """A machine with ``count`` alike accelerators of a kind (``cuda``, ``rocm``, ``xpu``, ``npu``, ``mps``) and a
    torch for them; ``count`` 0 leaves the torch and takes the cards away.
    """
    machine, card = _KINDS[_one_of(kind, _KINDS, "kind of accelerator")]
    made = replace(card, name="", memory=card.memory if memory is None else memory)
    if architecture is not None:
        made = replace(made, name="", architecture=architecture)
        if made.vendor != card.vendor:
            raise ValueError(f"{architecture!r} is no architecture of {kind}")
    return replace(machine, name=f"{count} x {kind}", cards=(made,) * count)


# -- the machines that go wrong in the field -----------------------------------------------------------
def _named(kind: str, name: str, *cards: Card, **changes: Any) -> Machine:
    return replace(_KINDS[kind][0], name=name, cards=cards, **changes)


MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("cpu"),
        Machine("no-torch", build=None),
        Machine("broken-torch", torch_failure="libcudart.so.13: cannot open shared object file: No such file"),
        Machine("container-2gib", container="2GiB"),
        Machine("vulkan", build=Build("2.13.0a0+git", vulkan=True)),
        _named("cuda", "cuda-laptop", Card("NVIDIA GeForce RTX 3060 Laptop GPU", "6GiB", "sm_86", free="5.5GiB")),
        _named("cuda", "cuda-old-gpu", Card("NVIDIA GeForce GTX 1080", "8GiB", "sm_61")),
        _named("cuda", "cuda-old-driver", Card("NVIDIA GeForce RTX 3090", "24GiB", "sm_86"), driver="12.4"),
        _named("cuda", "cuda-no-driver", Card("NVIDIA GeForce RTX 3090", "24GiB", "sm_86"), driver=None),
        _named("cuda", "two-gpus", *[Card("NVIDIA GeForce RTX 3090", "24GiB", "sm_86")] * 2),
        _named(
            "cuda",
            "jetson",
            Card("Orin", "61GiB", "sm_87", integrated=True),
            processor="aarch64",
            build=replace(CUDA_BUILD, architectures=("sm_87",)),
            nvml=False,
            modules=("numpy", "psutil"),
            cpu=("neon", "fp16_arith"),
        ),
        _named("rocm", "amd-workstation", Card("AMD Radeon RX 7900 XTX", "24GiB", "gfx1100", free="23GiB")),
        _named("mps", "mac", Card("Apple M3 Pro", "27GiB", "apple-m3", integrated=True)),
        _named(
            "mps", "mac-in-a-vm", Card("Apple Paravirtual device", "7.9GiB", "apple-vm", integrated=True), virtual=True
        ),
        _named("npu", "ascend", Card("Ascend910B3", "64GiB", "Ascend910B3", free="60GiB")),
        _named("npu", "ascend-no-cann", Card("Ascend910B3", "64GiB", "Ascend910B3"), plugin_failure=NO_CANN),
        _named(
            "cuda",
            "ascend-beside-cuda",
            Card("Ascend910B3", "64GiB", "Ascend910B3"),
            driver=None,
            modules=(*WITH_ASCEND, "pynvml"),
        ),
        _named(
            "xpu",
            "intel-igpu",
            Card("Intel(R) Arc(TM) Graphics", "28GiB", "xe-lpg", integrated=True, lacks=("float64", "tf32")),
        ),
    )
}
"""Machines by name; each is a case that some library gets wrong."""


def machine_named(name: str) -> Machine:
    """One of :data:`MACHINES`.

    Raises:
        ValueError: there is none of this name; the message has a near miss.
    """
    return MACHINES[_one_of(name, MACHINES, "simulated machine")]
