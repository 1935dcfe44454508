"""What the two programs share: options of the engine, lines and vectors in files, errors in words."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

import devicekit as dk

__all__ = ["Parser", "batch_size", "ending", "engine_of", "load_vectors", "read_lines", "save_vectors", "vectors_file"]

COULD_NOT_WORK, INTERRUPTED = 2, 130
DTYPES = ("float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """Options of the engine are there; an error is one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--device", metavar="NAME", default="auto", help="any name that devicekit knows (auto)")
        self.add_argument("--dtype", choices=DTYPES, help="by default the fastest that the device computes itself")
        self.add_argument("--model", metavar="FOLDER", help="a sentence-transformers model instead of the packaged one")
        self.add_argument("--batch-size", metavar="N", type=batch_size, default="auto", help="texts at once (auto)")

    def error(self, message: str) -> NoReturn:
        """Say it, and end."""
        self.exit(COULD_NOT_WORK, f"{self.prog}: {message}\n")


def batch_size(text: str) -> int | str:
    """An option's value."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number from 1 on")
    return int(text)


def ending(prog: str, work: Callable[[], None]) -> int:
    """Do it, and turn how it ended into an exit code: 0 good, 2 could not work, 130 interrupted."""
    try:
        work()
    except dk.DeviceKitError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return COULD_NOT_WORK
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def engine_of(options: argparse.Namespace) -> Any:
    """The engine that the options ask for, with a word on stderr where the device is another one than was asked for."""
    import torch

    from embedding.engine import Engine  # seconds of imports, which --help and a typing error need not wait for

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dk.DeviceFallbackWarning)
        engine = Engine.load(options.model, options.device, dtype)
    if engine.dm.warning:
        sys.stderr.write(f"note: {engine.dm.warning}\n")
    return engine


# -- lines -------------------------------------------------------------------------------------
def read_lines(name: str) -> list[str]:
    """The lines of a UTF-8 file, or of stdin for ``-``. Empty ones count: line n belongs to vector n.

    Raises:
        DeviceKitError: it cannot be read.
    """
    try:
        text = (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise dk.DeviceKitError(f"{name} cannot be read.", why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is no UTF-8"
        raise dk.DeviceKitError(f"{name} cannot be read.", why=why, try_=f"iconv -t UTF-8 {name}") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


# -- vectors -----------------------------------------------------------------------------------
def vectors_file(text: str) -> Path:
    """An option's value: a file that can be written, known before the work is done."""
    path = Path(text)
    if path.suffix not in (".npy", ".safetensors"):
        raise argparse.ArgumentTypeError(f"{text!r} ends neither with .npy nor with .safetensors")
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, or lies in none")
    return path


def save_vectors(vectors: npt.NDArray[np.float32], path: Path) -> None:
    """Write them; a file of this name is replaced as a whole or not at all.

    Raises:
        DeviceKitError: it cannot be written.
    """
    if path.suffix == ".safetensors":
        dk.save_safetensors({"vectors": vectors}, path)
        return
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.save(Path(folder) / path.name, vectors)
            (Path(folder) / path.name).replace(path)
    except OSError as error:
        raise dk.DeviceKitError(f"{path} cannot be written.", why=error.strerror or str(error)) from error


def load_vectors(path: Path) -> npt.NDArray[np.float32]:
    """What :func:`save_vectors` wrote: float32, of shape (texts, width).

    Raises:
        DeviceKitError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            vectors = dk.DeviceManager("numpy").load_safetensors(path)["vectors"]
        else:
            vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise dk.DeviceKitError(f"{path} cannot be read.", why=why, try_="python -m embedding.encode") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        why = f"it is of shape {vectors.shape} and {vectors.dtype}"
        raise dk.DeviceKitError(f"{path} holds no vectors.", why=why, try_="python -m embedding.encode")
    return vectors  # type: ignore[no-any-return]
