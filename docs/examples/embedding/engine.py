"""The engine: texts in, unit vectors out, in the caller's order, whatever the device and however little its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import devicekit as dk
from embedding.batches import Limit, longest_first
from embedding.linear import pack_if_faster
from embedding.model import Model, load_model, packaged

__all__ = ["Engine"]

PER_THREAD, MOST = 512, 4096
"""Tokens of a batch on a processor: for each thread, and in all. What they fill (6 KiB each in MiniLM's widest layer)
then stays near the cores' caches, and below the 32 MiB from which glibc asks the system for new pages each time."""
LIKE = 0.75
"""Texts share a batch from this part of its longest on: padding shorter ones would cost more than another batch."""
FIRST, LARGEST = 32, 1024
"""Texts of full length with which an accelerator's search begins and ends."""


class Engine:
    """A model on a device. Made by :meth:`load`.

    Args:
        dm: where, and in which dtype.
        model: what computes.
        packed: its linear layers go through oneDNN.
    """

    def __init__(self, dm: dk.DeviceManager, model: Model, *, packed: bool = False) -> None:
        self.dm = dm
        self.model = model
        self.packed = packed
        self._found: Limit | None = None

    @classmethod
    def load(
        cls, folder: str | Path | None = None, device: object = "auto", dtype: torch.dtype | None = None
    ) -> Engine:
        """The model of a folder, or the packaged all-MiniLM-L6-v2, ready to encode.

        Args:
            folder: a sentence-transformers model: a BERT with mean pooling.
            device: any name that devicekit knows.
            dtype: what the model computes in; by default the fastest that the device computes itself.

        Raises:
            DeviceKitError: there is no torch for this device, or no such model in the folder.
        """
        dm = dk.DeviceManager(device, dtype=dtype)
        if dm.backend == "numpy":
            raise dk.DeviceKitError("The engine cannot run on NumPy.", why="its model is torch's", try_='device="cpu"')
        model = load_model(packaged() if folder is None else Path(folder), dm)
        packed = not dm.is_accelerator and dm.dtype == torch.float32 and pack_if_faster(model.network)
        return cls(dm, model, packed=packed)

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        batch_size: int | Literal["auto"] = "auto",
        show_progress: bool = False,
        normalize: bool = True,
    ) -> npt.NDArray[np.float32]:
        """A vector for each text: float32, of shape (texts, width), in the order of the texts.

        Args:
            texts: strings, empty ones too. What is longer than the model's limit is cut.
            batch_size: so many texts at once; ``"auto"``: as many as are fastest on a processor, and as fit on an
                accelerator. Where memory runs out, half as many are tried.
            show_progress: a bar on stderr.
            normalize: to length 1, so that a product of two vectors is their cosine.

        Raises:
            DeviceKitError: there is something that is no text, or the batch size is none.
            BatchSizeError: the memory does not hold a single text.
        """
        tokens = self._tokenized(texts)
        order, done = longest_first([len(each) for each in tokens]), 0
        lengths = [len(tokens[position]) for position in order]
        limit = self._limit(batch_size, sum(lengths))
        vectors = np.empty((len(tokens), self.model.width), np.float32)
        with _progress(show_progress, len(order)) as tell:
            while done < len(order):
                chosen = order[done : done + limit.count(lengths, done)]
                made = self._attempt([tokens[position] for position in chosen], normalize)
                if made is None:
                    limit = self._lower(batch_size, limit.below(len(chosen), lengths[done]))
                    continue
                vectors[chosen] = made.numpy()
                done += len(chosen)
                tell(len(chosen))
        return vectors

    def report(self) -> dict[str, Any]:
        """What runs where, JSON-able, for a health page: all of ``dm.report()``, and the engine's own choices."""
        own = {"max_tokens": self.model.max_tokens, "width": self.model.width, "packed_linear": self.packed}
        usual = self._usual()
        return {**self.dm.report(), **own, "batch_tokens": usual.tokens if usual else None}

    # -- texts ---------------------------------------------------------------------------------
    def _tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each, special tokens included, cut to the model's limit."""
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise dk.DeviceKitError(f"{_short(texts)} is no list of texts.", try_="engine.encode([text])")
        texts = list(texts)
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise dk.DeviceKitError(f"Text {position} is no string.", why=f"it is {_short(text)}", try_="str(text)")
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                why = "it has half of a surrogate pair, which stands for nothing"
                raise dk.DeviceKitError(f"Text {position} is no Unicode: {_short(text)}.", why=why)
        if not texts:
            return []
        cut = {"truncation": True, "max_length": self.model.max_tokens}
        without = {"return_attention_mask": False, "return_token_type_ids": False}
        return self.model.tokenizer(texts, **cut, **without)["input_ids"]  # type: ignore[no-any-return]

    # -- batches -------------------------------------------------------------------------------
    def _limit(self, batch_size: object, total: int) -> Limit:
        if batch_size == "auto":
            return self._usual() or self._searched(total)
        if type(batch_size) is not int or batch_size < 1:
            raise dk.DeviceKitError(f"{batch_size!r} is no batch size.", try_='a whole number from 1 on, or "auto"')
        return Limit(texts=batch_size)

    def _usual(self) -> Limit | None:
        """What ``auto`` means; None on an accelerator where it was not looked for yet."""
        if self.dm.is_accelerator or self._found is not None:
            return self._found
        return Limit(tokens=min(PER_THREAD * torch.get_num_threads(), MOST), like=LIKE)

    def _searched(self, total: int) -> Limit:
        """What fits on the accelerator, found with texts of full length, once; for a few texts it is not worth it."""
        length, pad = self.model.max_tokens, self.model.tokenizer.pad_token_id
        if total <= FIRST * length:
            return Limit(tokens=FIRST * length, like=LIKE)
        found = self.dm.find_batch_size(
            # One is shorter: with a mask, attention may take more memory.
            lambda size: self._forward([*([[pad] * length] * (size - 1)), [pad] * (length - 1)]),
            start=FIRST,
            limit=LARGEST,
            progress=False,
        )
        self._found = Limit(tokens=found * length, like=LIKE)
        return self._found

    def _lower(self, batch_size: object, limit: Limit) -> Limit:
        """The next call with ``auto`` begins where this one came down to."""
        if batch_size == "auto":
            self._found = limit
        return limit

    # -- computing -----------------------------------------------------------------------------
    def _attempt(self, tokens: list[list[int]], normalize: bool) -> torch.Tensor | None:
        """The vectors, on the host; None where the memory ran out and fewer texts may fit."""
        try:
            return self._forward(tokens, normalize)
        except Exception as error:
            if not dk.is_out_of_memory(error):
                raise
            if len(tokens) == 1:
                raise dk.BatchSizeError(
                    f"Not even one text fits on {self.dm.device}.",
                    why=f"it has {len(tokens[0])} tokens, and memory ran out: {str(error).partition(chr(10))[0]}",
                    try_="another device, or dtype=torch.float16",
                ) from error
        self.dm.empty_cache()  # here the error is gone, and with it the tensors that its frames held
        return None

    def _forward(self, tokens: list[list[int]], normalize: bool = True) -> torch.Tensor:
        """The mean over each text's tokens, in float32 whatever the model computes in, on the host."""
        lengths = torch.tensor([len(each) for each in tokens])
        longest = int(lengths.max())
        pad = self.model.tokenizer.pad_token_id
        ids = torch.tensor([each + [pad] * (longest - len(each)) for each in tokens])
        mask = None if bool((lengths == longest).all()) else (torch.arange(longest) < lengths[:, None]).long()
        ids, mask, lengths = self.dm.to((ids, mask, lengths))
        hidden = self.model.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        total = hidden.sum(1) if mask is None else (hidden * mask[:, :, None]).sum(1)
        mean = total / lengths[:, None]
        return (torch.nn.functional.normalize(mean, dim=1) if normalize else mean).cpu()


def _short(value: object) -> str:
    told = ascii(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


@contextlib.contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[int], object]]:
    """A function to be told of texts that are done."""
    if not shown:
        yield lambda _: None
        return
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda count: bar.advance(task, count)
