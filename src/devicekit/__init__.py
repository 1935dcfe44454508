"""One device layer for every GPU vendor: ask what is here, decide once, act through one facade.

    import devicekit as dk

    dm = dk.DeviceManager()            # the best device that is usable here, or the one that was pinned
    model = dm.to(model, dm.dtype)
    noise = dm.randn((4, 64, 64), seed=0)
    dm.load_safetensors("model.safetensors", into=model)
    dm.memory_stats().available        # bytes, or None

Importing this package costs nothing: every name is loaded on first use (PEP 562), torch when a torch backend is asked.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing, which takes 8 ms; type checkers know the name

if TYPE_CHECKING:
    from typing import Any

    from devicekit.errors import (
        BatchSizeError,
        DeviceFallbackWarning,
        DeviceKitError,
        DeviceUnavailableError,
        UnknownDeviceError,
        WeightsError,
    )
    from devicekit.manager import DeviceManager
    from devicekit.memory import is_out_of_memory
    from devicekit.redirect.entry import redirect_cuda
    from devicekit.reporting import info
    from devicekit.resolve import available_backends, explain, resolve_device
    from devicekit.values import (
        Availability,
        DeviceInfo,
        Explanation,
        LoadResult,
        MemoryStats,
        RngState,
        Verdict,
        Weights,
    )
    from devicekit.weights.saving import save_safetensors

__version__ = "0.1.0"

_HOME = {
    "Availability": "values",
    "BatchSizeError": "errors",
    "DeviceFallbackWarning": "errors",
    "DeviceInfo": "values",
    "DeviceKitError": "errors",
    "DeviceManager": "manager",
    "DeviceUnavailableError": "errors",
    "Explanation": "values",
    "LoadResult": "values",
    "MemoryStats": "values",
    "RngState": "values",
    "UnknownDeviceError": "errors",
    "Verdict": "values",
    "Weights": "values",
    "WeightsError": "errors",
    "available_backends": "resolve",
    "explain": "resolve",
    "info": "reporting",
    "redirect_cuda": "redirect.entry",
    "is_out_of_memory": "memory",
    "resolve_device": "resolve",
    "save_safetensors": "weights.saving",
}

__all__ = [
    "Availability",
    "BatchSizeError",
    "DeviceFallbackWarning",
    "DeviceInfo",
    "DeviceKitError",
    "DeviceManager",
    "DeviceUnavailableError",
    "Explanation",
    "LoadResult",
    "MemoryStats",
    "RngState",
    "UnknownDeviceError",
    "Verdict",
    "Weights",
    "WeightsError",
    "available_backends",
    "explain",
    "info",
    "is_out_of_memory",
    "redirect_cuda",
    "resolve_device",
    "save_safetensors",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
