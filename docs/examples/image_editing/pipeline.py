"""HiDream-I1's published pipeline, begun from a picture instead of from pure noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import HiDreamImagePipeline
from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift
from PIL import Image

__all__ = ["ImageEditPipeline", "StepEnd"]

StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""Called after each step with the pipeline, the step's number from 0, its time and tensors; gives the tensors back."""


class ImageEditPipeline(HiDreamImagePipeline):
    """Four text encoders, one of them a Llama, a transformer and a VAE; any folder of ``HiDreamImagePipeline`` loads.

    The picture's latents are mixed with noise, the more the larger ``strength`` is, and the published pipeline takes
    the noise out again, led by the words (the method of SDEdit, arXiv 2108.01073).
    """

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Latents for a picture: 1, channels, height, width. The published pipeline brings it to about this area.

        Args:
            size: width and height in pixels.
        """
        width, height = size
        self.default_sample_size = self.transformer.config.max_resolution[0]
        largest = (self.default_sample_size * self.vae_scale_factor) ** 2
        unit, scale = 2 * self.vae_scale_factor, math.sqrt(largest / (width * height))
        rows, columns = (2 * int(side * scale // unit) for side in (height, width))
        return 1, self.transformer.config.in_channels, rows, columns

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        image: Image.Image,
        noise: torch.Tensor,
        *,
        strength: float,
        num_inference_steps: int,
        guidance_scale: float,
        callback_on_step_end: StepEnd | None = None,
    ) -> Any:
        """One edited picture, ``.images[0]``, of the size that the model works in.

        Args:
            prompt: what to do.
            image: any size, RGB.
            noise: standard normal, of ``latent_shape(image.size)``.
            strength: 0 to 1: how much noise, before the scheduler's shift. At 1 nothing of the picture is left.
            num_inference_steps: all of them are taken, from this much noise to none.
            guidance_scale: how closely the words are followed; 1 or less: computed once a step instead of twice.
            callback_on_step_end: to show progress, or to stop by raising.
        """
        sigmas = [strength * (1 - step / num_inference_steps) for step in range(num_inference_steps)]
        self.scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(self.transformer.max_seq))
        first = self.scheduler.sigmas[0].item()
        latents = first * noise.to(self._execution_device, self.vae.dtype) + (1 - first) * self._encoded(image, noise)
        return super().__call__(
            prompt=prompt,
            width=image.width,
            height=image.height,
            sigmas=sigmas,
            latents=latents,
            guidance_scale=guidance_scale,
            callback_on_step_end=callback_on_step_end,
        )

    def _encoded(self, image: Image.Image, noise: torch.Tensor) -> torch.Tensor:
        """The picture as latents, of the noise's shape; its most likely ones, for a draw would need a generator."""
        rows, columns = (side * self.vae_scale_factor for side in noise.shape[-2:])
        pixels = self.image_processor.preprocess(image, height=rows, width=columns)
        latents = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype)).latent_dist.mode()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
