"""A StableDiffusionPipeline of 4.5 MiB with random weights, made from configurations, and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def make_pipeline(folder: Path) -> Any:
    """The pipeline; ``folder`` takes its tokenizer's files. The weights are the same each time."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=0,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, count: int = 1) -> torch.Tensor:
    """What it draws with one seed."""
    generators = [torch.Generator("cpu").manual_seed(3 + i) for i in range(count)]
    drawn = pipe(["a cat"] * count, num_inference_steps=2, height=32, width=32, generator=generators, output_type="np")
    return torch.from_numpy(drawn.images)


def places(pipe: Any) -> dict[str, set[str]]:
    """On which devices each component's weights say that they are."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: {t.device.type for t in model.parameters()} for name, model in models.items()}


def hooked(pipe: Any) -> set[str]:
    """The components with a hook of accelerate's, anywhere inside."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name for name, model in models.items() if any(hasattr(part, "_hf_hook") for part in model.modules())}
