"""NVIDIA GPUs, through torch.cuda; asked through NVML, so that no context is made and a later fork still works.

``torch.cuda.is_available()``, ``device_count()`` and even ``get_arch_list()`` mark the process, and every child forked
from it then refuses CUDA (measured on torch 2.13.0+cu130: ``torch.cuda._is_in_bad_fork()``). NVML has no such effect.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from devicekit.backends import _nvml, _visible
from devicekit.backends._cudalike import FORK_FIX, FORKED, CudaLike
from devicekit.host import compiled_accelerator
from devicekit.values import AllocatorOption, AttentionCase, Availability, DeviceInfo, MemoryStats

log = logging.getLogger("devicekit")

MASK = "CUDA_VISIBLE_DEVICES"
NO_DRIVER_FIX = (
    'install the NVIDIA driver; in a container start it with `--gpus all` (NVIDIA Container Toolkit); or device="auto"'
)


class CudaBackend(CudaLike):
    """The GPUs of an NVIDIA driver that this torch has kernels for."""

    name = "cuda"
    driver_source = "cudaMemGetInfo (the whole GPU)"
    masks = (MASK,)
    collective = "nccl"

    # -- is it here ------------------------------------------------------------------------------
    def probe(self) -> Availability:
        """Built for CUDA, a driver new enough, a GPU in sight, and kernels for it."""
        torch = self.torch
        if torch.version.cuda is None:
            return self._not_built()
        if self.forked():
            return Availability.no(FORKED, FORK_FIX)
        mask = self.host.env.get(MASK)
        if _visible.hides_all(mask):
            return Availability.no(f"{MASK}={mask!r} hides every GPU", f"unset {MASK}, or name a GPU in it")
        if self.runtime.is_initialized():
            return Availability.yes(self.describe(i) for i in range(self.runtime.device_count()))
        return self._probe_nvml(mask) or self._probe_torch(mask)

    def _not_built(self) -> Availability:
        torch = self.torch
        if torch.version.hip is None and torch.cuda.is_available():
            return Availability.no(
                "a shim makes torch.cuda answer for another device (transfer_to_npu, torchada, ...); "
                "this torch is not built for CUDA",
                'ask for the device by its own name, or device="auto"',
            )
        built = compiled_accelerator(torch)
        kind = f"built for {built}, not CUDA" if built else "built without CUDA"
        return Availability.absent(
            f"torch {torch.__version__} is {kind}", 'pip install -r requirements-cuda.txt, or device="auto"'
        )

    def _probe_nvml(self, mask: str | None) -> Availability | None:
        """The answer of NVML; None where NVML cannot be asked."""
        nvml = self.host.module("pynvml")
        if nvml is None:
            return None
        try:
            return self._ask_nvml(nvml, mask)
        except nvml.NVMLError:  # a lost card, missing rights: torch and the runtime may know more
            log.debug("NVML failed", exc_info=True)
            return None

    def _ask_nvml(self, nvml: Any, mask: str | None) -> Availability | None:
        with _nvml.session(nvml) as started:
            if not started:
                return None
            too_old = self._driver_too_old(int(nvml.nvmlSystemGetCudaDriverVersion_v2()))
            if too_old is not None:
                return too_old
            cards = _nvml.cards(nvml)
            if mask is not None and mask.strip().startswith("MIG-"):
                return self._probe_slice(nvml, mask)
        visible = [cards[i] for i in _visible.select(mask, [c.uuid for c in cards])]
        if not visible:
            told = f"{MASK}={mask!r} matches none of the {len(cards)} GPUs here" if cards else "no NVIDIA GPU is here"
            return Availability.no(told, f"unset {MASK}, or correct it" if cards else 'device="auto"')
        known = self._order_is_known(cards, mask)
        return Availability.yes(self._info(i, card, known) for i, card in enumerate(visible))

    def _driver_too_old(self, supports: int) -> Availability | None:
        """CUDA's minors are compatible, its majors are not (CUDA Compatibility guide, NVIDIA); 12040 means 12.4."""
        built = str(self.torch.version.cuda)
        if supports // 1000 >= int(built.partition(".")[0]):
            return None
        return Availability.no(
            f"the NVIDIA driver is too old: it supports CUDA {supports // 1000}.{supports % 1000 // 10}, "
            f"and torch {self.torch.__version__} is built for CUDA {built}",
            f"update the driver, or install a torch built for CUDA {supports // 1000}",
        )

    def _probe_slice(self, nvml: Any, mask: str) -> Availability:
        """A MIG slice, named by UUID. CUDA shows a process the first one only (MIG User Guide, NVIDIA)."""
        uuid = mask.split(",")[0].strip()
        try:
            card = _nvml.slice_card(nvml, uuid)
        except nvml.NVMLError as exc:
            return Availability.no(f"{MASK}={mask!r} names no MIG slice here: {exc}", f"correct {MASK} (nvidia-smi -L)")
        return Availability.yes([self._info(0, card, True)])

    def _order_is_known(self, cards: list[_nvml.Card], mask: str | None) -> bool:
        """NVML counts by PCI bus, CUDA by speed unless told otherwise; alike cards and UUIDs leave no doubt."""
        by_bus = self.host.env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        alike = len({c.name for c in cards}) <= 1
        named = mask is not None and mask.strip().startswith("GPU-")
        return by_bus or alike or named

    def _info(self, index: int, card: _nvml.Card, known: bool) -> DeviceInfo:
        if not known:
            # Which card this index means cannot be told, so nothing is said that may be another's.
            return DeviceInfo(index, "NVIDIA GPU (set CUDA_DEVICE_ORDER=PCI_BUS_ID to tell which)")
        reason, fix = self._kernels(card.name, card.capability)
        return DeviceInfo(
            index,
            card.name,
            usable=not reason,
            reason=reason,
            fix=fix,
            architecture=f"sm_{card.capability}",
            total_memory=None if card.sliced else card.total,
            free_memory=None if card.sliced else card.free,
            integrated=None,
            bfloat16=card.capability >= 80,
        )

    # -- without NVML ----------------------------------------------------------------------------
    def _probe_torch(self, mask: str | None) -> Availability:
        """What can be known without pynvml: torch's own NVML count, else the CUDA runtime itself."""
        count = self._count_by_nvml()
        told = ""
        driver = "libcuda.so.1" if self.host.platform != "win32" else "nvcuda.dll"
        supports = self.host.library_number(driver, "cuDriverGetVersion")  # needs no cuInit, so it starts nothing
        too_old = self._driver_too_old(supports) if supports else None
        if too_old is not None:
            return too_old
        if count < 0:
            if not self.host.library(driver):
                return Availability.no("no NVIDIA driver is here: libcuda cannot be loaded", NO_DRIVER_FIX)
            # A driver without NVML (Jetson, some containers): only the runtime can tell, at the price of the fork.
            count, told = self._count_by_runtime()
        if count <= 0:
            return Availability.no(told or "the NVIDIA driver shows no GPU", "nvidia-smi, then devicekit doctor")
        note = "kernels not checked: pip install nvidia-ml-py"
        return Availability.yes((DeviceInfo(i, "NVIDIA GPU") for i in range(count)), f"{count} GPU(s), {note}")

    def _count_by_nvml(self) -> int:
        counter = getattr(self.runtime, "_device_count_nvml", None)
        if counter is None:
            return -1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Can't initialize NVML": the answer -1 says as much
            return int(counter())

    def _count_by_runtime(self) -> tuple[int, str]:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            count = int(self.runtime.device_count())
        words = [str(w.message).removeprefix("CUDA initialization: ") for w in heard]
        return count, words[0].split(" (Triggered internally")[0] if words else ""

    # -- kernels ---------------------------------------------------------------------------------
    def _kernels(self, name: str, capability: int) -> tuple[str, str]:
        """Why this torch has no kernels for the GPU and which build has; two empty strings when it has."""
        built = self._built_architectures()
        if not built or any(self._runs_on(code, capability) for code in built):
            return "", ""
        torch = self.torch
        reason = f"torch {torch.__version__} has no kernels for {name} (sm_{capability}); it has {', '.join(built)}"
        releases = getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", {})
        machine = "aarch64" if self.host.machine == "aarch64" else "x86_64"
        good = [
            f"cu{release.replace('.', '')}"
            for release, by_machine in releases.items()
            if any(self._runs_on(f"sm_{code}", capability) for code in by_machine.get(machine, ()))
        ]
        if good:
            return reason, f"install the same torch from the index {' or '.join(good)}"
        newer = all(capability > int(code.partition("_")[2].rstrip("af")) for code in built)
        other = "a newer torch that has them" if newer else "an older torch that still has them"
        return reason, f"{other}, or build torch from source for this GPU"

    def _built_architectures(self) -> list[str]:
        """``sm_86``, ``compute_90`` ...: what the build holds, read from its configuration.

        ``torch.cuda.get_arch_list()`` says the same, but marks the process (see the top of this file).
        """
        lists = re.findall(r"code=\[?([a-z0-9_,]+)", str(self.torch.__config__.show()))
        codes = (code for found in lists for code in found.split(","))
        return list(dict.fromkeys(c for c in codes if re.fullmatch(r"(sm|compute)_[0-9]+[af]?", c)))

    def _runs_on(self, code: str, capability: int) -> bool:
        """Torch's own rule where it has one (``torch.cuda._code_compatible_with_device``, 2.9 and later)."""
        kind, _, digits = code.partition("_")
        number = int(digits.rstrip("af"))
        if kind == "compute":  # PTX: compiled on the spot for anything as new
            return capability >= number
        rule = getattr(self.torch.cuda, "_code_compatible_with_device", None)
        if rule is None:
            return capability // 10 == number // 10 and capability >= number
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "unknown compute capability": torch then uses the same rule as above
            return bool(rule(capability, number))

    # -- a chosen device -------------------------------------------------------------------------
    def memory_stats(self, index: int = 0) -> MemoryStats:
        """As the driver and the allocator say; with unified memory (Jetson, GB10) as the host says, if that is more.

        There cudaMemGetInfo's free memory leaves out the page cache, which the kernel gives back on demand: 41 GiB
        were told where 116 GiB could be had (vllm-project/vllm#35313, #48140).
        """
        stats = super().memory_stats(index)
        host = self.host.memory() if stats.unified else None
        if host is None or stats.available is None or host[1] <= stats.available:
            return stats
        available = host[1] if stats.total is None else min(host[1], stats.total)
        return replace(stats, available=available, source=f"{self.driver_source}; available memory: {host[2]}")

    def describe(self, index: int = 0) -> DeviceInfo:
        """All of it; starts the CUDA runtime."""
        props = self.runtime.get_device_properties(index)
        capability = props.major * 10 + props.minor
        reason, fix = self._kernels(props.name, capability)
        return DeviceInfo(
            index,
            props.name,
            usable=not reason,
            reason=reason,
            fix=fix,
            architecture=f"sm_{capability}",
            total_memory=int(props.total_memory),
            integrated=bool(getattr(props, "is_integrated", False)),
            bfloat16=capability >= 80,
        )

    def versions(self) -> dict[str, str]:
        """The CUDA that torch was built for, cuDNN, and the driver."""
        found = {"cuda": str(self.torch.version.cuda)}
        nvml = self.host.module("pynvml")
        if nvml is not None:
            with _nvml.session(nvml) as started:
                if started:
                    found["driver"] = _nvml.text(nvml.nvmlSystemGetDriverVersion())
        return found

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 from sm_80 on, where it is native; float16 on Volta and Turing; float32 before.

        The GTX 16xx compute NaN in half precision (found by InvokeAI and ComfyUI, which list them by name), and
        Pascal's float16 is 64 times slower than its float32 (CUDA C Programming Guide, arithmetic throughput).
        """
        major, _ = self.runtime.get_device_capability(index)
        if major >= 8:
            return self.torch.bfloat16
        name = str(self.runtime.get_device_name(index))
        return self.torch.float16 if major == 7 and "GTX 16" not in name else self.torch.float32

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """By compute capability.

        Sources: arithmetic throughput and element types in the CUDA C Programming Guide (float16 is 64 times slower
        than float32 on sm_61; products of 8-bit integers from sm_72 on); in aten/src/ATen/native/cuda ScaledBlas.cpp
        (``_scaled_mm_allowed_device``) and int4mm.cu, whose kernel is empty before sm_80.
        """
        code = self._capability(index)
        told = {"float64": "native", "float32": "native"}
        told["tf32"] = "native" if code >= 80 else "no"
        told["bfloat16"] = "native" if code >= 80 else "emulated"
        told["float16"] = "native" if code >= 70 or code in (53, 60, 62) else "emulated"
        told["float8"] = "native" if code >= 89 else "no"
        if code >= 72:  # before it is left to cuBLASLt
            told["int8"] = "native"
        told["int4"] = "emulated" if code >= 80 else "no"
        return told

    def traits(self, index: int = 0) -> Mapping[str, str]:
        """The compute capability, shared memory, and the one generation that computes NaN."""
        code = self._capability(index)
        told = {"compute capability": f"{code // 10}.{code % 10}"}
        if self._integrated(index):
            told["memory"] = "shared with the host"
        if "GTX 16" in str(self.runtime.get_device_name(index)):
            told["warning"] = "convolutions in float16 are known to give NaN on the GTX 16xx; dm.dtype is float32 there"
        return told

    def expandable_segments(self) -> AllocatorOption:
        """On Linux, but not on a Jetson, where torch's own tests leave it out (test/test_cuda_expandable_segments.py).

        torch reads the variables at the first allocation, the first of these first (run on 2.13.0+cu130; 2.9 warns that
        it is deprecated, and ignores this option in the other one: pytorch/pytorch#183387).
        """
        jetson = "tegra" in (self.host.read_text("/proc/sys/kernel/osrelease") or "")
        if self.host.platform != "linux" or jetson:
            where = "a Jetson" if jetson else self.host.platform
            return AllocatorOption(reason=f"torch's segments cannot grow on {where}")
        return AllocatorOption(
            ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
            "expandable_segments:True",
            excludes=("backend:cudaMallocAsync",),
            late=self.runtime.is_initialized(),
            reason="handing CUDA tensors to other processes then needs a right that most containers do not have "
            "(pytorch/pytorch#165685)",
        )

    # -- attention and compiling -----------------------------------------------------------------
    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """What aten/src/ATen/native/transformers/cuda/sdp_utils.cpp asks of a case, and in its order.

        cuDNN comes first on Hopper and Blackwell with cuDNN after 9.15.0 (check_prefer_cudnn_attention there), and
        elsewhere only when asked for.
        """
        torch, code = self.torch, self._capability(index)
        too_old = f"sm_{code} < sm_80" if code < 80 else ""
        too_new = f"sm_{code} > sm_121" if code > 121 else ""
        half = (torch.float16, torch.bfloat16)
        flash = too_old or too_new or case.against(half, head_dim=256, mask=False) or _flash_training(case, code)
        efficient = too_new or case.against(
            (torch.float16, torch.float32) if too_old else (*half, torch.float32), multiple=_alignment(case, code)
        )
        cudnn = too_old or too_new or self._cudnn_problem(case) or case.against(half, head_dim=128, multiple=8)
        if not torch.backends.cuda.is_flash_attention_available():
            flash = f"torch {torch.__version__} is built without it"
        known = {"flash": flash, "memory-efficient": efficient, "math": ""}
        return {"cudnn": cudnn, **known} if self._prefers_cudnn(code) else {**known, "cudnn": cudnn}

    def _capability(self, index: int) -> int:
        major, minor = self.runtime.get_device_capability(index)
        return int(major * 10 + minor)

    def _cudnn_problem(self, case: AttentionCase) -> str:
        version = self.torch.backends.cudnn.version()
        if version is None:
            return f"torch {self.torch.__version__} is built without cuDNN"
        if version < 90000:
            return f"cuDNN {version} < 90000"
        return f"dropout {case.dropout:g} is no multiple of 1/16" if case.dropout * 16 % 1 else ""

    def _prefers_cudnn(self, code: int) -> bool:
        if self.host.env.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1" or code not in (90, 100, 103):
            return False
        return (self.torch.backends.cudnn.version() or 0) > 91500

    def flash_attn_problem(self, case: AttentionCase, index: int = 0) -> str:
        """FlashAttention 2 is for Ampere and later, with 16 bits and heads of 256 at most (its README)."""
        code, torch = self._capability(index), self.torch
        too_old = f"sm_{code} < sm_80" if code < 80 else ""
        return too_old or case.against((torch.float16, torch.bfloat16), head_dim=256, mask=False)

    def compile_problem(self, index: int = 0) -> str:
        """Triton needs sm_70 (torch/_dynamo/device_interface.py, is_triton_capable)."""
        code = self._capability(index)
        return f"Triton needs sm_70, and this GPU is sm_{code}" if code < 70 else self.triton_problem()


def _alignment(case: AttentionCase, code: int) -> int:
    """Of how many elements a head must be a multiple for the memory-efficient kernel: 16 bytes on tensor cores."""
    size = 4 if case.dtype.itemsize == 4 else 2
    tensor_cores = code >= 80 or (code >= 70 and size == 2)
    return 16 // size if tensor_cores else 1


def _flash_training(case: AttentionCase, code: int) -> str:
    """Consumer GPUs have no gradients of some large heads (same file, check_requires_grad_and_head_dim_gt192_...)."""
    small = 86 <= code <= 89 or 120 <= code <= 121
    if not (small and case.training and (case.head_dim or 0) > 192):
        return ""
    if (case.head_dim or 0) > 224 and not case.dropout:
        return ""
    return f"gradients of head dim {case.head_dim} on sm_{code}"
