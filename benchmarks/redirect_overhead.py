"""What a redirect costs: a training step of nanoGPT beside the same ported by hand, and operations by themselves.

    python benchmarks/redirect_overhead.py FOLDER_OF_CLONES [--rounds 9] [--markdown] [--json FILE]

The step is the one of the README of nanoGPT for a CPU (4 layers, 4 heads, 128 channels, 64 characters, a batch of 12),
with clipping and its optimizer. All ways run in one process; they take turns of a few steps, and who goes first changes
every turn; each round makes the models anew, because where they come to lie in memory counts as well. Ratios are
medians of the turns' ratios; torch's threads wait for each other, so the machine should be quiet.
Operations are told as the difference to plain torch, in microseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from _table import Sheet, machine_line, median, save, show, verdict

from devicekit import redirect_cuda
from devicekit.testing import simulated_cuda

TURNS, STEPS = 6, 4
CALLS = 5000
TARGETS = {"translate": 1.02, "masquerade": 1.15}
"""Times the hand-ported step."""
OPERATION_TARGET = 0.1
"""Microseconds more than plain torch, under translate."""

WAYS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "by hand": (contextlib.nullcontext, "cpu"),
    "translate": (lambda: redirect_cuda("cpu"), "cuda"),
    "masquerade": (simulated_cuda, "cuda"),
}
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "a + b": lambda x: x + x,
    "a.view": lambda x: x.view(2, 4),
    "a.device": lambda x: x.device,
    "torch.zeros(8)": lambda _: torch.zeros(8),
    "torch.zeros(8, dtype=)": lambda _: torch.zeros(8, dtype=torch.float32),
    "a.to(dtype)": lambda x: x.to(torch.float64),
    "F.relu": torch.nn.functional.relu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clones", type=Path, help="a folder that holds karpathy/nanoGPT as nanoGPT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    sys.path.insert(0, str(options.clones / "nanoGPT"))
    steps = _in_turns(_model, options.rounds)
    calls = {name: _in_turns(functools.partial(_operand, do), options.rounds) for name, do in OPERATIONS.items()}
    show([_steps(steps), _calls(calls)], markdown=options.markdown)
    save(options.json, steps=steps, calls=calls)


def _in_turns(make: Callable[[str], Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way measures; ``make`` takes the name of a device, and gives what takes the seconds there."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        made = {}
        for way, (context, device) in WAYS.items():
            with context():
                made[way] = make(device)
        for turn in range(TURNS):
            ways = list(WAYS)
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                with WAYS[way][0]():
                    found[way].append(made[way]())
    return found


def _model(device: str) -> Callable[[], float]:
    """Seconds of one step, the median of several."""
    from model import GPT, GPTConfig

    torch.manual_seed(0)
    config = GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False)
    with contextlib.redirect_stdout(None):
        model = GPT(config).to(device)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    x = torch.randint(0, 65, (12, 64)).to(device)

    def step() -> float:
        start = time.perf_counter()
        _, loss = model(x, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return lambda: median([step() for _ in range(STEPS + 1)][1:])


def _operand(do: Callable[[Any], Any], device: str) -> Callable[[], float]:
    """Seconds of one call."""
    x = torch.ones(8, device=device)
    return lambda: min(timeit.repeat(lambda: do(x), number=CALLS, repeat=3)) / CALLS


def _steps(steps: dict[str, list[float]]) -> Sheet:
    sheet = Sheet("A training step of nanoGPT", ("way", "ms", "times by hand", "goal", "met"))
    for way, taken in steps.items():
        ratio = median([ours / theirs for ours, theirs in zip(taken, steps["by hand"], strict=True)])
        goal = TARGETS.get(way)
        told = "" if goal is None else f"{goal:.2f}"
        sheet.rows.append([way, f"{median(taken) * 1e3:.1f}", f"{ratio:.3f}", told, verdict(ratio, goal)])
    return sheet


def _calls(calls: dict[str, dict[str, list[float]]]) -> Sheet:
    columns = ("operation", "plain, us", "translate, more", "met", "masquerade, more")
    sheet = Sheet(f"Operations, on tensors of 8 numbers (goal: translate {OPERATION_TARGET} us)", columns)
    for name, taken in calls.items():
        plain = median(taken["by hand"]) * 1e6
        more = {
            way: median([(a - b) * 1e6 for a, b in zip(taken[way], taken["by hand"], strict=True)])
            for way in ("translate", "masquerade")
        }
        met = verdict(more["translate"], OPERATION_TARGET)
        sheet.rows.append([name, f"{plain:.2f}", f"{more['translate']:+.2f}", met, f"{more['masquerade']:+.2f}"])
    return sheet


if __name__ == "__main__":
    main()
