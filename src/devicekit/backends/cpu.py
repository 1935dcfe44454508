"""The processor, through torch: it is always there, so the truth it needs is about memory, dtypes and threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from devicekit import products
from devicekit.backend import seeded
from devicekit.backends._cpulike import CpuLike
from devicekit.backends._kernels import registered
from devicekit.values import AttentionCase, Availability, DeviceInfo

FLOAT8 = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
"""The conversion on the way knows all of them (measured on torch 2.13.0)."""


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
        flags = self._flags()
        known = {
            self.torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
            self.torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
        }
        return tuple(dtype for dtype, ways in known.items() if any(flags.get(way) for way in ways))

    def _flags(self) -> Mapping[str, Any]:
        asked = getattr(self.torch.cpu, "get_capabilities", None)  # torch 2.11 and later
        return asked() if asked is not None else self._older_flags()

    def _older_flags(self) -> dict[str, bool]:
        """Before 2.11 there were only private helpers, on x86."""
        asked = {
            "avx512_bf16": "_is_avx512_bf16_supported",
            "amx_fp16": "_is_amx_fp16_supported",
            "avx512_vnni": "_is_vnni_supported",
        }
        helpers = {flag: getattr(self.torch.cpu, name, None) for flag, name in asked.items()}
        return {flag: bool(helper()) for flag, helper in helpers.items() if helper is not None}

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 or float16 only where native; float32 else."""
        return next(iter(self.autocast_dtypes()), self.torch.float32)

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """Every format runs; natively what the processor has instructions for.

        float8 and int4 are converted on the way. oneDNN uses the instructions for 8-bit dot products (VNNI, AMX).
        """
        native, flags = self.autocast_dtypes(index), self._flags()
        vnni = any(flags.get(flag) for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
        told = {"float64": "native", "float32": "native", "tf32": "no"}
        told["bfloat16"] = "native" if self.torch.bfloat16 in native else "emulated"
        told["float16"] = "native" if self.torch.float16 in native else "emulated"
        scaled = "emulated" if registered(self.torch, "_scaled_mm", "CPU") else "no"
        told.update(dict.fromkeys(("float8", *FLOAT8), scaled))
        kernel = registered(self.torch, "_int_mm", "CPU")
        told["int8"] = ("native" if vnni else "emulated") if kernel else "no"
        told["int4"] = "emulated" if registered(self.torch, "_weight_int4pack_mm_for_cpu", "CPU") else "no"
        return told

    def product(self, form: str, a: Any, b: Any, index: int = 0) -> Callable[[], Any]:
        """Weights of 4 bits are packed in another way here."""
        return products.int4_of_cpu(self.torch, a, b) if form == "int4" else super().product(form, a, b, index)

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A Mersenne Twister on the CPU."""
        return seeded(self.torch.Generator(device="cpu"), seed)

    def allocator_settings(self) -> tuple[dict[str, str], ...]:
        """Huge pages (torch's own switch, pytorch/pytorch#107697), and a glibc that keeps what is freed.

        glibc maps what is large anew each time, and the kernel clears every page of it (glibc manual, "Malloc Tunable
        Parameters").
        """
        if self.host.platform != "linux":
            return ()
        keep = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
        return ({"THP_MEM_ALLOC_ENABLE": "1"}, keep)

    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """aten/src/ATen/native/transformers/sdp_utils_cpp.cpp."""
        torch = self.torch
        takes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        return {"flash": case.against(takes, dropout=False), "math": ""}

    def compile_problem(self, index: int = 0) -> str:
        """Inductor writes C++ here (torch/_inductor/config.py, ``cpp.cxx``)."""
        usual = {"win32": "cl", "darwin": "clang++"}.get(self.host.platform, "g++")
        compiler = self.host.env.get("CXX", usual)
        return "" if self.host.program(compiler) else f"there is no C++ compiler: {compiler} is not found"
