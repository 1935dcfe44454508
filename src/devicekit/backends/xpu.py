"""Intel GPUs, through torch.xpu of a stock PyTorch (intel_extension_for_pytorch is discontinued and never imported)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from devicekit import products
from devicekit.backends._cudalike import FORK_FIX, FORKED, CudaLike
from devicekit.backends._kernels import registered
from devicekit.values import AllocatorOption, AttentionCase, Availability, DeviceInfo

INTEL = "0x8086"


class XpuBackend(CudaLike):
    """The GPUs that Level Zero shows; integrated ones only where there is no discrete one (torch drops them)."""

    name = "xpu"
    driver_source = "Level Zero (the whole GPU)"
    masks = ("ZE_AFFINITY_MASK",)
    collective = "xccl"

    def probe(self) -> Availability:
        """Built for XPU, an Intel GPU under /dev/dri, and a runtime that counts it."""
        torch = self.torch
        if getattr(torch.version, "xpu", None) is None:
            return Availability.absent(
                f"torch {torch.__version__} is built without XPU",
                'pip install torch --index-url https://download.pytorch.org/whl/xpu, or device="auto"',
            )
        if self.forked():
            return Availability.no(FORKED, FORK_FIX)
        if self.host.platform == "linux" and not self._has_intel_gpu():
            return Availability.no(
                "no Intel GPU is here: /dev/dri has no device of Intel's",
                "install the GPU driver; in a container add --device=/dev/dri",
            )
        # Counts through Level Zero Sysman where the package pyzes is installed (torch 2.13), which starts nothing;
        # through the SYCL runtime else, after which a forked child cannot use the GPU.
        count = int(self.runtime.device_count())
        if count == 0:
            # The mask is left to Level Zero: an empty one is none, "0.1" a tile (compute-runtime, parseAffinityMask).
            mask = self.host.env.get("ZE_AFFINITY_MASK")
            told = f" under ZE_AFFINITY_MASK={mask!r}" if mask else ""
            return Availability.no(
                f"Level Zero shows no GPU to torch{told}", "install Intel's compute runtime, or check ZE_AFFINITY_MASK"
            )
        if self.runtime.is_initialized():
            return Availability.yes(self.describe(i) for i in range(count))
        return Availability.yes(DeviceInfo(i, "Intel GPU") for i in range(count))

    def _has_intel_gpu(self) -> bool:
        files = self.host.glob("/sys/class/drm/renderD*/device/vendor")
        return any(self.host.read_text("/" + str(f.relative_to(self.host.root))) == INTEL for f in files)

    def describe(self, index: int = 0) -> DeviceInfo:
        """All of it; starts the SYCL runtime."""
        props = self.runtime.get_device_properties(index)
        return DeviceInfo(
            index,
            props.name,
            total_memory=int(props.total_memory),
            integrated=self._integrated(index),
            bfloat16=bool(props.has_bfloat16_conversions),
        )

    def _integrated(self, index: int) -> bool | None:
        flag = getattr(self.runtime.get_device_properties(index), "is_integrated_gpu", None)
        return None if flag is None else bool(flag)

    def versions(self) -> dict[str, str]:
        """The SYCL compiler's version that torch was built with."""
        return {"xpu": str(self.torch.version.xpu)}

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 where the chip converts it itself; ``is_bf16_supported()`` counts emulation, so it is not asked."""
        props = self.runtime.get_device_properties(index)
        if getattr(props, "has_bfloat16_conversions", False):
            return self.torch.bfloat16
        return self.torch.float16 if getattr(props, "has_fp16", False) else self.torch.float32

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """As the properties tell. None of them is about float8, so that its product counts as converted."""
        torch, props = self.torch, self.runtime.get_device_properties(index)
        told = {"float32": "native", "float64": "native" if props.has_fp64 else "no"}
        told["float16"] = "native" if props.has_fp16 else "no"
        told["bfloat16"] = "native" if props.has_bfloat16_conversions else "emulated"
        told["tf32"] = "native" if self._has_matrix_units(index) else "no"
        told["float8"] = "emulated" if registered(torch, "_scaled_mm", "XPU") else "no"
        kernel = registered(torch, "_int_mm", "XPU")
        told["int8"] = ("native" if self._has_matrix_units(index) else "emulated") if kernel else "no"
        int4 = registered(torch, "_weight_int4pack_mm_with_scales_and_zeros", "XPU")
        told["int4"] = "emulated" if int4 else "no"
        return told

    def _has_matrix_units(self, index: int) -> bool:
        """DPAS instructions; ``torch.xpu.is_tf32_supported`` asks the same of the current device."""
        props = self.runtime.get_device_properties(index)
        return bool(getattr(props, "has_subgroup_matrix_multiply_accumulate", False))

    def product(self, form: str, a: Any, b: Any, index: int = 0) -> Callable[[], Any]:
        """Weights of 4 bits have a kernel of their own here."""
        return products.int4_of_xpu(self.torch, a, b) if form == "int4" else super().product(form, a, b, index)

    def traits(self, index: int = 0) -> Mapping[str, str]:
        """Matrix units, and shared memory."""
        told = {"matrix units (XMX)": "yes" if self._has_matrix_units(index) else "no"}
        return {**told, "memory": "shared with the host"} if self._integrated(index) else told

    def expandable_segments(self) -> AllocatorOption:
        """Since pytorch/pytorch#166292 of November 2025, so in every release from 2.11 on."""
        if tuple(int(part) for part in self.torch.__version__.split(".")[:2]) < (2, 11):
            return AllocatorOption(reason=f"torch {self.torch.__version__} has no growing segments on XPU; 2.11 has")
        late = self.runtime.is_initialized()
        return AllocatorOption(("PYTORCH_ALLOC_CONF",), "expandable_segments:True", late=late)

    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """The one of oneDNN first, for inference (aten/src/ATen/native/mkldnn/xpu/Attention.cpp).

        Flash is for Data Center GPU Max and Battlemage (transformers/xpu/sdp_utils.cpp). Neither the chip nor whether
        it was compiled in can be read, so it is never promised; torch may take it for training.
        """
        torch = self.torch
        takes = (torch.float32, torch.float16, torch.bfloat16)
        return {
            "onednn": case.against(takes, head_dim=576, dropout=False, training=False),
            "flash": case.against(takes[1:], head_dim=192, mask=False, dropout=False)
            or "only some chips and builds have it, and which cannot be told",
            "math": "",
        }

    def streams(self) -> Any:
        """torch.xpu, with what it lacks of torch.cuda."""
        return _Streams(self.runtime)

    def compile_problem(self, index: int = 0) -> str:
        """Triton for Intel comes with torch's own XPU wheels."""
        return self.triton_problem()


class _Streams:
    """Events here do not choose how the host waits (torch/xpu/streams.py), and no function tells the default stream."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def Event(self, enable_timing: bool = False, blocking: bool = False) -> Any:  # noqa: N802  # torch's name
        """torch.xpu's."""
        return self._runtime.Event(enable_timing=enable_timing)

    def default_stream(self, device: int | None = None) -> Any:
        """The one with which a new thread starts: the first of normal priority (c10/xpu/XPUStream.cpp)."""
        at = self._runtime.current_device() if device is None else device  # a new thread's current device is the first
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(self._runtime.current_stream(at)))
        asking.start()
        asking.join()
        return found[0]
