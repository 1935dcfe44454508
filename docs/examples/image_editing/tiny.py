"""A HiDream pipeline of a few MiB with random weights, made from configurations: nothing is downloaded.

Its pictures mean nothing. Its classes, its files and what it asks of a device are those of the large one.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

__all__ = ["make_lora", "make_pipeline", "make_tokenizer", "sample_picture"]

WIDTH = 32
"""Of every model in here, in channels."""
TOKENS = 128
"""The longest prompt, in tokens, as the published pipeline has it."""
SPECIAL = ("<pad>", "<bos>", "<eos>")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte of UTF-8, so that every language can be written, and nothing has to be trained."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(token, vocabulary[token]) for token in SPECIAL[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    pad, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end, model_max_length=TOKENS
    )


def make_pipeline(seed: int = 0) -> HiDreamImagePipeline:
    """The pipeline on the CPU in float32; a seed gives the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {
            "text_encoder": _clip(),
            "text_encoder_2": _clip(),
            "text_encoder_3": _t5(),
            "text_encoder_4": _llama(),
        }
        transformer, vae = _transformer(), _vae()
    for model in (*encoders.values(), transformer, vae):
        model.eval()
    tokenizers = {name: make_tokenizer() for name in ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return HiDreamImagePipeline(scheduler=scheduler, vae=vae, transformer=transformer, **encoders, **tokenizers)


def make_lora(pipe: HiDreamImagePipeline, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """A random low-rank update of every query and value projection, under the names that diffusers gives to them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, part in pipe.transformer.named_modules():
        if name.endswith((".to_q", ".to_v")):
            down = torch.randn(rank, part.in_features, generator=generator) / part.in_features**0.5
            up = torch.randn(part.out_features, rank, generator=generator)
            weights[f"transformer.{name}.lora_A.weight"] = down
            weights[f"transformer.{name}.lora_B.weight"] = up
    return weights


def sample_picture(width: int = 96, height: int = 96) -> Image.Image:
    """A sun over a meadow, to have something to edit."""
    picture = Image.new("RGB", (width, height), "skyblue")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, height * 2 // 3, width, height), fill="seagreen")
    draw.ellipse((width // 2, height // 8, width * 3 // 4, height * 3 // 8), fill="gold")
    return picture


# -- the models ----------------------------------------------------------------------------------
def _vocabulary() -> int:
    return len(SPECIAL) + len(pre_tokenizers.ByteLevel.alphabet())


def _clip() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=_vocabulary(), hidden_size=WIDTH, intermediate_size=2 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=_vocabulary(), d_model=WIDTH, d_kv=WIDTH // 2, d_ff=2 * WIDTH, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return T5EncoderModel(config)


def _llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=_vocabulary(), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=TOKENS,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _transformer() -> HiDreamImageTransformer2DModel:
    return HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH], text_emb_dim=2 * WIDTH, num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(8, 4, 4), max_resolution=(16, 16), llama_layers=[0, 1],
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, shift_factor=0.1,
    )  # fmt: skip
