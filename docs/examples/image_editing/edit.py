"""Edit one picture: ``python -m image_editing.edit --model FOLDER --image in.png --prompt "..." --out out.png``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import devicekit as dk
from image_editing.command import add_model_options, opened, run
from image_editing.state import in_words, state
from image_editing.wish import Wish, read_picture

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the edited picture; 0 when it is there."""
    parser = argparse.ArgumentParser(prog="python -m image_editing.edit", description=__doc__)
    add_model_options(parser)
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="the picture to edit")
    parser.add_argument("--prompt", required=True, help="what to do with it")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="for the result, such as out.png")
    parser.add_argument("--seed", type=int, default=Wish.seed, help="the same seed gives the same picture")
    parser.add_argument("--steps", type=int, default=Wish.steps, help=f"default: {Wish.steps}")
    parser.add_argument("--strength", type=float, default=Wish.strength, help=f"default: {Wish.strength}")
    parser.add_argument("--guidance", type=float, default=Wish.guidance, help=f"default: {Wish.guidance}")
    parser.add_argument("--device-noise", action="store_true", help="draw the noise on the device, not on the CPU")
    arguments = parser.parse_args(argv)
    return run(lambda: _edit(arguments))


def _edit(arguments: argparse.Namespace) -> int:
    figures = (arguments.seed, arguments.steps, arguments.strength, arguments.guidance, arguments.device_noise)
    wish, picture = Wish(arguments.prompt, *figures), read_picture(arguments.image)
    _check_format(arguments.out)
    editor = opened(arguments)
    edited = editor.edit(picture, wish)
    edited.picture.save(arguments.out)
    lines = [f"{name}: {words}" for name, words in state(editor.dm).items()]
    lines += [f"memory mode: {line}" for line in editor.memory_words.splitlines()]
    lines += [f"LoRA: {len(editor.lora)} weights, times {arguments.lora_scale:g}"] if editor.lora else []
    lines += [f"edited in {edited.seconds:.2f} s, at most {in_words(edited.peak_memory)}: {arguments.out}"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _check_format(path: Path) -> None:
    """Before minutes are spent on a picture that cannot be written."""
    if path.suffix.lower() not in Image.registered_extensions():
        raise dk.DeviceKitError(f"{path.name} is no name for a picture.", why="Pillow goes by its end", try_="out.png")
    if not path.absolute().parent.is_dir():
        raise dk.DeviceKitError(f"There is no folder {path.parent}.")


if __name__ == "__main__":
    sys.exit(main())
