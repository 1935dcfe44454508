"""Tiny random models in folders named like hub ids, where a program's `from_pretrained` finds them without a network.

    cd CLONE && python _tiny_models.py hidream|kronos

Run inside a clone of the program. Nothing is downloaded, and the numbers mean nothing: they only have to be the same
for two runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
CLIP, T5, LLAMA = 32, 48, 24
"""Hidden sizes of the text encoders, different ones so that a mix-up shows."""


def hidream() -> None:
    """All that HiDream-E1's inference_e1_1.py loads: an I1 pipeline, the edit transformer in shards, and a Llama."""
    import diffusers
    import torch

    torch.manual_seed(0)
    text = Path("README.md").read_text(encoding="utf-8")
    words = _tokenizer(text)
    llama = _llama(len(words))
    pipeline = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=_clip(words),
        tokenizer=words,
        text_encoder_2=_clip(words),
        tokenizer_2=words,
        text_encoder_3=_t5(len(words)),
        tokenizer_3=words,
        text_encoder_4=llama,
        tokenizer_4=words,
        transformer=_transformer(),
    )
    pipeline.save_pretrained("HiDream-ai/HiDream-I1-Full")
    _transformer().save_pretrained("HiDream-ai/HiDream-E1-1/transformer", max_shard_size="100KB")
    words.save_pretrained("meta-llama/Llama-3.1-8B-Instruct")
    llama.save_pretrained("meta-llama/Llama-3.1-8B-Instruct")


def _tokenizer(text: str) -> Any:
    """One byte-level tokenizer stands in for CLIP's, T5's and Llama's: the pipeline only calls it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = [START, END, UNKNOWN]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [text], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=300)
    )
    ends = [(token, made.token_to_id(token)) for token in (START, END)]
    made.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=END,
        model_max_length=128,
    )


def _clip(words: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=CLIP,
            intermediate_size=2 * CLIP,
            projection_dim=CLIP // 2,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=words.model_max_length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def _t5(vocabulary: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=vocabulary, d_model=T5, d_kv=16, d_ff=2 * T5, num_layers=1, num_heads=3))


def _llama(vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=LLAMA,
            intermediate_size=2 * LLAMA,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
        )
    )


def _transformer() -> Any:
    from diffusers import HiDreamImageTransformer2DModel

    return HiDreamImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        axes_dims_rope=(8, 4, 4),
        caption_channels=[T5, LLAMA],
        text_emb_dim=2 * (CLIP // 2),
        num_routed_experts=2,
        num_activated_experts=1,
        llama_layers=(0, 2),
    )


def _vae() -> Any:
    """Four blocks, for the pipeline counts on a picture eight times the latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def kronos() -> None:
    """The model, the tokenizer and the prices of Kronos's examples, by the classes of the clone itself."""
    import torch

    sys.path.insert(0, str(Path.cwd()))
    from model import Kronos, KronosTokenizer

    torch.manual_seed(0)
    size = {"d_model": 24, "n_heads": 3, "ff_dim": 48}
    bits = {"s1_bits": 3, "s2_bits": 3}
    kept = {"ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0}
    loss = {"beta": 0.1, "gamma0": 1.0, "gamma": 1.0, "zeta": 0.1, "group_size": 3}
    tokenizer = KronosTokenizer(d_in=6, n_enc_layers=2, n_dec_layers=2, **size, **bits, **kept, **loss)
    tokenizer.save_pretrained("examples/NeoQuasar/Kronos-Tokenizer-base")
    model = Kronos(n_layers=2, token_dropout_p=0.0, learn_te=True, **size, **bits, **kept)
    model.save_pretrained("examples/NeoQuasar/Kronos-small")
    _prices(Path("examples/data/XSHG_5min_600977.csv"))


def _prices(file: Path) -> None:
    """A random walk with the columns that the example reads."""
    import numpy
    import pandas

    chance = numpy.random.default_rng(0)
    price = 20 * numpy.exp(numpy.cumsum(0.001 * chance.standard_normal(450)))
    columns = {"open": price, "high": 1.001 * price, "low": 0.999 * price, "close": price + 0.002}
    times = pandas.date_range("2024-01-02 09:30", periods=len(price), freq="5min")
    file.parent.mkdir(parents=True)
    pandas.DataFrame({"timestamps": times, **columns, "volume": 100.0, "amount": 2000.0}).to_csv(file, index=False)


if __name__ == "__main__":
    {"hidream": hidream, "kronos": kronos}[sys.argv[1]]()
