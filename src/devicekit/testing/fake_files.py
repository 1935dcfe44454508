"""The files of the operating system that devicekit reads, written from data into a folder."""

from __future__ import annotations

from pathlib import Path

from devicekit.testing.machines import Card, Machine, _size

__all__ = ["write_files"]

_PCI_VENDORS = {"nvidia": "0x10de", "amd": "0x1002", "intel": "0x8086"}
_KERNEL_FLAGS = {"avx512_f": "avx512f", "neon": "asimd", "fp16_arith": "fphp"}
"""Torch's spelling to that of /proc/cpuinfo, where they differ."""
_FIRST_RENDER_NODE = 128


def write_files(root: Path, machine: Machine) -> None:
    """Write ``/proc``, ``/sys`` and ``/opt`` of a Linux machine; other systems have none."""
    if machine.platform != "linux":
        return
    _write(root, "proc/cpuinfo", _cpuinfo(machine))
    _write_cgroup(root, machine)
    _write_topology(root, machine)
    for position, card in enumerate(machine.cards):
        if card.vendor in _PCI_VENDORS and not card.hidden:
            _write_render_node(root, f"sys/class/drm/renderD{_FIRST_RENDER_NODE + position}/device", card)
    if machine.build is not None and machine.build.hip:
        _write(root, "opt/rocm/.info/version", "7.1.0")


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def _cpuinfo(machine: Machine) -> str:
    key = "Features" if machine.processor == "aarch64" else "flags"
    flags = " ".join(_KERNEL_FLAGS.get(flag, flag) for flag in machine.cpu)
    return f"processor\t: 0\nmodel name\t: simulated {machine.processor}\n{key}\t\t: {flags}"


def _write_cgroup(root: Path, machine: Machine) -> None:
    """As inside a container with a cgroup namespace: its own cgroup is the root of the mount."""
    _write(root, "proc/self/cgroup", "0::/")
    mount = "30 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate"
    _write(root, "proc/self/mountinfo", mount)
    if machine.container is None:
        return
    limit = _size(machine.container, "container")
    files = {
        "memory.max": limit,
        "memory.high": "max",
        "memory.current": limit // 2,
        "memory.stat": f"anon {limit // 4}\nfile {limit // 4}\nactive_file 0\ninactive_file {limit // 4}",
    }
    for name, value in files.items():
        _write(root, f"sys/fs/cgroup/{name}", str(value))


def _write_topology(root: Path, machine: Machine) -> None:
    """The table of amdkfd: node 0 is the CPU. The node of a hidden card can be listed, but not read."""
    if not any(card.vendor == "amd" for card in machine.cards):
        return
    nodes = "sys/class/kfd/kfd/topology/nodes"
    _write(root, f"{nodes}/0/properties", "cpu_cores_count 16\nsimd_count 0\ngfx_target_version 0")
    for position, card in enumerate(machine.cards):
        path = f"{nodes}/{position + 1}/properties"
        if card.vendor == "amd" and card.hidden:
            (root / path).mkdir(parents=True)  # opening a folder fails for root, too, unlike opening a mode-000 file
        elif card.vendor == "amd":
            table = {
                "cpu_cores_count": 0,
                "simd_count": 192,
                "gfx_target_version": _target_version(card.architecture),
                "drm_render_minor": _FIRST_RENDER_NODE + position,
                "unique_id": int(card.uuid.removeprefix("GPU-"), 16),
            }
            _write(root, path, "\n".join(f"{key} {value}" for key, value in table.items()))


def _target_version(gfx: str) -> int:
    """110000 for gfx1100, 90010 for gfx90a: the stepping is a hexadecimal digit."""
    return int(gfx[3:-2]) * 10_000 + int(gfx[-2]) * 100 + int(gfx[-1], 16)


def _write_render_node(root: Path, folder: str, card: Card) -> None:
    _write(root, f"{folder}/vendor", _PCI_VENDORS[card.vendor])
    if card.vendor == "amd":
        _write(root, f"{folder}/mem_info_vram_total", str(card.total))
        _write(root, f"{folder}/mem_info_vram_used", str(card.total - card.left))
