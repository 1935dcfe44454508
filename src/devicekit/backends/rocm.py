"""AMD GPUs: torch.cuda's names on a ROCm build, so this is cuda minus what differs.

The GPUs are read from the kernel's own table (``/sys/class/kfd/kfd/topology``, amdkfd), which starts no runtime.
The capability tuple is never used: on ROCm it is the gfx major, so that gfx1100 looks newer than any NVIDIA GPU
(torch/testing/_internal/common_cuda.py says so).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devicekit.backends import _visible
from devicekit.backends._cudalike import FORK_FIX, FORKED, CudaLike
from devicekit.host import compiled_accelerator
from devicekit.values import AllocatorOption, AttentionCase, Availability, DeviceInfo

MASKS_FIX = "ROCR_VISIBLE_DEVICES is applied first, HIP_VISIBLE_DEVICES within it"
TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes"

# Matrix or dot instructions for bfloat16: MI100 and later, RDNA3 and later (AMD's ISA guides). RDNA1 and RDNA2 have
# none, though `is_bf16_supported()` is always True on ROCm (torch/cuda/__init__.py).
NATIVE_BFLOAT16 = re.compile(r"gfx(908|90a|94[0-9a-f]|95[0-9a-f]|11[0-9a-f]{2}|12[0-9a-f]{2})")

# Chips with AOTriton's attention, and those with it when one asks (torch/testing/_internal/common_cuda.py, torch 2.13).
ATTENTION = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
EXPERIMENTAL_ATTENTION = ("gfx1101", "gfx1102", "gfx1150", "gfx1151", "gfx1200")
EXPERIMENTAL = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"

OVERRIDE = "HSA_OVERRIDE_GFX_VERSION"

# hipBLASLt, which multiplies 8-bit integers, is for these (aten/src/ATen/native/cuda/Blas.cpp, "archs").
HIPBLASLT = re.compile(r"gfx(908|90a|942|950|110[01]|115[01]|120[01])")
# The chips that torch lets into its 4-bit kernel (aten/src/ATen/native/cuda/int4mm.cu, isCDNA2orLater).
CDNA2 = ("gfx90a", "gfx942", "gfx950")
FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
OCP = ("float8_e4m3fn", "float8_e5m2")
"""The float8 types of MI300 alone, and those of the Open Compute Project, which all later chips have."""


class RocmBackend(CudaLike):
    """The GPUs of an AMD driver, under the device string ``cuda``."""

    name = "rocm"
    device_type = "cuda"
    driver_source = "hipMemGetInfo (the whole GPU)"
    masks = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    collective = "nccl"  # RCCL, under the same name

    def probe(self) -> Availability:
        """Built for ROCm, the kernel driver loaded, a GPU left visible by both masks, kernels for it."""
        torch = self.torch
        if torch.version.hip is None:
            built = compiled_accelerator(torch)
            kind = f"built for {built}, not ROCm" if built else "built without ROCm"
            return Availability.absent(
                f"torch {torch.__version__} is {kind}", 'pip install -r requirements-rocm.txt, or device="auto"'
            )
        if self.forked():
            return Availability.no(FORKED, FORK_FIX)
        hidden = self._hidden()
        if hidden:
            return Availability.no(f"{hidden} hides every GPU", f"unset {hidden.partition('=')[0]}, or correct it")
        if self.runtime.is_initialized():
            return Availability.yes(self.describe(i) for i in range(self.runtime.device_count()))
        if self.host.platform == "linux":
            return self._probe_kernel_driver()
        return Availability.yes(DeviceInfo(i, "AMD GPU") for i in range(self.runtime.device_count()))

    def _masks(self) -> list[tuple[str, str]]:
        """The masks in the order in which they apply: ROCR first, then HIP (or CUDA) within what is left."""
        env = self.host.env
        second = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"
        return [(name, env[name]) for name in ("ROCR_VISIBLE_DEVICES", second) if name in env]

    def _hidden(self) -> str | None:
        return next((f"{name}={mask!r}" for name, mask in self._masks() if _visible.hides_all(mask)), None)

    def _probe_kernel_driver(self) -> Availability:
        nodes = self._nodes()
        if not nodes:
            return Availability.no(
                "no AMD GPU is here: the amdgpu kernel driver shows no compute node",
                "install the amdgpu driver; in a container add --device=/dev/kfd --device=/dev/dri",
            )
        masks = dict(self._masks())
        if {"ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"} <= masks.keys():
            first, second = (len(mask.split(",")) for mask in masks.values())
            if second > first:  # torch refuses it as well: torch/cuda/__init__.py, _parse_visible_devices
                told = f"HIP_VISIBLE_DEVICES names {second} GPUs, of which ROCR_VISIBLE_DEVICES leaves {first}"
                return Availability.no(told, MASKS_FIX)
        visible = list(range(len(nodes)))
        for name, mask in self._masks():
            kept = _visible.select(mask, [nodes[i].get("uuid") for i in visible])
            if not kept:
                told = f"{name}={mask!r} matches none of the {len(visible)} GPUs that are left to it"
                return Availability.no(told, MASKS_FIX)
            visible = [visible[i] for i in kept]
        return Availability.yes(self._info(i, nodes[node]) for i, node in enumerate(visible))

    def _nodes(self) -> list[dict[str, Any]]:
        """The GPUs of the kernel's table; a node without SIMDs is a CPU."""
        paths = self.host.glob(f"{TOPOLOGY}/*/properties")
        tables = [_table(path) for path in sorted(paths, key=lambda p: int(p.parent.name))]
        return [t for t in tables if int(t.get("simd_count", 0)) > 0]

    def _info(self, index: int, node: dict[str, Any]) -> DeviceInfo:
        override = self.host.env.get(OVERRIDE)
        arch = _dotted_gfx(override) if override else _gfx(int(node.get("gfx_target_version", 0)))
        total, free = self._vram(node)
        return DeviceInfo(
            index,
            f"AMD GPU {arch}",
            architecture=arch,
            total_memory=total,
            free_memory=free,
            bfloat16=bool(NATIVE_BFLOAT16.fullmatch(arch)),
        )

    def _vram(self, node: dict[str, Any]) -> tuple[int | None, int | None]:
        """Total and free bytes, from the display driver's files for the same card."""
        folder = f"/sys/class/drm/renderD{node.get('drm_render_minor', '?')}/device"
        total = self.host.read_text(f"{folder}/mem_info_vram_total")
        used = self.host.read_text(f"{folder}/mem_info_vram_used")
        if total is None or used is None:
            return None, None
        return int(total), int(total) - int(used)

    def describe(self, index: int = 0) -> DeviceInfo:
        """All of it; starts the HIP runtime."""
        props = self.runtime.get_device_properties(index)
        arch = props.gcnArchName.split(":")[0]  # "gfx90a:sramecc+:xnack-"
        built = [a.split(":")[0] for a in self.runtime.get_arch_list()]
        known = not built or arch in built
        return DeviceInfo(
            index,
            props.name,
            usable=known,
            reason=""
            if known
            else f"torch {self.torch.__version__} has no kernels for {arch}; it has {' '.join(built)}",
            fix="" if known else "HSA_OVERRIDE_GFX_VERSION with the nearest of these, or a torch built for this GPU",
            architecture=arch,
            total_memory=int(props.total_memory),
            integrated=bool(getattr(props, "is_integrated", False)),
            bfloat16=bool(NATIVE_BFLOAT16.fullmatch(arch)),
        )

    def versions(self) -> dict[str, str]:
        """ROCm as torch was built for it, and as it is installed."""
        found = {"hip": str(self.torch.version.hip)}
        installed = self.host.read_text("/opt/rocm/.info/version")
        if installed:
            found["rocm"] = installed
        return found

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 where the chip has instructions for it, float16 on all others that ROCm supports."""
        return self.torch.bfloat16 if NATIVE_BFLOAT16.fullmatch(self._architecture(index)) else self.torch.float16

    def _architecture(self, index: int) -> str:
        return str(self.runtime.get_device_properties(index).gcnArchName).split(":")[0]

    # -- number formats --------------------------------------------------------------------------
    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """By the chip's name.

        TF32 is a matrix instruction of MI300 alone (LLVM, FeatureXF32Insts); MI350 takes the switch
        (``torch.cuda.is_tf32_supported``) and has other instructions do it.
        """
        arch = self._architecture(index)
        told = {"float64": "native", "float32": "native", "float16": "native"}
        told["tf32"] = {"gfx94": "native", "gfx95": "emulated"}.get(arch[:5], "no")
        told["bfloat16"] = "native" if NATIVE_BFLOAT16.fullmatch(arch) else "emulated"
        flavour = self._float8(arch)
        told["float8"] = "native" if flavour else "no"
        if flavour == FNUZ:
            told.update({**dict.fromkeys(FNUZ, "native"), **dict.fromkeys(OCP, "no")})
        told["int8"] = "native" if HIPBLASLT.fullmatch(arch) else "no"
        told["int4"] = "emulated" if arch in CDNA2 else "no"
        return told

    def _float8(self, arch: str) -> tuple[str, ...]:
        """The types that the chip multiplies, where this ROCm is new enough for it; none else.

        Source: torch/testing/_internal/common_cuda.py, evaluate_platform_supports_fp8; ``_scaled_mm_is_fnuz`` in
        aten/src/ATen/native/cuda/ScaledBlas.cpp.
        """
        if arch.startswith("gfx94"):
            return FNUZ
        built = tuple(int(part) for part in re.findall(r"[0-9]+", str(self.torch.version.hip))[:2])
        since = {"gfx120": (6, 3), "gfx95": (6, 5)}
        return next((OCP for start, first in since.items() if arch.startswith(start) and built >= first), ())

    def traits(self, index: int = 0) -> Mapping[str, str]:
        """Which float8 types, whether attention has fused kernels, and as which chip the runtime pretends to see it."""
        arch = self._architecture(index)
        flavour = self._float8(arch)
        told = {"float8 types": ", ".join(flavour) or "none"}
        told["flash and memory-efficient attention"] = self._attention_problem(arch) or "yes"
        if arch.startswith("gfx94") and self.host.env.get("HIPBLASLT_ALLOW_TF32") != "1":
            # test/test_linalg.py of torch: "Environment variable will be removed in the future".
            told["tf32"] = "where torch still asks for it, only with HIPBLASLT_ALLOW_TF32=1"
        override = self.host.env.get(OVERRIDE)
        if override:
            told["warning"] = f"{OVERRIDE}={override} makes the runtime take the chip for {arch}, whatever it is"
        return told

    def expandable_segments(self) -> AllocatorOption:
        """Not here: before ROCm 7 torch ignores it (c10/cuda/CUDAAllocatorConfig.h), and later it can hang for good."""
        return AllocatorOption(
            reason="growing segments are left off on ROCm, where a first move can hang for good "
            "(pytorch/pytorch#192259); where they work for you: PYTORCH_HIP_ALLOC_CONF=expandable_segments:True"
        )

    # -- attention and compiling -----------------------------------------------------------------
    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """AOTriton has both kernels, on some chips (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

        Some of its releases take heads of 512 on some chips; which release this is cannot be told.
        """
        torch, chip = self.torch, self._attention_problem(self._architecture(index))
        half = (torch.float16, torch.bfloat16)
        return {
            "flash": chip or case.against(half, head_dim=256, mask=False),
            "memory-efficient": chip or case.against((*half, torch.float32), head_dim=256, multiple=8),
            "math": "",
        }

    def _attention_problem(self, arch: str) -> str:
        if arch in ATTENTION:
            return ""
        if arch not in EXPERIMENTAL_ATTENTION:
            return f"AOTriton has no attention for {arch}"
        asked = self.host.env.get(EXPERIMENTAL, "0") != "0"
        return "" if asked else f"it is experimental on {arch}: {EXPERIMENTAL}=1 before the start"

    def flash_attn_problem(self, case: AttentionCase, index: int = 0) -> str:
        """Its composable-kernel build is for MI200 and MI300 and later (README of Dao-AILab/flash-attention)."""
        arch, torch = self._architecture(index), self.torch
        other = "" if arch in ("gfx90a", "gfx942", "gfx950") else f"flash-attn has no kernels for {arch}"
        return other or case.against((torch.float16, torch.bfloat16), head_dim=256, mask=False)

    def compile_problem(self, index: int = 0) -> str:
        """Triton runs on all that ROCm does."""
        return self.triton_problem()


def _table(path: Path) -> dict[str, Any]:
    """One node's properties: ``name number`` a line. ``unique_id`` becomes the UUID that the masks use."""
    try:
        lines = path.read_text().splitlines()
    except OSError:  # nodes of other tenants may not be read
        return {}
    table: dict[str, Any] = dict(line.split(maxsplit=1) for line in lines if len(line.split()) == 2)
    unique = int(table.get("unique_id", 0))
    return {**table, "uuid": f"GPU-{unique:016x}" if unique else None}


def _gfx(version: int) -> str:
    """``gfx_target_version`` in words: 110000 is gfx1100, 90010 is gfx90a; the stepping is hexadecimal.

    Source: LLVM, clang/tools/amdgpu-arch/AMDGPUArchByKFD.cpp.
    """
    return f"gfx{version // 10000}{version // 100 % 100}{version % 100:x}"


def _dotted_gfx(text: str) -> str:
    """HSA_OVERRIDE_GFX_VERSION's form: ``10.3.0`` is gfx1030."""
    major, minor, stepping = (*(int(p) for p in re.findall(r"[0-9]+", text)), 0, 0, 0)[:3]
    return f"gfx{major}{minor}{stepping:x}"
