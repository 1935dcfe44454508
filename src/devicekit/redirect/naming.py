"""Which argument names a CUDA device, and which one."""

from __future__ import annotations

import numbers
from typing import Any

__all__ = ["BEHIND_DEVICE", "CURRENT", "TYPES", "cuda_index", "cuda_type_name", "given", "is_device"]

CURRENT = -1
"""The current device, which is what ``"cuda"`` without a number means; as torch.cuda counts."""


def cuda_index(device: Any) -> int | None:
    """The number of the CUDA device that an argument names, or CURRENT; None: it names none.

    What is spelled wrong (``"cuda:x"``) names none, so that torch complains about it in its own words.
    """
    kind = type(device)
    if kind is str:
        if device[:4] != "cuda":
            return None
        if len(device) == len("cuda"):
            return CURRENT
        number = device[5:]
        return int(number) if device[4] == ":" and number.isdecimal() else None
    if device is None:
        return None
    if getattr(device, "type", None) == "cuda":
        index = getattr(device, "index", None)
        return CURRENT if index is None else int(index)
    return int(device) if _is_number(device) and device >= 0 else None


TYPES = "torch.cuda."
"""How the names of CUDA's tensor types begin: ``torch.cuda.FloatTensor``."""


def cuda_type_name(kind: Any) -> str | None:
    """What such a type, or its text, is called without that; None for every other type."""
    name = kind if isinstance(kind, str) else getattr(kind, "cuda_name", "")
    return name.removeprefix(TYPES) if name.startswith(TYPES) else None


BEHIND_DEVICE = ("dtype", "non_blocking", "copy")
"""The places behind the device in ``Tensor.to``."""


def given(names: tuple[str, ...], rest: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names, those too that came without one; without those that are None."""
    named = {**dict(zip(names, rest, strict=False)), **kwargs}
    return {name: value for name, value in named.items() if value is not None}


def is_device(torch: Any, value: Any) -> bool:
    """Whether a positional argument of ``Tensor.to`` is a device, and not a dtype or another tensor."""
    return isinstance(value, (str, torch.device)) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
