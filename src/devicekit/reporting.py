"""The whole machine as data: what a bug report, a log line or a health page needs."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from importlib import metadata
from typing import Any

from devicekit import host as _host
from devicekit.backend import Backend
from devicekit.container import usable_cpus
from devicekit.host import Host
from devicekit.request import PINS
from devicekit.resolve import resolver

__all__ = ["info", "machine", "processor", "versions"]

# Packages whose versions explain most device troubles.
PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "transformers",
    "diffusers",
    "accelerate",
    "torch_npu",
    "triton",
    "nvidia-ml-py",
)

# Variables that change which devices are seen, or how.
VARIABLES = (
    *PINS,
    "DEVICEKIT_TUNING",
    "DEVICEKIT_REDIRECT",
    "LOCAL_RANK",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "HIPBLASLT_ALLOW_TF32",
    "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL",
    "ZE_AFFINITY_MASK",
    "ASCEND_RT_VISIBLE_DEVICES",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "OMP_NUM_THREADS",
)

# Processor features that decide which number formats are fast.
CPU_FEATURES = (
    "avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16",
    "neon", "fp16_arith", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip


def info() -> dict[str, Any]:
    """The machine, every backend, memory and versions, JSON-able. Starts no accelerator's runtime.

    Raises:
        UnknownDeviceError: a pin is no device.
    """
    host = _host.current()
    here = resolver(host)
    explanation = here.explain()
    chosen = here.decide()
    return {
        "decision": {k: v for k, v in explanation.to_dict().items() if k != "verdicts"},
        "backends": [dataclasses.asdict(v) for v in explanation.verdicts],
        "machine": machine(host),
        "memory": chosen.backend.memory_stats(chosen.index or 0).to_dict() if not chosen.backend.accelerator else None,
        "versions": versions(chosen.backend),
        "environment": {name: host.env[name] for name in VARIABLES if name in host.env},
    }


def versions(backend: Backend) -> dict[str, str]:
    """devicekit's, Python's and the frameworks' versions, and those that the backend adds."""
    from devicekit import __version__

    found = {"devicekit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if backend.needs_torch and backend.host.torch_failure() is None:
        found["torch"] = str(backend.torch.__version__)  # with the build that its metadata leaves out
    return {**found, **backend.versions()}


def machine(host: Host) -> dict[str, Any]:
    """The operating system, the processor with the features that matter to number formats, CPUs and the container."""
    features = cpu_features(host)
    quota = host.cgroup().cpu_quota()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": host.machine,
        "python": platform.python_version(),
        "executable": sys.executable,
        "processor": processor(host),
        "cpu_features": [name for name in CPU_FEATURES if features.get(name)],
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(host.cgroup()),
        "cpu_quota": quota,
    }


def cpu_features(host: Host) -> dict[str, bool]:
    """Feature -> present, under torch's names (cpuinfo); from torch where it can be had, else from the kernel."""
    if host.torch_failure() is None:
        asked = getattr(host.torch().cpu, "get_capabilities", None)  # torch 2.11 and later
        if asked is not None:
            return {name: value for name, value in asked().items() if isinstance(value, bool)}
    words = (_cpuinfo(host, "flags") or _cpuinfo(host, "Features") or "").split()
    renamed = {"avx512f": "avx512_f", "asimd": "neon", "fphp": "fp16_arith"}  # the kernel's spelling -> torch's
    return {renamed.get(word, word): True for word in words}


def processor(host: Host) -> str:
    """The processor's name, as the kernel or Python tells it."""
    return _cpuinfo(host, "model name") or platform.processor() or host.machine


def _cpuinfo(host: Host, key: str) -> str | None:
    for line in (host.read_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
