"""The functions of a transformer, each with its gradient written out, which is faster than from parts.

Gradients are with respect to the tensors; ``ids``, ``targets`` and ``generator`` have none.
"""

from __future__ import annotations

import math

import numpy as np

from numpy_gpt.tensor import Array, Tensor, record

__all__ = ["cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "softmax"]

ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715  # Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2


def softmax(x: Tensor) -> Tensor:
    """Along the last dimension: positive numbers that add up to one. Minus infinity becomes zero."""
    y = np.exp(x.data - x.data.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    return record(y, (x, lambda g: y * (g - (g * y).sum(-1, keepdims=True))))


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Along the last dimension: mean zero and variance one, then ``gain`` times that plus ``bias``.

    Args:
        x: ``(..., width)``.
        gain: ``(width,)``.
        bias: ``(width,)``.
        epsilon: added to the variance.
    """
    centred = x.data - x.data.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    normal = centred * scale

    def pull(g: Array) -> Array:
        g = g * gain.data
        back: Array = scale * (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True))
        return back

    return record(normal * gain.data + bias.data, (x, pull), (gain, lambda g: g * normal), (bias, lambda g: g))


def gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit, in the approximation by tanh that GPT-2 has; NumPy has no error function."""
    a = x.data
    inner = a * a
    inner *= ROOT_2_OVER_PI * CUBIC
    inner += ROOT_2_OVER_PI
    inner *= a
    part = np.tanh(inner, out=inner)  # in place, as all of this: the widest arrays of the model are these
    part += 1
    part *= 0.5

    def pull(g: Array) -> Array:
        slope: Array = a * a
        slope *= 6 * ROOT_2_OVER_PI * CUBIC
        slope += 2 * ROOT_2_OVER_PI
        slope *= a
        slope *= part
        slope *= 1 - part
        slope += part
        slope *= g
        return slope

    return record(a * part, (x, pull))


def embedding(weight: Tensor, ids: Array) -> Tensor:
    """Rows by their number.

    Args:
        weight: ``(rows, width)``.
        ids: whole numbers from 0, of any shape.

    Returns:
        ``(*ids.shape, width)``.
    """

    def pull(g: Array) -> Array:
        order = np.argsort(ids, axis=None, kind="stable")
        rows, begins = np.unique(ids.reshape(-1)[order], return_index=True)
        whole = np.zeros_like(weight.data)
        if rows.size:  # sums of neighbours: several times as fast as np.add.at
            whole[rows] = np.add.reduceat(g.reshape(ids.size, -1)[order], begins)
        return whole

    return record(weight.data[ids], (weight, pull))


def cross_entropy(logits: Tensor, targets: Array) -> Tensor:
    """The mean of minus the logarithm of the probability that each target was given, in nats.

    Args:
        logits: ``(..., classes)``.
        targets: whole numbers below ``classes``, of shape ``(...)``.
    """
    targets = targets[..., None]
    shifted = logits.data - logits.data.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True)
    surprise = np.log(total) - np.take_along_axis(shifted, targets, -1)

    def pull(g: Array) -> Array:
        slope: Array = np.exp(shifted) / total
        np.put_along_axis(slope, targets, np.take_along_axis(slope, targets, -1) - 1, -1)
        return slope * (g / targets.size)

    return record(surprise.mean(), (logits, pull))


def dropout(x: Tensor, rate: float, generator: np.random.Generator | None) -> Tensor:
    """Zero for a part ``rate`` of the numbers, and the others larger by as much; without a generator ``x`` itself."""
    if generator is None or rate == 0:
        return x
    kept = (generator.random(x.shape, np.float32) >= rate).astype(x.data.dtype) * (1 / (1 - rate))
    return x * kept
