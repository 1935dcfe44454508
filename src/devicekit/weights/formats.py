"""The number formats of safetensors: how long each is, and what torch, NumPy and ml_dtypes call it.

Source: safetensors 0.8, safetensors/src/tensor.rs (``enum Dtype`` and ``bitsize``) and its bindings' tables.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FORMATS", "Format"]


class Format(NamedTuple):
    """One number format."""

    name: str
    """As the header spells it: ``BF16``."""
    bits: int
    """Of one element."""
    torch: str = ""
    """The dtype's name in torch; empty: it has none."""
    numpy: str = ""
    """The dtype's name in NumPy."""
    ml_dtypes: str = ""
    """The dtype's name in ml_dtypes, where NumPy itself has none."""
    floating: bool = False
    packed: int = 1
    """Elements of the file in one element of the framework's dtype, along the last dimension."""


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("F64", 64, "float64", "float64", floating=True),
        Format("F32", 32, "float32", "float32", floating=True),
        Format("F16", 16, "float16", "float16", floating=True),
        Format("BF16", 16, "bfloat16", "", "bfloat16", floating=True),
        Format("F8_E4M3", 8, "float8_e4m3fn", "", "float8_e4m3fn", floating=True),
        Format("F8_E5M2", 8, "float8_e5m2", "", "float8_e5m2", floating=True),
        Format("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "", "float8_e4m3fnuz", floating=True),
        Format("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "", "float8_e5m2fnuz", floating=True),
        # Scales and packed values: bytes that other tensors give a meaning, so dtype= leaves them as they are.
        Format("F8_E8M0", 8, "float8_e8m0fnu", "", "float8_e8m0fnu"),
        Format("F4", 4, "float4_e2m1fn_x2", packed=2),
        Format("F6_E2M3", 6),
        Format("F6_E3M2", 6),
        Format("I64", 64, "int64", "int64"),
        Format("I32", 32, "int32", "int32"),
        Format("I16", 16, "int16", "int16"),
        Format("I8", 8, "int8", "int8"),
        Format("U64", 64, "uint64", "uint64"),
        Format("U32", 32, "uint32", "uint32"),
        Format("U16", 16, "uint16", "uint16"),
        Format("U8", 8, "uint8", "uint8"),
        Format("BOOL", 8, "bool", "bool"),
        Format("C64", 64, "complex64", "complex64"),
    )
}
