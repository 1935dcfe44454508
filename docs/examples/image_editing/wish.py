"""What is asked for: a picture and words, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

import devicekit as dk

__all__ = ["Wish", "read_picture"]

NARROWEST = 8
"""One side may be this many times as long as the other; beyond that hardly a pixel of the shorter one is left."""


@dataclass(frozen=True)
class Wish:
    """How a picture is to be edited.

    Raises:
        DeviceKitError: a figure makes no sense, or there are no words.
    """

    prompt: str
    seed: int = 0
    steps: int = 8
    strength: float = 0.6
    """0 to 1: how far from the picture it may go; at 1 nothing of it is left."""
    guidance: float = 3.0
    """How closely the words are followed; 1: as closely as the model does by itself, in half the time."""
    device_noise: bool = False
    """Let the device's own generator draw the noise: the picture is another one on every kind of device."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise dk.DeviceKitError("There is no prompt.", why="the words say what to do", try_="make it evening")
        for name, low, high in (("seed", 0, 2**63 - 1), ("steps", 1, 1000), ("guidance", 1, 100)):
            figure = getattr(self, name)
            if not low <= figure <= high:
                raise dk.DeviceKitError(f"{name} is {figure:g}.", why=f"it goes from {low} to {high}")
        if not 0 < self.strength <= 1:
            raise dk.DeviceKitError(f"strength is {self.strength:g}.", why="it goes from above 0 to 1", try_="0.6")


def read_picture(path: str | Path) -> Image.Image:
    """A picture in RGB, turned the way the camera was held.

    Raises:
        DeviceKitError: it is not there, is no picture, is cut off, or is too large or too narrow.
    """
    name = Path(path).name
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise dk.DeviceKitError(f"There is no file {path}.") from error
    except UnidentifiedImageError as error:
        what = f"{name} is no picture."
        raise dk.DeviceKitError(what, why="Pillow knows no format like it", try_="a PNG or JPEG file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise dk.DeviceKitError(f"{name} cannot be read.", why=str(error)) from error
    if max(picture.size) > NARROWEST * min(picture.size):
        size = f"it has {picture.width} x {picture.height} pixels"
        raise dk.DeviceKitError(f"{name} is too narrow.", why=size, try_=f"sides of at most 1 to {NARROWEST}")
    return picture
