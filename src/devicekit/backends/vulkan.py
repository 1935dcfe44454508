"""Vulkan, experimental: only a torch built from source with USE_VULKAN=1 has it, for inference in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devicekit.backend import Backend, seeded
from devicekit.values import Availability, DeviceInfo, MemoryStats


class VulkanBackend(Backend):
    """The device of torch's unmaintained Vulkan backend; taken only when asked for by name."""

    name = "vulkan"
    indexed = False

    def probe(self) -> Availability:
        """Compiled in, and a driver found."""
        if self.torch.is_vulkan_available():
            return Availability.yes([DeviceInfo(0, "Vulkan (experimental)")])
        return Availability.absent(
            f"torch {self.torch.__version__} is built without Vulkan; no published build has it",
            'build torch with USE_VULKAN=1, or use ExecuTorch, or device="auto"',
        )

    def preferred_dtype(self, index: int = 0) -> Any:
        """float32, all that it has."""
        return self.torch.float32

    def storable(self, dtype: Any) -> Any:
        """Every floating type is kept as float32."""
        return self.torch.float32 if dtype.is_floating_point else dtype

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """float32, and nothing else."""
        others = ("float64", "tf32", "bfloat16", "float16", "float8", "int8", "int4")
        return {"float32": "native", **dict.fromkeys(others, "no")}

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A CPU generator: this device has no random numbers, so they are drawn on the CPU."""
        return seeded(self.torch.Generator(device="cpu"), seed)

    def memory_stats(self, index: int = 0) -> MemoryStats:
        """Nothing is known: the backend counts nothing."""
        return MemoryStats(source="torch's Vulkan backend counts no memory")

    def empty_cache(self, index: int = 0) -> None:
        """There is no cache to empty."""
