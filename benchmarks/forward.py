"""A model's forward in the dtype that devicekit chooses, beside float32, and through the facade, beside torch by hand.

A decoder of 354 million parameters (GPT-2 medium's shape, random weights). The four take turns, and the order turns
round each time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _table import Sheet, machine_line, median, save, show

import devicekit as dk

SPEED, ALIKE, OVERHEAD = 1.8, 0.999, 0.01
"""Targets: times as fast as float32, cosine similarity to it, and the facade's share of a forward."""


class Block(torch.nn.Module):
    """Attention and a perceptron, each after a norm and beside a shortcut."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = torch.nn.LayerNorm(hidden), torch.nn.LayerNorm(hidden)
        self.joint, self.out = torch.nn.Linear(hidden, 3 * hidden), torch.nn.Linear(hidden, hidden)
        self.up, self.down = torch.nn.Linear(hidden, 4 * hidden), torch.nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, seq, hidden)."""
        batch, seq, hidden = x.shape
        split = self.joint(self.before(x)).view(batch, seq, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        seen = torch.nn.functional.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, seq, hidden))
        return x + self.down(torch.nn.functional.gelu(self.up(self.between(x))))


class Decoder(torch.nn.Module):
    """Tokens (batch, seq) to the logits of the last one (batch, vocabulary)."""

    def __init__(self, layers: int = 24, hidden: int = 1024, heads: int = 16, vocabulary: int = 50257) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(vocabulary, hidden)
        self.positions = torch.nn.Embedding(1024, hidden)
        self.blocks = torch.nn.Sequential(*(Block(hidden, heads) for _ in range(layers)))
        self.last = torch.nn.LayerNorm(hidden)
        for weight in self.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Without a dropout."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return torch.nn.functional.linear(self.last(self.blocks(x))[:, -1], self.tokens.weight)


def contestants(dm: dk.DeviceManager, batch: int, seq: int) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed, by name; each waits until the device is done."""
    torch.manual_seed(0)
    wide = Decoder().eval().to(dm.device)
    narrow = Decoder().eval()
    narrow.load_state_dict(wide.state_dict())
    ours = dm.to(narrow, dm.dtype)
    tokens = torch.randint(0, 50257, (batch, seq))

    def by_hand(model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model(tokens.to(dm.device)).float().cpu()

    def facade() -> torch.Tensor:
        with torch.inference_mode(), dm.autocast():
            return dm.to(ours(dm.to(tokens)), torch.float32).cpu()

    def measured() -> torch.Tensor:
        with dm.measure("forward"), torch.inference_mode():
            return ours(dm.to(tokens)).float().cpu()

    return {
        "float32, by hand": lambda: by_hand(wide),
        f"{dm.dtype}, by hand": lambda: by_hand(ours),
        f"{dm.dtype}, dm.to and dm.autocast": facade,
        f"{dm.dtype}, dm.to and dm.measure": measured,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq", type=int, default=16, help="tokens of a row; more on an accelerator")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    dm = dk.DeviceManager(options.device)
    runs = contestants(dm, options.batch, options.seq)
    answers = {name: run() for name, run in runs.items()}  # and a warm-up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(options.rounds):
        for name in list(runs) if n % 2 == 0 else reversed(runs):
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    print(f"{machine_line()}; {dm.device}, batch {options.batch} of {options.seq} tokens", file=sys.stderr)
    show([_sheet(seconds, answers)], markdown=options.markdown)
    save(options.json, device=str(dm.device), batch=options.batch, seq=options.seq, seconds=seconds)
    return 0


def _sheet(seconds: dict[str, list[float]], answers: dict[str, torch.Tensor]) -> Sheet:
    wide, hand, *_ = seconds
    columns = ("forward", "s", "min", "x float32", "cosine to float32", "over the same by hand", "target", "met")
    sheet = Sheet("A forward of 354 million parameters", columns)
    for name, samples in seconds.items():
        faster = median(seconds[wide]) / median(samples)
        cosine = float(torch.nn.functional.cosine_similarity(answers[wide].double(), answers[name].double()).min())
        # Of the turns, not of the medians: what slows a turn slows all four.
        over = median([mine / theirs for mine, theirs in zip(samples, seconds[hand], strict=True)]) - 1
        target, met = _judged(name, (wide, hand), faster, cosine, over)
        told = "" if name in (wide, hand) else f"{over:+.2%}"
        times = f"{median(samples):.3f}", f"{min(samples):.3f}"
        sheet.rows.append((name, *times, f"{faster:.2f}", f"{cosine:.5f}", told, target, met))
    return sheet


def _judged(name: str, by_hand: tuple[str, str], faster: float, cosine: float, over: float) -> tuple[str, str]:
    wide, hand = by_hand
    if name == wide:
        return "", ""
    if name == hand:
        met = faster >= SPEED and cosine > ALIKE
        return f"{SPEED} times float32, cosine above {ALIKE}", "yes" if met else "no"
    return f"under {OVERHEAD:.0%}", "yes" if over < OVERHEAD else "no"


if __name__ == "__main__":
    sys.exit(main())
