"""Train a model: ``python -m numpy_gpt.train --out FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import devicekit as dk
from numpy_gpt import checkpoint, corpus
from numpy_gpt.command import add_device, device, ended, tell
from numpy_gpt.errors import BadInput
from numpy_gpt.model import Shape
from numpy_gpt.tokenizer import Tokenizer
from numpy_gpt.training import Corpus, Run, Settings

__all__ = ["main"]

OF_THE_MODEL = ("context", "layers", "heads", "width", "dropout")
OF_THE_RUN = ("batch", "rate", "warmup", "decay", "seed")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, train, save."""
    options = _parser().parse_args(argv)
    return ended(lambda: train(options))


def train(options: argparse.Namespace) -> None:
    """Train until the last step, and save now and then.

    Raises:
        BadInput: with these options nothing can be trained.
        devicekit.DeviceKitError: the device or the file refuses.
    """
    if options.every < 1:
        raise BadInput(f"--every must be a whole number from 1, and is {options.every}")
    dm = device(options.device)
    run, tokenizer = (_resumed if options.resume else _begun)(options, dm)
    count = sum(parameter.data.size for parameter in run.model.parameters.values())
    tell(f"{count:,} parameters on {dm.device} ({dm.backend}), {dm.dtype}; {len(tokenizer.characters)} characters")
    checkpoint.save(options.out, dm, run, tokenizer)  # now, and not after minutes, it shows whether that can be done
    with dm.measure("training") as training:
        while run.step < run.settings.steps:
            loss = run.advance()
            if run.step % options.every == 0 or run.step == run.settings.steps:
                path = checkpoint.save(options.out, dm, run, tokenizer)
                tell(f"step {run.step}: loss {loss:.3f}, on held out text {run.check():.3f}")
    tell(str(training))
    sys.stdout.write(f"{path}\n")


def _begun(options: argparse.Namespace, dm: dk.DeviceManager) -> tuple[Run, Tokenizer]:
    if checkpoint.exists(options.out):
        raise BadInput(f"{options.out} has a model already: go on with --resume, or take another --out")
    settings = Settings(**_given(options, ("steps", *OF_THE_RUN)))
    text = corpus.read(options.data, dm)
    tokenizer = Tokenizer.of(text)
    shape = Shape(len(tokenizer.characters), tied=not options.untied, **_given(options, OF_THE_MODEL))
    return Run(dm, shape, settings, Corpus(text, tokenizer, shape.context)), tokenizer


def _resumed(options: argparse.Namespace, dm: dk.DeviceManager) -> tuple[Run, Tokenizer]:
    fixed = [*_given(options, (*OF_THE_MODEL, *OF_THE_RUN)), *(["untied"] if options.untied else [])]
    if fixed:
        raise BadInput(f"--{fixed[0]} is settled when a run begins: leave it out with --resume")
    run, tokenizer = checkpoint.resume(options.out, dm, corpus.read(options.data, dm))
    run.lasting(run.settings.steps if options.steps is None else options.steps)
    return run, tokenizer


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What was said on the command line; the defaults are where the settings are."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="numpy_gpt.train", description="Train a language model with NumPy alone.")
    parser.add_argument("--data", default=corpus.BUILT_IN, metavar="FILE", help="UTF-8 text, or built-in (built-in)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model is saved")
    parser.add_argument("--resume", action="store_true", help="go on with the run that was saved there")
    parser.add_argument("--every", type=int, default=100, metavar="N", help="save and check every N steps (100)")
    add_device(parser)
    for kind, names, defaults in (("run", ("steps", *OF_THE_RUN), Settings), ("model", OF_THE_MODEL, Shape)):
        group = parser.add_argument_group(f"of the {kind}")
        for name in names:
            default = getattr(defaults, name)
            group.add_argument(f"--{name}", type=type(default), metavar="X", help=f"default {default}")
    parser.add_argument("--untied", action="store_true", help="a head of its own, and not the table of characters")
    return parser


if __name__ == "__main__":
    sys.exit(main())
