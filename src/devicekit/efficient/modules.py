"""Modules: attention in slices where no kernel fuses it, and gradient checkpointing, which needs training to be of use.

Transformers and diffusers are known by the methods that their models have, and never imported here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from devicekit.efficient.mode import Here, Steps
from devicekit.values import AttentionCase

__all__ = ["checkpoint_gradients", "restorer", "slice_attention", "weights_of"]

PLAIN = ("AttnProcessor", "AttnProcessor2_0", "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0")
"""What diffusers gives an attention layer by itself; any other processor does something that slicing would lose."""

CHECKPOINTING = (
    (
        "activation_checkpointing_enable",
        "activation_checkpointing_disable",
    ),  # transformers 5, where the next one is deprecated
    ("gradient_checkpointing_enable", "gradient_checkpointing_disable"),  # transformers before
    ("enable_gradient_checkpointing", "disable_gradient_checkpointing"),  # diffusers
)
FLAGS = ("gradient_checkpointing", "_gradient_checkpointing_func")
"""The attributes of a model's layers that both libraries set."""


def weights_of(modules: Iterable[Any]) -> list[Any]:
    """All parameters and buffers, each once."""
    found = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return list(found.values())


# -- attention -------------------------------------------------------------------------------------------
def slice_attention(steps: Steps, here: Here, models: Mapping[str, Any]) -> None:
    """Where the device has no fused kernel, compute attention in two steps, which halves the largest matrix.

    Args:
        steps: to add to.
        here: the device.
        models: those that compute attention, by name.
    """
    able = {name: model for name, model in models.items() if callable(getattr(model, "set_attention_slice", None))}
    if not able:
        steps.leave("attention slicing: nothing here offers it")
        return
    for name, model in able.items():
        label = f"attention slicing ({name})"
        kernel = _fused_kernel(here, weights_of([model]))
        processors = _processors(model)
        kinds = {type(processor).__name__ for _, processor in processors}
        if kinds and all(kind.startswith("Sliced") for kind in kinds):
            steps.leave(f"{label}: already on")
        elif kernel:
            steps.leave(
                f"{label}: torch has a fused kernel ({kernel}) on {here.device}, so slicing would only cost time"
            )
        elif kinds - set(PLAIN):
            # An IP adapter's layers, for one, fail without their own (huggingface/diffusers#7263).
            own = ", ".join(sorted(kinds - set(PLAIN)))
            steps.leave(f"{label}: its layers have processors of their own ({own}), which slicing would replace")
        else:
            words = f"torch has no fused kernel on {here.device}; half of the heads at a time"
            slice_it = functools.partial(model.set_attention_slice, "auto")
            steps.switch(label, words, slice_it, _processors_restorer(model, processors))


def _fused_kernel(here: Here, weights: list[Any]) -> str:
    """The kernel that torch takes for these weights without keeping the attention matrix; empty: none."""
    dtype = next((t.dtype for t in weights if t.is_floating_point()), here.backend.torch.float32)
    for name, against in here.backend.attention_kernels(AttentionCase(dtype), here.index).items():
        if name == "math":
            return ""
        if not against:
            return name
    return ""


def _processors(model: Any) -> list[tuple[Any, Any]]:
    layers = [part for part in model.modules() if part is not model and hasattr(part, "set_attention_slice")]
    return [(layer, layer.processor) for layer in layers if hasattr(layer, "processor")]


def _processors_restorer(model: Any, processors: list[tuple[Any, Any]]) -> Callable[[], object]:
    """``set_attention_slice(None)`` would give every layer a new processor, so the very ones are put back."""

    def restore() -> None:
        if not processors:
            model.set_attention_slice(None)
        for layer, processor in processors:
            layer.set_processor(processor)

    return restore


# -- gradients -------------------------------------------------------------------------------------------
def checkpoint_gradients(steps: Steps, model: Any) -> None:
    """Keep fewer activations for the backward pass, where the model offers it."""
    label = "gradient checkpointing"
    for enable, disable in CHECKPOINTING:
        if not callable(getattr(model, enable, None)):
            continue
        if any(getattr(part, "gradient_checkpointing", False) for part in model.modules()):
            steps.leave(f"{label}: already on")
            return
        words = "takes effect in training only, where activations are computed again in the backward pass"
        steps.switch(label, words, getattr(model, enable), restorer(model, FLAGS, getattr(model, disable, None)))
        return
    steps.leave(f"{label}: a {type(model).__name__} does not offer it")


def restorer(model: Any, names: tuple[str, ...], disable: Any) -> Callable[[], object]:
    """The model's own way back, which may remove hooks as well, and then these attributes of its parts as they were.

    Some models' own way leaves attributes that were not there before, and by those they then seem to offer the thing.
    """
    before = [(part, {name: vars(part)[name] for name in names if name in vars(part)}) for part in model.modules()]

    def restore() -> None:
        if callable(disable):
            disable()
        for part, values in before:
            for name in names:
                vars(part).pop(name, None)
            vars(part).update(values)

    return restore
