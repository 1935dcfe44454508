"""The matrix product in each number format, through the kernel that torch has for it.

Every function takes ``a`` (m, k) and ``b`` (n, k) on one device and gives a function that computes ``a @ b.T``: what
has to be packed or scaled is done before, so that only the kernel is run, and timed. Which kernel is whose stands in
torch's own ``native_functions.yaml``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["int4", "int4_of_cpu", "int4_of_xpu", "of", "tf32_allowed"]

GROUP = 32
"""Weights of 4 bits that share a scale; all kernels have this size."""
TILES = 2
"""How the kernels want them packed: the fewest tiles, which fits every shape of ours."""


def of(torch: Any, form: str, a: Any, b: Any) -> Callable[[], Any]:
    """The product in this format; the operands are in its dtype, and for tf32 in float32."""
    if form == "float8":
        one = torch.ones((), dtype=torch.float32, device=a.device)
        return functools.partial(torch._scaled_mm, a, b.t(), one, one, out_dtype=torch.bfloat16)
    if form == "int8":
        # cuBLAS fails for some transposed operands (a note in aten/src/ATen/native/cuda/Blas.cpp, _int_mm_out_cuda).
        return functools.partial(torch._int_mm, a, b.t().contiguous())
    if form == "int4":
        return int4(torch, a, b)
    if form == "tf32":
        return functools.partial(_in_tf32, torch, a, b.t())
    return functools.partial(torch.matmul, a, b.t())


@contextmanager
def tf32_allowed(torch: Any) -> Iterator[None]:
    """Inside, float32 products may be computed in TF32; the switch is CUDA's, ROCm's and oneDNN's at once."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _in_tf32(torch: Any, a: Any, b: Any) -> Any:
    with tf32_allowed(torch):
        return torch.matmul(a, b)


# -- weights of 4 bits: ``a`` in bfloat16, ``b`` whole numbers from 0 to 15 that stand for -8 to 7 -----------------
def int4(torch: Any, a: Any, b: Any) -> Callable[[], Any]:
    """CUDA's, ROCm's and Apple's kernel."""
    packed = torch._convert_weight_to_int4pack((b[:, ::2] << 4 | b[:, 1::2]).to(torch.uint8), TILES)
    return functools.partial(torch._weight_int4pack_mm, a, packed, GROUP, _scales_and_zeros(torch, a, b))


def int4_of_cpu(torch: Any, a: Any, b: Any) -> Callable[[], Any]:
    """The processor's, which packs in another way."""
    packed = torch._convert_weight_to_int4pack_for_cpu(b, TILES)
    return functools.partial(torch._weight_int4pack_mm_for_cpu, a, packed, GROUP, _scales_and_zeros(torch, a, b))


def int4_of_xpu(torch: Any, a: Any, b: Any) -> Callable[[], Any]:
    """Intel's, whose zero is a whole number and which takes the halves of a byte the other way round."""
    packed = torch._convert_weight_to_int4pack((b[:, 1::2] << 4 | b[:, ::2]).to(torch.uint8), TILES)
    scales = torch.ones(b.shape[1] // GROUP, b.shape[0], dtype=a.dtype, device=a.device)
    zeros = torch.full_like(scales, 8, dtype=torch.int8)
    return functools.partial(torch._weight_int4pack_mm_with_scales_and_zeros, a, packed, GROUP, scales, zeros)


def _scales_and_zeros(torch: Any, a: Any, b: Any) -> Any:
    """Scale 1 and zero 0 for every group: 8 is taken off by the kernel."""
    made = torch.zeros(b.shape[1] // GROUP, b.shape[0], 2, dtype=a.dtype, device=a.device)
    made[:, :, 0] = 1
    return made
