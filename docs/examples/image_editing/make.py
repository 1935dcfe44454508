"""Make a tiny model, a LoRA file for it and a picture to edit: ``python -m image_editing.make --out FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import devicekit as dk
from image_editing.command import run
from image_editing.tiny import make_lora, make_pipeline, sample_picture

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files; 0 when they are there."""
    parser = argparse.ArgumentParser(prog="python -m image_editing.make", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="for the model")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    parser.add_argument("--lora", type=Path, metavar="FILE", help="also write a random LoRA for it")
    parser.add_argument("--rank", type=int, default=2, help="of the LoRA (default: 2)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw a picture to edit")
    arguments = parser.parse_args(argv)
    return run(lambda: _make(arguments))


def _make(arguments: argparse.Namespace) -> int:
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        why = "something else is there already"
        raise dk.DeviceKitError(f"{arguments.out} is not written to.", why=why, try_="a folder that is new or empty")
    if arguments.rank < 1 or arguments.seed < 0:
        raise dk.DeviceKitError("A rank is at least 1, and a seed at least 0.")
    pipe = make_pipeline(arguments.seed)
    pipe.save_pretrained(arguments.out, safe_serialization=True)
    if arguments.lora is not None:
        factors = make_lora(pipe, arguments.rank, arguments.seed)
        dk.save_safetensors(factors, arguments.lora, metadata={"format": "pt"})
    if arguments.picture is not None:
        sample_picture().save(arguments.picture)
    made = [arguments.out, *(path for path in (arguments.lora, arguments.picture) if path is not None)]
    sys.stdout.write("".join(f"made {path}\n" for path in made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
