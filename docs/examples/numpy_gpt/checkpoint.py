"""A model and its training run as one safetensors file, which is replaced whole or not at all, and runs no code.

The tensors are the parameters (``model.``) and the optimiser's running means (``mean.``, ``square.``). The metadata has
the rest as JSON: the sizes, the alphabet, the settings, the step, and the state of the generator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import devicekit as dk
from numpy_gpt.errors import BadInput
from numpy_gpt.layers import Parameters
from numpy_gpt.model import GPT, Shape
from numpy_gpt.tensor import Array
from numpy_gpt.tokenizer import Tokenizer
from numpy_gpt.training import Corpus, Run, Settings

__all__ = ["exists", "load", "resume", "save"]

FILE = "model.safetensors"


def exists(folder: Path) -> bool:
    """Whether a model was saved there."""
    return (folder / FILE).exists()


def save(folder: Path, dm: dk.DeviceManager, run: Run, tokenizer: Tokenizer) -> Path:
    """Save all that the run needs to go on; the file.

    Raises:
        BadInput: the folder cannot be made.
        devicekit.WeightsError: the system refused; what was there before is still there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder {folder} cannot be made: {error.strerror}") from None
    optimizer = run.optimizer
    tensors = {f"model.{name}": parameter.data for name, parameter in optimizer.parameters.items()}
    tensors |= {f"mean.{name}": mean for name, mean in optimizer.means.items()}
    tensors |= {f"square.{name}": square for name, square in optimizer.squares.items()}
    told = {
        "shape": asdict(run.model.shape),
        "characters": tokenizer.characters,
        "settings": asdict(run.settings),
        "step": run.step,
        "generator": run.generator.bit_generator.state,
        "text": run.corpus.fingerprint,
    }
    return dm.save_safetensors(tensors, folder / FILE, metadata={"numpy_gpt": json.dumps(told)})


def load(folder: Path, dm: dk.DeviceManager) -> tuple[GPT, Tokenizer]:
    """The model alone, to be used.

    Raises:
        BadInput: there is none, or it is another program's.
        devicekit.WeightsError: the file is broken.
    """
    stored = _read(folder, dm, "model.*")
    with _understood(folder):
        told = json.loads(stored.metadata["numpy_gpt"])
        tokenizer, shape = Tokenizer(told["characters"]), Shape(**told["shape"])
        if len(tokenizer.characters) != shape.vocabulary:
            raise BadInput("its alphabet is not as long as its table of characters")
        return GPT(shape, Parameters(dm, stored=_part(stored, "model."))), tokenizer


def resume(folder: Path, dm: dk.DeviceManager, text: str) -> tuple[Run, Tokenizer]:
    """The run as it was when it was saved.

    Args:
        folder: what ``save`` was given.
        dm: the device.
        text: the one that the run began with.

    Raises:
        BadInput: there is none, or it is another program's, or the text is another one.
        devicekit.WeightsError: the file is broken.
    """
    stored = _read(folder, dm, None)
    with _understood(folder):
        told = json.loads(stored.metadata["numpy_gpt"])
        tokenizer, shape, settings = Tokenizer(told["characters"]), Shape(**told["shape"]), Settings(**told["settings"])
        fingerprint = told["text"]
    corpus = Corpus(text, tokenizer, shape.context)
    if corpus.fingerprint != fingerprint:
        raise BadInput("this is not the text that the run began with: try the same --data")
    with _understood(folder):
        run = Run(dm, shape, settings, corpus, _part(stored, "model."))
        run.generator.bit_generator.state = told["generator"]
        run.optimizer.take_up(told["step"], _part(stored, "mean."), _part(stored, "square."))
    return run, tokenizer


def _read(folder: Path, dm: dk.DeviceManager, keys: str | None) -> dk.Weights:
    if not exists(folder):
        raise BadInput(f"there is no model in {folder}: python -m numpy_gpt.train --out {folder} makes one")
    # In memory of its own: a file that somebody overwrites in place changes what was mapped from it.
    return dm.load_safetensors(folder / FILE, dtype=dm.dtype, keys=keys, copy=True)


def _part(stored: dk.Weights, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """What in a stranger's file is not as this program writes it is told in a sentence."""
    try:
        yield
    except (BadInput, AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"{folder / FILE} is no model of this program: {missing}") from None
