"""Pipelines of diffusers, of any version and never imported: known by their ``components`` and by what they can do.

The helpers of diffusers mean CUDA, or the first accelerator that they find, unless they are told (huggingface/diffusers
#4197, #6937, #11288); here they are always told this device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from devicekit.efficient.mode import Steps
from devicekit.efficient.modules import restorer

__all__ = ["components", "is_pipeline", "switch_vae"]

METHODS = (
    "enable_attention_slicing",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_vae_slicing",
    "enable_vae_tiling",
)
VAE = {
    "slicing": "a batch is decoded one image at a time",
    "tiling": "an image larger than a tile is decoded in tiles, and may differ a little where they meet",
}


def is_pipeline(target: Any) -> bool:
    """It has components by name, and at least one of the switches of a pipeline."""
    parts = isinstance(getattr(target, "components", None), dict) and not isinstance(target, type)
    return parts and any(callable(getattr(target, name, None)) for name in METHODS)


def components(pipe: Any, module: type) -> dict[str, Any]:
    """Those that hold weights, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, module)}


def switch_vae(steps: Steps, pipe: Any, models: Mapping[str, Any]) -> None:
    """Decode in slices and in tiles, by the component's own switch or, where only it has one, by the pipeline's."""
    for feature, words in VAE.items():
        able = {name: part for name, part in models.items() if callable(getattr(part, f"enable_{feature}", None))}
        for name, part in able.items():
            flag, label = f"use_{feature}", f"VAE {feature} ({name})"
            if getattr(part, flag, False):
                steps.leave(f"{label}: already on")
            else:
                back = restorer(part, (flag,), getattr(part, f"disable_{feature}", None))
                steps.switch(label, words, getattr(part, f"enable_{feature}"), back)
        if not able:
            _switch_by_pipeline(steps, pipe, feature, words)


def _switch_by_pipeline(steps: Steps, pipe: Any, feature: str, words: str) -> None:
    enable: Callable[[], object] | None = getattr(pipe, f"enable_vae_{feature}", None)
    if not callable(enable):
        steps.leave(f"VAE {feature}: nothing here offers it")
    elif getattr(getattr(pipe, "vae", None), f"use_{feature}", False):
        steps.leave(f"VAE {feature}: already on")
    else:
        steps.switch(f"VAE {feature}", words, enable, getattr(pipe, f"disable_vae_{feature}"))
