"""Checkpoints to load: random values in the shape of a Llama and of a LoRA, streamed to disk without holding them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZES = {"BF16": 2, "F32": 4}
POOL = 1 << 22
"""Random values that the tensors are cut from, each beginning at another one: a mixed-up tensor must not look right."""
LAYER_BYTES, OUTER_BYTES = 88_088_576, 262_148_096
"""In bfloat16: one layer of the full width, and the embeddings with the last norm."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The width of a 1.1B Llama, as deep as it takes to fill the file."""

    layers: int
    hidden: int = 2048
    middle: int = 5632
    vocabulary: int = 32000
    heads: int = 32
    shared: int = 4
    """Key and value heads."""

    def shapes(self) -> Shapes:
        """Name and shape of every tensor, as transformers' LlamaForCausalLM calls them."""
        narrow = self.hidden * self.shared // self.heads
        inside = {
            "input_layernorm": (self.hidden,),
            "mlp.down_proj": (self.hidden, self.middle),
            "mlp.gate_proj": (self.middle, self.hidden),
            "mlp.up_proj": (self.middle, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
        }
        layers = range(self.layers)
        return {
            "lm_head.weight": (self.vocabulary, self.hidden),
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            **{f"model.layers.{n}.{name}.weight": shape for n in layers for name, shape in inside.items()},
            "model.norm.weight": (self.hidden,),
        }

    def config(self, dtype: str) -> dict[str, object]:
        """What transformers reads beside the weights."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16" if dtype == "BF16" else "float32",
            "hidden_size": self.hidden,
            "intermediate_size": self.middle,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.shared,
            "tie_word_embeddings": False,
            "vocab_size": self.vocabulary,
        }


TINY = Llama(layers=2, hidden=256, middle=704, vocabulary=8192, heads=4, shared=1)
"""Loaded once before the clock starts, big enough to start a library's threads."""


def deep_enough(gib: float) -> Llama:
    """The Llama of at least so many GiB in bfloat16."""
    return Llama(layers=max(1, -int(-(gib * 2**30 - OUTER_BYTES) // LAYER_BYTES)))


def lora(count: int) -> Shapes:
    """So many tensors of a kilobyte each."""
    return {f"layers.{n // 2}.lora_{'AB'[n % 2]}.weight": ((8, 64), (64, 8))[n % 2] for n in range(count)}


def make(folder: Path, source: str, gib: float) -> Path:
    """The path to load for one of "file", "shards", "float32", "lora" and their tiny_ forms; written when missing."""
    kind = source.removeprefix("tiny_")
    tiny = source != kind
    dtype = "F32" if kind == "float32" else "BF16"
    model = TINY if tiny else deep_enough(gib)
    size = f"{gib:g}" if not tiny and kind != "lora" else "all"
    home = folder / f"{source}-{size}"
    shards = {"shards": 2 if tiny else 5}.get(kind, 1)
    if not home.is_dir():
        shapes = model.shapes() if kind != "lora" else lora(100 if tiny else 10_000)
        _room_for(folder, _bytes(shapes, dtype))
        print(f"writing {home}", file=sys.stderr, flush=True)
        part = home.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(model.config(dtype)), encoding="utf-8")
        _write_all(part, shapes, dtype, shards)
        part.rename(home)
    return home / ("model.safetensors" if shards == 1 else "model.safetensors.index.json")


def files_of(path: Path) -> list[Path]:
    """The files behind a file or an index."""
    if path.suffix != ".json":
        return [path]
    names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    return [path.parent / name for name in sorted(set(names))]


def size_of(path: Path) -> int:
    """Bytes on disk of what a file or an index stands for."""
    return sum(file.stat().st_size for file in files_of(path))


def shapes_of(path: Path) -> Shapes:
    """Name and shape of every tensor in a file or behind an index."""
    found: Shapes = {}
    for file in files_of(path):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        found.update({name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"})
    return found


def _room_for(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + 2**30:
        sys.exit(f"{folder} has {free / 2**30:.1f} GiB free, and a checkpoint of {needed / 2**30:.1f} GiB is due")


def _write_all(home: Path, shapes: Shapes, dtype: str, shards: int) -> None:
    names = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    if shards == 1:
        return _write(home / "model.safetensors", shapes, dtype)
    total, done = _bytes(shapes, dtype), 0
    homes: dict[str, str] = {}
    for name, shape in shapes.items():
        homes[name] = names[min(done * shards // total, shards - 1)]
        done += _count(shape) * SIZES[dtype]
    for file in names:
        _write(home / file, {name: shapes[name] for name, its in homes.items() if its == file}, dtype)
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (home / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return None


def _write(path: Path, shapes: Shapes, dtype: str) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + _count(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = _pool(dtype)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for number, shape in enumerate(shapes.values()):
            for piece in _pieces(pool, number * 1_000_003 % POOL, _count(shape)):
                stream.write(piece.data)
        stream.flush()
        os.fsync(stream.fileno())  # pages still to be written cannot be dropped from the cache


def _pool(dtype: str) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)
    return values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)


def _pieces(pool: np.ndarray, start: int, count: int) -> Iterator[np.ndarray]:
    while count:
        piece = pool[start : start + count]
        yield piece
        start, count = 0, count - len(piece)


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _bytes(shapes: Shapes, dtype: str) -> int:
    return sum(map(_count, shapes.values())) * SIZES[dtype]
