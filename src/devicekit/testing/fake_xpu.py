"""torch.xpu of a machine that is data."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

from devicekit.testing.fake_runtime import FakeRuntime
from devicekit.testing.fake_streams import Event
from devicekit.testing.machines import Card

__all__ = ["FakeXpu"]


class FakeXpu(FakeRuntime):
    """One SYCL runtime."""

    _name = "xpu"
    _label = "XPU"

    def _is_compiled(self) -> bool:
        return self._torch._build.xpu is not None

    def _visible(self) -> tuple[Card, ...]:
        """Without the integrated ones where there is a discrete one. An empty mask is none, and 0.1 a tile of card 0
        (intel/compute-runtime, ExecutionEnvironment::parseAffinityMask).
        """
        cards = self._machine.cards_of("intel")
        mask = self._torch._env.get("ZE_AFFINITY_MASK")
        if mask:
            entries = (entry.strip().partition(".")[0] for entry in mask.split(","))
            wanted = {int(entry) for entry in entries if entry.isdecimal()}
            cards = tuple(card for i, card in enumerate(cards) if i in wanted)
        return tuple(c for c in cards if not c.integrated) or cards

    def _properties(self, card: Card) -> Any:
        return SimpleNamespace(
            name=card.name,
            vendor="Intel(R) Corporation",
            total_memory=card.total,
            is_integrated_gpu=card.integrated,
            has_fp16="float16" not in card.lacks,
            has_fp64="float64" not in card.lacks,
            has_bfloat16_conversions="bfloat16" not in card.lacks,
            has_subgroup_matrix_multiply_accumulate="tf32" not in card.lacks,
            architecture=zlib.crc32(card.architecture.encode()),  # a number that means nothing, as to any reader of it
            type="gpu",
        )

    def Event(self, enable_timing: bool = False) -> Event:  # type: ignore[override]  # noqa: N802  # torch's
        """A mark in the stream, without a choice of how the host waits for it."""
        return super().Event(enable_timing)

    def get_device_capability(self, device: Any = None) -> dict[str, Any]:
        """A dict of the properties, not a tuple."""
        return dict(vars(self.get_device_properties(device)))

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        """True for any GPU, unless one asks without emulation."""
        if not self.is_available():
            return False
        return including_emulation or bool(self.get_device_properties().has_bfloat16_conversions)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """As on CUDA, but integrated GPUs cannot tell (pytorch/pytorch#159728)."""
        props = self.get_device_properties(device)
        if props.is_integrated_gpu:
            raise RuntimeError(
                f"The device ({props.name}) doesn't support querying the available free memory. You can file an issue "
                "at https://github.com/pytorch/pytorch/issues to help us prioritize its implementation."
            )
        return super().mem_get_info(device)
