"""The image editing of docs/examples gives on the simulated npu the pictures of the CPU, and outlives its memory."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))

import numpy as np
import pytest
import torch

import devicekit as dk
from devicekit.testing.simulated_npu import install
from image_editing.editor import Edited, Editor
from image_editing.make import main as make
from image_editing.state import state
from image_editing.tiny import make_lora, sample_picture
from image_editing.wish import Wish

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    MODEL, LORA = Path(folder) / "model", Path(folder) / "lora.safetensors"
    assert make(["--out", str(MODEL), "--lora", str(LORA)]) == 0
    # Not before diffusers is imported, which would want more of torch_npu than is simulated.
    install("32MiB", float64=False)
    CPU = dk.DeviceManager("cpu", dtype=torch.float32)
    NPU = dk.DeviceManager("npu", dtype=torch.float32, strict=True)
    HERE, THERE = Editor.open(MODEL, CPU), Editor.open(MODEL, NPU)
    WITH_LORA = {dm.backend: Editor.open(MODEL, dm, lora=LORA) for dm in (CPU, NPU)}
    SAVING = Editor.open(MODEL, NPU, save_memory=True)

PICTURE, WIDE = sample_picture(), sample_picture(160, 90)
WISH = Wish("make it evening", seed=1, steps=3)


def levels(one: Edited, other: Edited) -> int:
    """By how many of 255 grey levels two pictures differ at most."""
    pixels = [np.asarray(edited.picture).astype(int) for edited in (one, other)]
    assert pixels[0].std() > 5, "an even picture would show nothing"
    return int(abs(pixels[0] - pixels[1]).max())


def check_the_weights_are_there() -> None:
    """Every weight of the pipeline is on npu:0, and computing with it takes memory there."""
    models = [part for part in THERE.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(models) == 6
    assert {str(weight.device) for model in models for weight in model.parameters()} == {"npu:0"}
    assert THERE.edit(PICTURE, WISH).peak_memory > NPU.memory_stats().allocated


def check_the_pictures_are_the_same() -> None:
    """The same seed gives the same on both, to one of 255 grey levels: wide pictures too, and with a LoRA."""
    assert levels(HERE.edit(PICTURE, WISH), THERE.edit(PICTURE, WISH)) <= 1
    assert levels(HERE.edit(WIDE, WISH), THERE.edit(WIDE, WISH)) <= 1
    changed = [WITH_LORA[backend].edit(PICTURE, WISH) for backend in ("cpu", "npu")]
    assert levels(*changed) <= 1
    assert levels(changed[0], HERE.edit(PICTURE, WISH)) > 1


def check_saving_memory_changes_no_picture() -> None:
    """The facade places the weights itself, and a picture smaller than a tile stays the same."""
    assert "npu:0" in SAVING.memory_words
    assert levels(SAVING.edit(PICTURE, WISH), HERE.edit(PICTURE, WISH)) <= 1


def check_the_device_draws_its_own_noise() -> None:
    """On request, from an npu generator; a seed repeats itself. (A real device's numbers would not be the CPU's.)"""
    own = [Wish("make it evening", seed=seed, steps=3, device_noise=True) for seed in (1, 1, 2)]
    first, again, other = (THERE.edit(PICTURE, wish) for wish in own)
    assert levels(first, again) == 0
    assert levels(first, other) > 1


def the_rest(but: int = 0) -> torch.Tensor:
    """All memory that the device has left, but so many bytes, for as long as this lives."""
    NPU.empty_cache()
    return torch.empty(NPU.memory_stats().available - but, dtype=torch.uint8, device=NPU.device)


def check_memory_that_runs_out() -> None:
    """An edit that does not fit is told in words, leaves nothing on the device, and the next one works."""
    expected = HERE.edit(PICTURE, WISH)
    neighbour = the_rest(but=4 << 20)  # with which an edit begins, and does not end
    before = NPU.memory_stats()
    with pytest.raises(dk.DeviceKitError, match="too little memory on npu:0 to edit this picture") as told:
        THERE.edit(PICTURE, WISH)
    assert "NPU out of memory" in told.value.why
    after = NPU.memory_stats()
    assert (after.allocated, after.reserved) == (before.allocated, before.reserved)
    del neighbour
    assert levels(THERE.edit(PICTURE, WISH), expected) <= 1


def check_a_model_that_is_offloaded() -> None:
    """Where the weights do not all fit, each model comes when it is used, a LoRA in it, and the picture is the same."""
    expected = WITH_LORA["cpu"].edit(PICTURE, WISH)
    neighbour = the_rest(but=10 << 20)
    with tempfile.TemporaryDirectory() as folder:
        HERE.pipe.save_pretrained(folder)
        lora = dk.save_safetensors(make_lora(HERE.pipe, 2, 0), Path(folder) / "lora.safetensors")
        offloaded = Editor.open(folder, NPU, lora=lora, save_memory=True)
    assert "model CPU offload to npu:0" in offloaded.memory_words
    before = NPU.memory_stats().allocated
    assert levels(offloaded.edit(PICTURE, WISH), expected) <= 1
    left = NPU.memory_stats().allocated - before
    assert left < 1 << 16, f"the weights have left the device again, but for {left} bytes"
    del neighbour


def check_a_model_that_does_not_fit() -> None:
    """Loading it is told in the same words."""
    neighbour = the_rest()
    with tempfile.TemporaryDirectory() as folder:
        HERE.pipe.save_pretrained(folder)
        with pytest.raises(dk.DeviceKitError, match="too little memory on npu:0 to bring the model to it"):
            Editor.open(folder, NPU)
    del neighbour


def check_the_state_tells_the_device() -> None:
    """Device, format and figures are the npu's."""
    told = state(NPU)
    assert told["device"].startswith("npu:0")
    assert (told["numbers"], told["memory in all"]) == ("float32", "32.0 MiB")


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
