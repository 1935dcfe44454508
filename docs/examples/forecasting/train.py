"""Train a tokenizer, then a model on its tokens, and save both.

    python -m forecasting.train --out runs/first
    torchrun --nproc_per_node=2 -m forecasting.train --out runs/first

Under torchrun every process computes its part of each batch, and the gradients are averaged: the result is the same,
but for rounding.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as all of torch's users call it
from torch.nn.parallel import DistributedDataParallel

import devicekit as dk
from forecasting import folder
from forecasting.features import Scale, stamps
from forecasting.market import make_series
from forecasting.model import CandleModel, Config
from forecasting.tokenizer import CandleTokenizer

__all__ = ["Plan", "Share", "Windows", "held_out_loss", "main", "train"]

log = logging.getLogger("forecasting.train")

SERIES, LENGTH, STRIDE = 48, 480, 8
CANDLES_PER_WINDOW = 64
HELD_OUT = 1_000_003
"""Added to the seed, it makes the series that are not trained on."""


@dataclass(frozen=True)
class Plan:
    """How long to train, and on what."""

    steps: int = 150
    """Of each of the two."""
    batch: int = 16
    """Windows of a step, of all processes together; the tokenizer takes single candles, 64 for a window."""
    rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Windows:
    """Stretches of context and horizon out of many series; a dataclass, so that ``dm.to`` takes it as it is."""

    features: Tensor
    """Shape (windows, context + horizon, 6); measured by the context alone."""
    stamps: Tensor
    """Shape (windows, context + horizon, 4)."""

    @classmethod
    def make(cls, config: Config, seed: int, series: int = SERIES) -> Windows:
        """The same ones for the same seed."""
        times, values = make_series(series, LENGTH, seed)
        size = config.context + config.horizon
        cut = [slice(begin, begin + size) for begin in range(0, LENGTH - size + 1, STRIDE)]
        windows = np.concatenate([values[:, part] for part in cut])  # (cuts * series, size, 6)
        clock = np.repeat(np.stack([stamps(times[part]) for part in cut]), series, axis=0)
        features = Scale.of(windows[:, : config.context]).features(windows)
        return cls(torch.from_numpy(features), torch.from_numpy(clock))


@dataclass(frozen=True)
class Share:
    """Which of several processes this is; they have joined already."""

    rank: int = 0
    of: int = 1


ALONE = Share()


def train(
    dm: dk.DeviceManager, config: Config, plan: Plan, share: Share = ALONE
) -> tuple[CandleModel, CandleTokenizer, dict[str, Any]]:
    """Model, tokenizer, and how it went: losses on series that were trained on, and on others before and after.

    Raises:
        devicekit.DeviceKitError: the processes cannot share a batch evenly.
    """
    if plan.batch % share.of:
        what = f"a batch of {plan.batch} windows cannot be shared by {share.of} processes"
        raise dk.DeviceKitError(what, why="each computes the same part of it", try_="a multiple of their number")
    torch.manual_seed(plan.seed)  # the first weights, drawn on the host: alike in all processes and on all devices
    model, tokenizer = (dm.to(module) for module in folder.build(config))
    data = dm.to(Windows.make(config, plan.seed))
    held_out = dm.to(Windows.make(config, plan.seed + HELD_OUT, series=8))

    fit = functools.partial(_fit, dm, share)
    flat = data.features.flatten(0, 1)
    candles = replace(plan, batch=plan.batch * CANDLES_PER_WINDOW)
    wrapped = _joined(tokenizer, share)
    rounding = fit("tokenizer", wrapped, lambda part: _kept(wrapped, flat[part]), len(flat), candles)

    with torch.no_grad():
        tokens = tokenizer.encode(data.features)
    joined = _joined(model, share)
    before = held_out_loss(model, tokenizer, held_out)
    losses = fit("model", joined, lambda part: _next(joined, tokens[part], data.stamps[part]), len(tokens), plan)
    told = {
        "steps": plan.steps,
        "seed": plan.seed,
        "tokenizer_loss": _ends(rounding),
        "loss": _ends(losses),
        "held_out_loss": [before, held_out_loss(model, tokenizer, held_out)],
    }
    return model, tokenizer, told


@torch.no_grad()
def held_out_loss(model: CandleModel, tokenizer: CandleTokenizer, data: Windows) -> float:
    """How surprising the candles after the context are, each given all before it: nats a candle."""
    tokens = tokenizer.encode(data.features)
    logits = model(tokens[:, :-1], data.stamps[:, 1:])
    after = slice(model.config.context - 1, None)
    return float(F.cross_entropy(logits[:, after].flatten(0, 1), tokens[:, 1:][:, after].flatten()))


# -- steps -------------------------------------------------------------------------------------
def _joined(module: nn.Module, share: Share) -> nn.Module:
    """The module as it is trained: with its gradients averaged over the processes, where there are several."""
    return DistributedDataParallel(module) if share.of > 1 else module


def _kept(tokenizer: nn.Module, features: Tensor) -> Tensor:
    """The loss of rounding: how far what comes out is from what went in."""
    return F.smooth_l1_loss(tokenizer(features), features)


def _next(model: nn.Module, tokens: Tensor, times: Tensor) -> Tensor:
    """The loss of every token but the first, given those before it."""
    logits = model(tokens[:, :-1], times[:, 1:])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _fit(
    dm: dk.DeviceManager,
    share: Share,
    name: str,
    module: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    size: int,
    plan: Plan,
) -> list[float]:
    """Train one module; ``loss_of`` takes the numbers of the examples. The losses of this process."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=plan.steps, pct_start=0.1)
    chance = np.random.default_rng(plan.seed)
    losses = []
    with dm.measure(name) as taken:
        for step in range(plan.steps):
            # All processes draw the same batch, and each takes its part of it.
            part = chance.integers(0, size, plan.batch)[share.rank :: share.of]
            loss = loss_of(dm.to(torch.from_numpy(part)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())  # read at the end: reading waits for the device
            if share.rank == 0 and (step + 1) % 50 == 0:
                log.info("%s: step %d of %d, loss %.4f", name, step + 1, plan.steps, losses[-1])
    if share.rank == 0:
        told = (name, plan.steps, taken.seconds, dm.device, share.of)
        log.info("%s: %d steps in %.1f s on %s; processes: %d", *told)
    return torch.stack(losses).tolist()


def _ends(losses: list[float]) -> list[float]:
    """The mean of the first tenth and of the last."""
    part = max(1, len(losses) // 10)
    return [sum(losses[:part]) / part, sum(losses[-part:]) / part]


# -- the command line ----------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None) -> int:
    """Train and save; 2 when it cannot be done, with the reason on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(options)
    except (dk.DeviceKitError, folder.ModelError, OSError) as error:
        sys.stderr.write(f"forecasting.train: {error}\n")
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    config, plan = Config(), Plan(steps=options.steps, batch=options.batch, seed=options.seed)
    dm = dk.DeviceManager(options.device, strict=options.strict)
    with dm.init_distributed() as world:
        model, tokenizer, told = train(dm, config, plan, Share(world.rank, world.world_size))
        if world.is_main:
            folder.save(options.out, model, tokenizer, told)
            before, after = told["held_out_loss"]
            log.info("on other series: loss %.3f, was %.3f; saved in %s", after, before, options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forecasting.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model is saved")
    parser.add_argument("--device", default="auto", metavar="NAME", help="any name that devicekit knows (auto)")
    parser.add_argument("--strict", action="store_true", help="fail rather than take another device")
    parser.add_argument(
        "--steps", type=_positive, default=Plan.steps, metavar="N", help=f"of each of the two ({Plan.steps})"
    )
    parser.add_argument("--batch", type=_positive, default=Plan.batch, metavar="N", help=f"windows ({Plan.batch})")
    parser.add_argument("--seed", type=_seed, default=Plan.seed, metavar="N", help="the same one, the same model (0)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to a million")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2**32 - 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
