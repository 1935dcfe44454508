"""Whose memory it is: a pipeline's, a module's or the process's; anything else is an error."""

from __future__ import annotations

from typing import Any

from devicekit.efficient import modules, pipelines, placing, process
from devicekit.efficient.mode import EfficientMode, Here, Steps
from devicekit.errors import DeviceKitError

__all__ = ["switch_on"]


def switch_on(here: Here, target: Any) -> EfficientMode:
    """Switch on what saves memory for this target on this device.

    Raises:
        DeviceKitError: it is no pipeline and no module.
    """
    steps = Steps()
    if target is None:
        with steps.telling("allocator"):
            process.set_allocator(steps, here)
    elif not here.backend.needs_torch:
        steps.leave(
            f"the {here.backend.name} backend runs no pipelines and no modules of torch, so there is nothing to do"
        )
    elif _is_pipeline(target):
        models = pipelines.components(target, here.backend.torch.nn.Module)
        with steps.telling("attention slicing"):
            modules.slice_attention(steps, here, models)
        with steps.telling("VAE slicing and tiling"):
            pipelines.switch_vae(steps, target, models)
        with steps.telling("CPU offload"):
            placing.place(steps, here, target, models)
    elif isinstance(target, here.backend.torch.nn.Module):
        with steps.telling("gradient checkpointing"):
            modules.checkpoint_gradients(steps, target)
        with steps.telling("attention slicing"):
            modules.slice_attention(steps, here, {type(target).__name__: target})
    else:
        what = f"a {type(target).__name__} has no memory-efficient mode."
        why = "it is no pipeline of diffusers (components by name) and no torch.nn.Module"
        raise DeviceKitError(what, why=why, try_="the pipeline, one of its models, or nothing: the process")
    return steps.mode()


def _is_pipeline(target: Any) -> bool:
    try:
        return pipelines.is_pipeline(target)
    except Exception as exc:  # diffusers checks its components when it is asked for them
        what = f"the components of a {type(target).__name__} cannot be had."
        raise DeviceKitError(what, why=f"{type(exc).__name__}: {exc}") from exc
