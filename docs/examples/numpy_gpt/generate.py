"""Let a model write: ``python -m numpy_gpt.generate --model FOLDER --prompt TEXT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from numpy_gpt.command import add_device, device, ended, tell
from numpy_gpt.sampling import Writer

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, load, write."""
    options = _parser().parse_args(argv)
    return ended(lambda: generate(options))


def generate(options: argparse.Namespace) -> None:
    """The prompt and what follows, on stdout as it is written.

    Raises:
        BadInput: there is no model, or it cannot go on from this.
        devicekit.DeviceKitError: the device or the file refuses.
    """
    dm = device(options.device)
    writer = Writer.load(options.model, dm)
    text = writer.write(
        options.prompt, options.count, temperature=options.temperature, top_k=options.top_k, seed=options.seed
    )
    with dm.measure("writing") as writing:
        sys.stdout.write(options.prompt)
        for character in text:
            sys.stdout.write(character)
            sys.stdout.flush()
    sys.stdout.write("\n")
    tell(str(writing))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="numpy_gpt.generate", description="Let a model write.")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="what numpy_gpt.train saved into")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="characters to write (200)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: always the likeliest (0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same one gives the same text (0)")
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
