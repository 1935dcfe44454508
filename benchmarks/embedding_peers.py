"""The embedding engine of docs/examples beside sentence-transformers: the same weights, texts, threads and process.

    python benchmarks/embedding_peers.py [--texts 1000] [--rounds 7] [--threads N] [--markdown] [--json FILE]

The texts are the lines and paragraphs of docs/*.md and the demo's sentences, each once. Every contestant gets the list
of strings and gives float32 vectors of length 1: tokenizing counts. They take turns after a run each to warm up, and
the order turns round each time. sentence-transformers runs as it comes: ``SentenceTransformer(folder).encode(texts)``.
Exit code 1 if the float32 vectors are not the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from _table import Sheet, installed, machine_line, median, save, show

ROOT = Path(__file__).resolve().parents[1]
FASTER, ALIKE = 1.5, 0.9999
"""Targets in float32: times as fast as sentence-transformers, and the least cosine to its vectors."""
PEER, OURS, BATCHES = "sentence-transformers, float32", "engine, float32", "engine, float32, torch's usual linear"

Run: TypeAlias = Callable[[], np.ndarray]


def corpus(count: int) -> list[str]:
    """So many texts of mixed lengths, at even distances in all that there are; each is another one."""
    sentences = resources.files("devicekit.demo").joinpath("sentences.txt").read_text(encoding="utf-8")
    found = dict.fromkeys(line.strip() for line in sentences.splitlines())
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        found.update(dict.fromkeys(line.strip() for line in text.splitlines()))
        found.update(dict.fromkeys(" ".join(paragraph.split()) for paragraph in text.split("\n\n")))
    texts = [text for text in found if text]
    count = min(count, len(texts))
    return [texts[position * len(texts) // count] for position in range(count)]


def contestants(texts: list[str]) -> dict[str, Run]:
    """What is timed, by name; all of it is loaded."""
    from sentence_transformers import SentenceTransformer

    from embedding.engine import Engine
    from embedding.model import load_model, packaged

    folder = packaged()
    peer = SentenceTransformer(str(folder), device="cpu")
    engine = Engine.load(folder, "cpu", torch.float32)
    runs: dict[str, Run] = {PEER: lambda: peer.encode(texts), OURS: lambda: engine.encode(texts)}
    if engine.packed:
        plain = Engine(engine.dm, load_model(folder, engine.dm))
        runs[BATCHES] = lambda: plain.encode(texts)
    best = Engine.load(folder, "cpu")
    if best.dm.dtype != torch.float32:
        word = str(best.dm.dtype).removeprefix("torch.")
        narrow = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": best.dm.dtype})
        runs[f"sentence-transformers, {word}"] = lambda: narrow.encode(texts)
        runs[f"engine, {word}"] = lambda: best.encode(texts)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1000, help="how many of the corpus")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch, for all contestants; by default torch's choice")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = corpus(options.texts)
    runs = contestants(texts)
    vectors = {name: run() for name, run in runs.items()}  # and a warm-up
    samples = _in_turns(runs, options.rounds)
    peer = f"sentence-transformers {installed('sentence-transformers')}"
    print(f"{machine_line()}, {peer}; {torch.get_num_threads()} threads; {_about(texts)}", file=sys.stderr)
    alike = {name: float((vectors[PEER] * made).sum(1).min()) for name, made in vectors.items()}
    show([_sheet(samples, alike, len(texts))], markdown=options.markdown)
    save(options.json, texts=len(texts), threads=torch.get_num_threads(), seconds=samples, cosine=alike)
    return 0 if alike[OURS] > ALIKE else 1


def _in_turns(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by the wall's clock and of all processors' time, a sample a round."""
    samples: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(runs):
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            samples[name]["wall"].append(time.perf_counter() - wall)
            samples[name]["cpu"].append(time.process_time() - cpu)
    return samples


def _about(texts: list[str]) -> str:
    from embedding.engine import Engine

    model = Engine.load(device="cpu").model
    lengths = [len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=model.max_tokens)["input_ids"]]
    return f"{len(texts)} texts, {sum(lengths)} tokens, median {statistics.median(lengths):.0f}, longest {max(lengths)}"


def _sheet(samples: dict[str, dict[str, list[float]]], alike: dict[str, float], texts: int) -> Sheet:
    times = "s", "min", "CPU s", "texts/s", "x peer", "in CPU time", "x peer, same dtype"
    columns = ("contestant", *times, "least cosine", "goal", "met")
    sheet = Sheet(f"{texts} texts to vectors", columns)
    for name, taken in samples.items():
        wall, cpu = (_times(samples[PEER][clock], taken[clock]) for clock in ("wall", "cpu"))
        same = _times(samples[f"sentence-transformers, {name.split(', ')[1]}"]["wall"], taken["wall"])
        goal = f"{FASTER} times, cosine > {ALIKE}" if name == OURS else ""
        met = ("yes" if wall >= FASTER and alike[name] > ALIKE else "no") if goal else ""
        seconds = median(taken["wall"])
        told = f"{seconds:.2f}", f"{min(taken['wall']):.2f}", f"{median(taken['cpu']):.2f}", f"{texts / seconds:.0f}"
        ratios = (f"{ratio:.2f}" for ratio in (wall, cpu, same))
        sheet.rows.append((name, *told, *ratios, f"{alike[name]:.6f}", goal, met))
    return sheet


def _times(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast; the median of the turns, not of the medians: what slows a turn slows all of them."""
    return median([their / our for their, our in zip(theirs, ours, strict=True)])


if __name__ == "__main__":
    sys.exit(main())
