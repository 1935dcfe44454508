"""A trained model as a folder: a configuration in JSON, and two files of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import devicekit as dk
from forecasting.model import CandleModel, Config
from forecasting.tokenizer import CandleTokenizer

__all__ = ["ModelError", "build", "load", "read_config", "save"]

CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer.safetensors"


class ModelError(Exception):
    """A folder that holds no model of this kind; the text says why."""


def build(config: Config) -> tuple[CandleModel, CandleTokenizer]:
    """Model and tokenizer of this size, with random weights."""
    tokenizer = CandleTokenizer(config.levels, config.width)
    return CandleModel(config, tokenizer.vocabulary), tokenizer


def save(path: Path, model: CandleModel, tokenizer: CandleTokenizer, training: Mapping[str, Any]) -> None:
    """Write all of it; ``training`` says how it came about. The configuration comes last: with it the folder is whole.

    Raises:
        devicekit.WeightsError: the weights cannot be written.
        OSError: the configuration cannot.
    """
    path.mkdir(parents=True, exist_ok=True)
    dk.save_safetensors(model, path / MODEL)
    dk.save_safetensors(tokenizer, path / TOKENIZER)
    told = {"model": asdict(model.config), "training": dict(training)}
    (path / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def load(path: Path, dm: dk.DeviceManager) -> tuple[CandleModel, CandleTokenizer]:
    """Model and tokenizer, on the manager's device.

    Raises:
        ModelError: the configuration is missing or makes no sense.
        devicekit.WeightsError: the weights are missing, broken, or of another size.
    """
    model, tokenizer = build(read_config(path))
    for module, name in ((model, MODEL), (tokenizer, TOKENIZER)):
        # A copy: who serves for weeks does not want the file to change below it.
        dm.load_safetensors(path / name, into=module, copy=True)
    return model, tokenizer


def read_config(path: Path) -> Config:
    """The sizes that a folder tells.

    Raises:
        ModelError: they are missing, or make no sense.
    """
    file = path / CONFIG
    try:
        told = json.loads(file.read_text(encoding="utf-8"))["model"]
        return _checked(Config(**{**told, "levels": tuple(told["levels"])}))
    except FileNotFoundError:
        raise ModelError(f"{path} holds no model: there is no {CONFIG} in it") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{file} describes no model of this kind: {type(error).__name__}: {error}") from error


def _checked(config: Config) -> Config:
    sizes = [*config.levels, *(getattr(config, field.name) for field in fields(config) if field.name != "levels")]
    if not all(type(size) is int and 0 < size <= 2**16 for size in sizes):
        raise ValueError("a size is a whole number from 1 to 65536")
    if not config.levels or any(level < 3 or level % 2 == 0 for level in config.levels):
        raise ValueError("levels are odd numbers from 3")
    if config.width % config.heads:
        raise ValueError(f"{config.heads} heads cannot share a width of {config.width}")
    return config
