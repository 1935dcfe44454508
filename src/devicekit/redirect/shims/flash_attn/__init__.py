"""flash-attn's functions in plain torch, on any device: what ``devicekit run --shim flash-attn`` imports.

The signatures and layouts are those of flash-attn 2.8.3 (https://github.com/Dao-AILab/flash-attention), and so is the
version that it claims: libraries ask for it, and go other ways below 2.1 (where the causal mask was aligned otherwise)
and 2.3.3. float32 and float64 are taken as well, which the package refuses. Memory grows with the product of the two
lengths, which the package avoids. What is not here raises ImportError.
"""

from .flash_attn_interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__version__ = "2.8.3"

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
