"""Apple GPUs, through torch.mps: one GPU, memory shared with the Mac, no float64, errors of no class of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devicekit.backend import Backend, seeded
from devicekit.values import AllocatorOption, AttentionCase, Availability, DeviceInfo, MemoryStats

FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


class MpsBackend(Backend):
    """The one GPU of an Apple-silicon Mac."""

    name = "mps"
    indexed = False

    def probe(self) -> Availability:
        """Built with MPS, macOS new enough, and a GPU that is not a virtual machine's."""
        mps = self.torch.backends.mps
        if not mps.is_built():
            return Availability.absent(
                f"torch {self.torch.__version__} is built without MPS", 'on a Mac: pip install torch; or device="auto"'
            )
        if not mps.is_available():
            return Availability.no(
                "Metal shows no GPU: torch needs Apple silicon and macOS 14 or later", "update macOS, or the CPU"
            )
        if self._in_virtual_machine():
            return Availability.no(
                "this Mac is a virtual machine: Metal says yes there, and the first allocation fails or computes "
                "wrong numbers (actions/runner-images#9918, #14380)",
                "the CPU, or a Mac of its own",
            )
        return Availability.yes([DeviceInfo(0, "Apple GPU", integrated=True, bfloat16=self._has_bfloat16())])

    def _in_virtual_machine(self) -> bool:
        return self.host.sysctl("kern.hv_vmm_present") == 1

    def _has_bfloat16(self) -> bool:
        """MacOS 14 brought it; torch 2.13 needs that anyway, older torch runs on macOS 13 as well."""
        return bool(self.torch.backends.mps.is_macos_or_newer(14, 0))

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 on macOS 14 and later, float16 before."""
        return self.torch.bfloat16 if self._has_bfloat16() else self.torch.float16

    def autocast_dtypes(self, index: int = 0) -> tuple[Any, ...]:
        """Both, or float16 alone before macOS 14."""
        torch = self.torch
        return (torch.bfloat16, torch.float16) if self._has_bfloat16() else (torch.float16,)

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """As in torch/include/ATen/mps/MPSGuardImpl.h and native_functions.yaml: of the formats of 8 bits and less only
        weights of 4 bits have a kernel.
        """
        told = dict.fromkeys(("float64", "tf32", "float8", "int8"), "no")
        told.update(float32="native", float16="native", int4="emulated")
        told["bfloat16"] = "native" if self._has_bfloat16() else "no"
        return told

    def traits(self, index: int = 0) -> Mapping[str, str]:
        """Shared memory; operations that run elsewhere."""
        told = {"memory": "shared with the host"}
        if self.host.env.get(FALLBACK, "0") != "0":
            told["warning"] = f"{FALLBACK} is set: operations that Metal lacks run on the CPU"
        return told

    def expandable_segments(self) -> AllocatorOption:
        """Its allocator has limits instead (torch/include/ATen/mps/MPSAllocator.h), below which work may fail."""
        return AllocatorOption(
            reason="Metal's segments do not grow; torch takes up to 1.7 times what Metal recommends, and the Mac may "
            "swap; PYTORCH_MPS_HIGH_WATERMARK_RATIO=1.0 and PYTORCH_MPS_LOW_WATERMARK_RATIO=0.8 before the start "
            "prevent that, and memory may run out instead"
        )

    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """Only ``math``, which Metal's graph compiler fuses where it can."""
        return {"flash": "no flash on MPS", "math": ""}

    def storable(self, dtype: Any) -> Any:
        """Metal has no double precision (torch raises TypeError)."""
        torch = self.torch
        return {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(dtype, dtype)

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A Philox generator on the GPU."""
        return seeded(self.torch.Generator(device="mps"), seed)

    def memory_stats(self, index: int = 0) -> MemoryStats:
        """``total`` is Metal's recommended working set, about 3/4 of the Mac's memory, not free memory."""
        mps = self.torch.mps
        limit = int(mps.recommended_max_memory())
        held = int(mps.driver_allocated_memory())
        host = self.host.memory()
        free = limit - held if host is None else min(limit - held, host[1])
        return MemoryStats(
            total=limit,
            available=max(0, free),
            allocated=int(mps.current_allocated_memory()),
            reserved=held,
            peak=None,  # torch.mps keeps none
            unified=True,
            source="Metal's recommended working set, minus what its driver holds; free memory of the Mac",
        )

    def empty_cache(self, index: int = 0) -> None:
        """Waits for the GPU, then gives the cached buffers back."""
        self.torch.mps.empty_cache()

    def synchronize(self, index: int = 0) -> None:
        """torch.mps.synchronize takes no device."""
        self.torch.mps.synchronize()

    def manual_seed(self, seed: int) -> None:
        """There is one GPU, so torch.mps has no ``manual_seed_all``."""
        self.torch.mps.manual_seed(seed)

    def rng_state(self, index: int = 0) -> Any:
        """The state of the GPU's default generator."""
        return self.torch.mps.get_rng_state()

    def set_rng_state(self, state: Any, index: int = 0) -> None:
        """Bring that state back."""
        self.torch.mps.set_rng_state(state)

    def describe(self, index: int = 0) -> DeviceInfo:
        """The chip's name and its working set."""
        asked = getattr(self.torch.backends.mps, "get_name", None)  # torch 2.9 and later
        return DeviceInfo(
            0,
            str(asked()) if asked is not None else "Apple GPU",
            total_memory=int(self.torch.mps.recommended_max_memory()),
            integrated=True,
            bfloat16=self._has_bfloat16(),
        )
