"""AdamW, how fast it goes when, and how far at most."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from numpy_gpt.errors import BadInput
from numpy_gpt.tensor import Array, Tensor

__all__ = ["AdamW", "clip", "rate_at"]


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Only matrices decay. Biases and gains have no directions to choose from, and zero is no better for them.

    Args:
        parameters: what to train, changed in place.
        betas: how much of the running means of the gradient and of its square stays in each step.
        decay: the part of a matrix that each step takes away, times the rate.
        epsilon: added to the root of the mean square.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        decay: float = 0.1,
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters, self.betas, self.decay, self.epsilon = parameters, betas, decay, epsilon
        self.steps = 0
        """Steps that were taken."""
        self.means: dict[str, Array] = {name: np.zeros_like(p.data) for name, p in parameters.items()}
        self.squares: dict[str, Array] = {name: np.zeros_like(p.data) for name, p in parameters.items()}

    def take_up(self, steps: int, means: Mapping[str, Array], squares: Mapping[str, Array]) -> None:
        """Go on from where another one was.

        Raises:
            BadInput: it was one of another model.
        """
        if type(steps) is not int or steps < 0:
            raise BadInput(f"{steps!r} is no number of steps")
        for mine, theirs in ((self.means, means), (self.squares, squares)):
            for name, array in mine.items():
                if name not in theirs or theirs[name].shape != array.shape:
                    raise BadInput(f"the optimiser's running means do not fit {name}")
                array[...] = theirs[name]
        self.steps = steps

    def step(self, rate: float) -> None:
        """Go one step down the gradients, which are gone afterwards. A parameter without one stays as it is."""
        self.steps += 1
        first, second = self.betas
        length = rate / (1 - first**self.steps)
        root = math.sqrt(1 - second**self.steps)
        for name, parameter in self.parameters.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            mean, square = self.means[name], self.squares[name]
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient * gradient - square)
            if parameter.data.ndim >= 2:
                parameter.data *= 1 - rate * self.decay
            parameter.data -= length * mean / (np.sqrt(square) / root + self.epsilon)


def clip(parameters: Mapping[str, Tensor], longest: float) -> float:
    """Scale all gradients so that together, as one vector, they are no longer than this; gives their length before."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    length = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in gradients))
    if length > longest:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad = parameter.grad * (longest / length)
    return length


def rate_at(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """The rate of a step: up in a line for ``warmup`` steps, then down half a cosine to a tenth of the peak.

    Args:
        step: from 0.
        peak: the highest rate.
        warmup: steps.
        steps: of the whole run.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    passed = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * passed)))
