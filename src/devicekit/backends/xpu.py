"""Intel GPUs, through torch.xpu of a stock PyTorch (intel_extension_for_pytorch is discontinued and never imported)."""

from __future__ import annotations

from typing import Any

from devicekit.backends._cudalike import FORK_FIX, FORKED, CudaLike
from devicekit.values import Availability, DeviceInfo

INTEL = "0x8086"


class XpuBackend(CudaLike):
    """The GPUs that Level Zero shows; integrated ones only where there is no discrete one (torch drops them)."""

    name = "xpu"
    driver_source = "Level Zero (the whole GPU)"

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
