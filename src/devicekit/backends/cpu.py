"""The processor, through torch: it is always there, so the truth it needs is about memory, dtypes and threads."""

from __future__ import annotations

from typing import Any

from devicekit.backend import seeded
from devicekit.backends._cpulike import CpuLike
from devicekit.values import Availability, DeviceInfo


class CpuBackend(CpuLike):
    """The host's processor."""

    name = "cpu"

    def probe(self) -> Availability:
        """Usable wherever torch can be imported."""
        arch = str(self.torch.backends.cpu.get_cpu_capability())
        native = self.torch.bfloat16 in self.autocast_dtypes()
        return Availability.yes([DeviceInfo(0, "CPU", architecture=arch, integrated=True, bfloat16=native)])

    def autocast_dtypes(self, index: int = 0) -> tuple[Any, ...]:
        """Those that the processor computes itself.

        bfloat16 first, for it overflows less. Without native support a 1024^3 matmul in float16 took 190 times as long
        as in float32, and in bfloat16 200 times on AVX2 (measured on torch 2.13.0), so the default must be float32.
        """
        asked = getattr(self.torch.cpu, "get_capabilities", None)  # torch 2.11 and later
        flags = asked() if asked is not None else self._older_flags()
        known = {
            self.torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
            self.torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
        }
        return tuple(dtype for dtype, ways in known.items() if any(flags.get(way) for way in ways))

    def _older_flags(self) -> dict[str, bool]:
        """Before 2.11 there were only private helpers, on x86."""
        asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_fp16": "_is_amx_fp16_supported"}
        helpers = {flag: getattr(self.torch.cpu, name, None) for flag, name in asked.items()}
        return {flag: bool(helper()) for flag, helper in helpers.items() if helper is not None}

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 or float16 only where native; float32 else."""
        return next(iter(self.autocast_dtypes()), self.torch.float32)

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A Mersenne Twister on the CPU."""
        return seeded(self.torch.Generator(device="cpu"), seed)
