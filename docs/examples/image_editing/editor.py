"""A pipeline on one device: opened, placed, asked for edits one at a time, and usable again after memory ran out."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

import devicekit as dk
from image_editing.lora import Lora
from image_editing.pipeline import ImageEditPipeline
from image_editing.wish import Wish, read_picture

__all__ = ["Edited", "Editor", "Failed", "Progress"]

Progress = Callable[[int, int], None]
"""Called with the steps that are done and all of them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Edited:
    """A picture that came of an edit."""

    picture: Image.Image
    """Of the size of the one that was given."""
    seconds: float
    peak_memory: int | None
    """Bytes; None where the runtime keeps no peak."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An edit of a batch that came to nothing."""

    words: str


class Editor:
    """A pipeline, and the device that it computes on. Safe to share between threads: edits wait for each other.

    Args:
        dm: the device.
        pipe: on that device, or offloaded to it.
    """

    def __init__(self, dm: dk.DeviceManager, pipe: ImageEditPipeline) -> None:
        if not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
            what = f"This model's scheduler is a {type(pipe.scheduler).__name__}."
            raise dk.DeviceKitError(what, why="an edit begins in the middle", try_="FlowMatchEulerDiscreteScheduler")
        self.dm = dm
        self.pipe = pipe
        self.lora: Lora | None = None
        self.memory_words = "not asked to save memory: everything is on the device"
        self._one_at_a_time = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        dm: dk.DeviceManager,
        *,
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
        save_memory: bool = False,
    ) -> Editor:
        """Load a folder of ``HiDreamImagePipeline`` in ``dm.dtype``, and bring it to the device.

        Args:
            folder: as ``save_pretrained`` writes it.
            dm: the device.
            lora: a safetensors file, added to the transformer's weights.
            lora_scale: how much of it.
            save_memory: let the facade place the weights by their size, and switch on what saves memory.

        Raises:
            DeviceKitError: the folder holds no such pipeline, the LoRA does not fit, or memory ran out.
        """
        editor = cls(dm, _loaded(folder, dm))

        def prepare() -> None:
            if lora is not None:
                editor.lora = Lora(editor.pipe.transformer, dm.load_safetensors(lora))
                editor.lora.apply(lora_scale)  # before the weights are placed: offloaded ones cannot be written to
            editor._place(save_memory)

        editor._with_memory("bring the model to it", prepare)
        return editor

    def _place(self, save_memory: bool) -> None:
        if save_memory:
            self.memory_words = str(self.dm.set_memory_efficient_mode(self.pipe))
        if not save_memory or not self.dm.is_accelerator:
            self.dm.to(self.pipe)  # in the dtypes as loaded: diffusers keeps some layers in float32

    def edit(self, picture: Image.Image, wish: Wish, progress: Progress | None = None) -> Edited:
        """Edit one picture. The same wish gives the same picture on every backend, as far as its arithmetic agrees.

        Raises:
            DeviceKitError: the prompt is too long, or memory ran out; the next edit can be asked for then.
        """
        self._check_length(wish.prompt)
        with self._one_at_a_time:
            return self._with_memory("edit this picture", lambda: self._edited(picture, wish, progress))

    def edit_all(self, wishes: Iterable[tuple[str | Path, Wish]]) -> Iterator[tuple[str, Edited | Failed]]:
        """Edit one file after the other. One that fails gives its words, and does not lose the others."""
        for path, wish in wishes:
            name = f"{Path(path).name}: {wish.prompt}"
            outcome: Edited | Failed
            try:
                outcome = self.edit(read_picture(path), wish)
            except dk.DeviceKitError as error:
                outcome = Failed(str(error))
            except Exception as error:  # whatever it was, it is this picture's, and the others are still wanted
                outcome = Failed(f"{type(error).__name__}: {error}")
            yield name, outcome

    def _edited(self, picture: Image.Image, wish: Wish, progress: Progress | None) -> Edited:
        def step_end(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if progress is not None:
                progress(step + 1, wish.steps)
            return tensors

        noise = self._noise(self.pipe.latent_shape(picture.size), wish)
        with self.dm.measure("edit") as measured:
            made = self.pipe(
                wish.prompt,
                picture,
                noise,
                strength=wish.strength,
                num_inference_steps=wish.steps,
                guidance_scale=wish.guidance,
                callback_on_step_end=step_end,
            ).images[0]
        assert measured.seconds is not None
        return Edited(made.resize(picture.size, Image.Resampling.LANCZOS), measured.seconds, measured.peak_memory)

    def _noise(self, shape: tuple[int, ...], wish: Wish) -> torch.Tensor:
        if wish.device_noise:
            return torch.randn(shape, generator=self.dm.create_generator(wish.seed), device=self.dm.device)
        # Drawn on the CPU: a device's generator has numbers of its own, and the picture would be another one.
        return self.dm.randn(shape, wish.seed)

    def _check_length(self, prompt: str) -> None:
        tokens, most = len(self.pipe.tokenizer_4(prompt).input_ids), self.pipe.tokenizer_4.model_max_length
        if tokens > most:
            why = f"it has {tokens} tokens, and the model reads {most}"
            raise dk.DeviceKitError("The prompt is too long.", why=why, try_="fewer words")

    def _with_memory(self, what: str, work: Callable[[], T]) -> T:
        """Do it. Where memory runs out, give back what the attempt left, and say so in words."""
        try:
            return work()
        except Exception as error:
            if not dk.is_out_of_memory(error):
                raise
            why = next(iter(str(error).splitlines()), type(error).__name__)
        # Out here the error is gone, and with it the frames that held the attempt's tensors.
        self.pipe.maybe_free_model_hooks()
        gc.collect()  # what lies in circles is freed by nothing else
        self.dm.empty_cache()
        words = f"There is too little memory on {self.dm.device} to {what}."
        raise dk.DeviceKitError(words, why=why, try_="--save-memory, or another device")


def _loaded(folder: str | Path, dm: dk.DeviceManager) -> ImageEditPipeline:
    if not (Path(folder) / "model_index.json").is_file():
        why = "there is no model_index.json in it"
        raise dk.DeviceKitError(f"{folder} holds no pipeline.", why=why, try_="python -m image_editing.make")
    try:
        pipe = ImageEditPipeline.from_pretrained(folder, dtype=dm.dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise dk.DeviceKitError(f"{folder} cannot be loaded.", why=f"{type(error).__name__}: {error}") from error
    # The published pipeline asks its Llama for attention weights, which only this one of transformers' ways has.
    pipe.text_encoder_4.set_attn_implementation("eager")
    pipe.set_progress_bar_config(disable=True)
    return pipe
