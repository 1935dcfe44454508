"""A training run that can be stopped after any step, and goes on from there as if nothing had been."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import devicekit as dk
from numpy_gpt.errors import BadInput
from numpy_gpt.functions import cross_entropy
from numpy_gpt.layers import Parameters
from numpy_gpt.model import GPT, Shape
from numpy_gpt.optimizer import AdamW, clip, rate_at
from numpy_gpt.tensor import Array, forgetting
from numpy_gpt.tokenizer import Tokenizer

__all__ = ["Corpus", "Run", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Raises:
        BadInput: nobody can train like this.
    """

    steps: int = 400
    """Of the whole run; the rate falls until then."""
    batch: int = 8
    rate: float = 5e-3
    """The highest rate of the optimiser."""
    warmup: int = 20
    """Steps until it is reached."""
    decay: float = 0.1
    """Of the matrices."""
    longest: float = 1.0
    """The longest gradient, all parameters as one vector."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("seed", 0)):
            count = getattr(self, name)
            if type(count) is not int or not least <= count < 2**32:
                raise BadInput(f"{name} must be a whole number from {least}, and is {count!r}")
        for name in ("rate", "decay", "longest"):
            number = getattr(self, name)
            if not 0 <= number < math.inf:
                raise BadInput(f"{name} must be zero or more, and is {number!r}")


class Corpus:
    """A text as numbers: nine tenths to learn from, the last tenth to check with.

    Args:
        text: at least ten times as long as the context, and a little more.
        tokenizer: it knows all of its characters.
        context: characters that the model sees at once.

    Raises:
        BadInput: the text is too short, or has other characters.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, context: int) -> None:
        least = 10 * (context + 1)
        if len(text) < least:
            raise BadInput(f"the text has {len(text)} characters, and a context of {context} needs at least {least}")
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        """Tells this text from others."""
        self.context = context
        ids = tokenizer.encode(text)
        border = len(ids) - len(ids) // 10
        self._learnt, self._held_out = ids[:border], ids[border:]

    def drawn(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Pieces from anywhere, and for each character of them the next one; both ``(count, context)``."""
        return self._at(self._learnt, generator.integers(len(self._learnt) - self.context, size=count))

    def checks(self, count: int) -> tuple[Array, Array]:
        """The same pieces of the held out part each time, as ``drawn`` gives them."""
        last = len(self._held_out) - self.context - 1
        return self._at(self._held_out, np.linspace(0, last, count).astype(np.int64))

    def _at(self, ids: Array, begins: Array) -> tuple[Array, Array]:
        places = begins[:, None] + np.arange(self.context)
        return ids[places], ids[places + 1]


class Run:
    """A model with all that the next step depends on: the optimiser, and the generator that batches are drawn with.

    Args:
        dm: the device.
        shape: the model's sizes.
        settings: how it is trained.
        corpus: what it is trained on.
        stored: the parameters of a run that goes on; without them a model is drawn.
    """

    def __init__(
        self,
        dm: dk.DeviceManager,
        shape: Shape,
        settings: Settings,
        corpus: Corpus,
        stored: dict[str, Array] | None = None,
    ) -> None:
        self.settings, self.corpus = settings, corpus
        self.model = GPT(shape, Parameters(dm, settings.seed, stored))
        self.optimizer = AdamW(self.model.parameters, decay=settings.decay)
        self.generator: Any = dm.create_generator(settings.seed)

    @property
    def step(self) -> int:
        """Steps that were done."""
        return self.optimizer.steps

    def advance(self) -> float:
        """Take one step; gives the loss before it, in nats a character.

        Raises:
            BadInput: it has diverged.
        """
        ids, targets = self.corpus.drawn(self.settings.batch, self.generator)
        loss = cross_entropy(self.model(ids, self.generator), targets)
        if not np.isfinite(loss.data):
            raise BadInput(f"the loss is {loss.data} after {self.step} steps: try a smaller --rate")
        loss.backward()
        clip(self.model.parameters, self.settings.longest)
        settings = self.settings
        rate = rate_at(self.step, peak=settings.rate, warmup=settings.warmup, steps=settings.steps)
        self.optimizer.step(rate)
        return float(loss.data)

    def check(self) -> float:
        """The loss on text that is not learnt from, in nats a character."""
        ids, targets = self.corpus.checks(64)
        with forgetting():
            return float(cross_entropy(self.model(ids), targets).data)

    def lasting(self, steps: int) -> None:
        """Make the run longer or shorter.

        Raises:
            BadInput: it is that far already.
        """
        self.settings = dataclasses.replace(self.settings, steps=steps)
        if self.step >= steps:
            raise BadInput(f"the run has {self.step} steps already: try --steps with more than that")
