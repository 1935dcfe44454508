"""What the simulated machine is made of: which chip, how many, how much memory, which faults.

No torch in here, so that a wrong option is refused before anything is imported or registered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SOC_VERSIONS", "Settings", "bytes_from"]

SOC_VERSIONS = {
    "Ascend910PremiumA": 100,
    "Ascend910ProA": 101,
    "Ascend910A": 102,
    "Ascend910ProB": 103,
    "Ascend910B": 104,
    "Ascend310P1": 200,
    "Ascend310P2": 201,
    "Ascend310P3": 202,
    "Ascend310P4": 203,
    "Ascend310P5": 204,
    "Ascend310P7": 205,
    "Ascend910B1": 220,
    "Ascend910B2": 221,
    "Ascend910B2C": 222,
    "Ascend910B3": 223,
    "Ascend910B4": 224,
    "Ascend910B4-1": 225,
    "Ascend310B1": 240,
    "Ascend310B2": 241,
    "Ascend310B3": 242,
    "Ascend310B4": 243,
    "Ascend910_9391": 250,
    "Ascend910_9392": 251,
    "Ascend910_9381": 252,
    "Ascend910_9382": 253,
    "Ascend910_9372": 254,
    "Ascend910_9362": 255,
    "Ascend910_9363": 256,
    "Ascend950": 260,
}
"""Name of the chip to ``torch.npu.get_soc_version()``.

From Ascend/pytorch ``torch_npu/csrc/core/npu/NpuVariables.h`` at 9e73e708. Mind that Ascend910B
(104) is the old 910; the chips that everyone calls 910B are Ascend910B1 (220) and later.
"""

_FIRST_WITH_BF16 = SOC_VERSIONS["Ascend910B1"]  # IsBF16Supported() in NpuVariables.cpp
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``install``, checked."""

    memory: int
    """Bytes of each device."""
    soc: str
    count: int
    """0 or 1."""
    float64: bool
    """False: float64 and complex128 are refused, as the AI core has none."""
    fail_memory_query: bool
    """True: ``mem_get_info`` raises."""

    def __post_init__(self) -> None:
        if self.soc not in SOC_VERSIONS:
            raise ValueError(f"unknown soc {self.soc!r}; known: {', '.join(SOC_VERSIONS)}")
        if self.count not in (0, 1):
            raise ValueError(
                f"count={self.count!r}, but only 0 and 1 can be simulated: torch's device guard "
                "for Python backends knows a single device"
            )
        if self.memory <= 0:
            raise ValueError(f"memory={self.memory} bytes; it must be positive")

    @property
    def soc_version(self) -> int:
        """The number that ``torch.npu.get_soc_version()`` returns for this chip."""
        return SOC_VERSIONS[self.soc]

    @property
    def bfloat16(self) -> bool:
        """Whether this chip computes bfloat16."""
        return self.soc_version >= _FIRST_WITH_BF16


def bytes_from(memory: str | int) -> int:
    """Read ``"2GiB"``, ``"512 MiB"``, ``"4096"`` or a number of bytes.

    Raises ValueError for anything else, ``"2GB"`` included: a decimal unit is never meant here.
    """
    if isinstance(memory, int):
        return memory
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", memory)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"memory={memory!r}; write bytes, or a size such as '512MiB' or '2GiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])
