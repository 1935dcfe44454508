"""One edit of a picture, through the example's editor, and with torch and diffusers alone.

Both have a pipeline of their own from the same folder and take the same steps in float32. By hand the device, the
dtype, the generator, the clock and the memory's peak are written out for a processor.
"""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from typing import Any

import numpy as np
import torch

import devicekit as dk
from _systems import Pair

STEPS, SEED, PROMPT = 4, 1, "make it evening"


def pair() -> Pair:
    """The pair; docs/examples is on the path."""
    from diffusers.utils import logging
    from PIL import Image

    from image_editing.editor import Edited, Editor
    from image_editing.pipeline import ImageEditPipeline
    from image_editing.tiny import make_pipeline, sample_picture
    from image_editing.wish import Wish

    logging.disable_progress_bar()
    picture, one_at_a_time = sample_picture(), threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        make_pipeline().save_pretrained(folder)
        editor = Editor.open(folder, dk.DeviceManager("cpu", dtype=torch.float32))
        pipe = ImageEditPipeline.from_pretrained(folder, dtype=torch.float32).to("cpu")
    pipe.text_encoder_4.set_attn_implementation("eager")
    pipe.set_progress_bar_config(disable=True)

    def facade() -> Any:
        return editor.edit(picture, Wish(PROMPT, SEED, STEPS))

    def by_hand() -> Any:
        wish = Wish(PROMPT, SEED, STEPS)
        if len(pipe.tokenizer_4(wish.prompt).input_ids) > pipe.tokenizer_4.model_max_length:
            raise ValueError("The prompt is too long.")
        with one_at_a_time:
            generator = torch.Generator("cpu").manual_seed(wish.seed)
            noise = torch.randn(pipe.latent_shape(picture.size), generator=generator, device="cpu")
            start = time.perf_counter()
            made = pipe(
                wish.prompt,
                picture,
                noise,
                strength=wish.strength,
                num_inference_steps=wish.steps,
                guidance_scale=wish.guidance,
                callback_on_step_end=lambda _pipe, _step, _time, tensors: tensors,
            ).images[0]
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return Edited(made.resize(picture.size, Image.Resampling.LANCZOS), seconds, peak)

    def same(one: Any, other: Any) -> bool:
        """Every level of every pixel."""
        return np.array_equal(np.asarray(one.picture), np.asarray(other.picture))

    what = f"an edit of {picture.width} x {picture.height} pixels in {STEPS} steps"
    return Pair(what, facade, by_hand, same)
