"""Matrix products on a simulated card: which number formats it takes, and what it says to the others.

The arithmetic is done in float64 and rounded to the format, on the CPU. The words are torch's, as far as known (in
aten/src/ATen/native/cuda ScaledBlas.cpp and int4mm.cu, strings of libtorch in the macOS wheel, 2.13.0), and SYCL's for
a device without fp64. What a card does not do without saying so, it does not do without saying so here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from devicekit.testing.machines import Card
from devicekit.testing.simulated_npu.settings import SOC_VERSIONS

__all__ = ["KERNELS", "product"]

KERNELS = {
    "_int_mm": ("CPU", "CUDA", "XPU"),
    "_scaled_mm": ("CPU", "CUDA", "XPU"),
    "_weight_int4pack_mm": ("CUDA", "MPS"),
    "_weight_int4pack_mm_for_cpu": ("CPU",),
    "_weight_int4pack_mm_with_scales_and_zeros": ("XPU",),
}
"""Operation, to the devices that have it: torchgen/packaged/ATen/native/native_functions.yaml of torch 2.13.0."""

NO_SCALED_MM = "torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9, or ROCm MI300"
NO_INT4 = "_convert_weight_to_int4pack_cuda is only supported on AMD gpu arch greater than or equal to CDNA2"
NO_INT8 = "CUDA error: HIPBLAS_STATUS_NOT_SUPPORTED when calling hipblasLtMatmulAlgoGetHeuristic"
NO_DOUBLE = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
NO_FLOAT8 = "Trying to convert Float8_e4m3fn to the MPS backend but it does not have support for that dtype."
NO_METAL = "The operator 'aten::_int_mm' is not currently implemented for the MPS device."


class Asked(NamedTuple):
    """A product on a card."""

    card: Card
    form: str
    arch: str
    """What the runtime takes the chip for."""
    hip: str | None
    """Of a build for ROCm."""
    fnuz: bool
    """The float8 types of MI300."""


def product(card: Card, form: str, arch: str, hip: str | None, a: Any, b: Any) -> Callable[[], Any]:
    """``a @ b.T`` as this card does it.

    Raises:
        Exception: what the real one would raise.
    """
    asked = Asked(card, form, arch, hip, "fnuz" in str(a.dtype))
    refusal = _REFUSALS[card.vendor](asked)
    if refusal is not None:
        raise refusal
    left, right = a.double(), b.double() - 8 if form == "int4" else b.double()
    if form == "tf32" and _has_tf32(asked):
        left, right = _tf32(a), _tf32(b)
    if form == "int4" and card.vendor == "nvidia" and card.number < 80:
        right = torch.zeros_like(right)  # the kernel is empty there, and nobody says so
    into = {"int8": torch.int32, "float8": torch.bfloat16, "int4": torch.bfloat16}.get(form, a.dtype)
    return lambda: (left @ right.t()).to(into)


def _tf32(x: Any) -> Any:
    """Rounded to 10 bits behind the point, as PTX's cvt.rna.tf32.f32 does."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def _has_tf32(asked: Asked) -> bool:
    card = asked.card
    return {
        "nvidia": card.number >= 80,
        "amd": asked.arch.startswith(("gfx94", "gfx95")),
        "intel": "tf32" not in card.lacks,
    }.get(card.vendor, False)


def _of_nvidia(asked: Asked) -> Exception | None:
    float8 = asked.form == "float8" and (asked.card.number < 89 or asked.fnuz)
    return RuntimeError(NO_SCALED_MM) if float8 else None


def _of_amd(asked: Asked) -> Exception | None:
    form, arch = asked.form, asked.arch
    if form == "float8":
        rocm = tuple(int(part) for part in str(asked.hip).split(".")[:2])
        ocp = (arch.startswith("gfx120") and rocm >= (6, 3)) or (arch == "gfx950" and rocm >= (6, 5))
        return None if (arch == "gfx942" if asked.fnuz else ocp) else RuntimeError(NO_SCALED_MM)
    if form == "int4" and arch not in ("gfx90a", "gfx942", "gfx950"):
        return RuntimeError(NO_INT4)
    hipblaslt = ("gfx908", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx115", "gfx120")
    return RuntimeError(NO_INT8) if form == "int8" and not arch.startswith(hipblaslt) else None


def _of_intel(asked: Asked) -> Exception | None:
    aspect = {"float64": "fp64", "float16": "fp16"}.get(asked.form)
    lacking = aspect is not None and asked.form in asked.card.lacks
    return RuntimeError(f"Required aspect {aspect} is not supported on the device") if lacking else None


def _of_huawei(asked: Asked) -> Exception | None:
    old = SOC_VERSIONS[asked.card.architecture] < SOC_VERSIONS["Ascend910B1"]
    if asked.form == "float64" or (asked.form == "bfloat16" and old):
        return RuntimeError(f"{asked.form} is not supported by the AI core of {asked.card.architecture}")
    if asked.form in ("float8", "int8", "int4"):
        return RuntimeError(f"whether torch_npu multiplies {asked.form} is not simulated")
    return None


def _of_apple(asked: Asked) -> Exception | None:
    known = {"float64": TypeError(NO_DOUBLE), "float8": TypeError(NO_FLOAT8), "int8": NotImplementedError(NO_METAL)}
    return known.get(asked.form)


_REFUSALS = {"nvidia": _of_nvidia, "amd": _of_amd, "intel": _of_intel, "huawei": _of_huawei, "apple": _of_apple}
