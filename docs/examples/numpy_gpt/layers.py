"""Layers, and where their parameters come from: drawn for a new model, or taken from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import devicekit as dk
from numpy_gpt.errors import BadInput
from numpy_gpt.functions import layer_norm
from numpy_gpt.tensor import Array, Tensor

__all__ = ["LayerNorm", "Linear", "Parameters"]


class Parameters(dict[str, Tensor]):
    """The trainable tensors of a model by name, in the order in which the layers ask for them.

    A new model's are drawn with ``dm.randn``, so a seed means the same numbers on every host. A stored model's are
    taken as they are; nothing is drawn or allocated for what the file does not have.

    Args:
        dm: the device and the number format.
        seed: for a new model.
        stored: the arrays of a stored one, which are used and not copied.
    """

    def __init__(self, dm: dk.DeviceManager, seed: int = 0, stored: Mapping[str, Array] | None = None) -> None:
        super().__init__()
        self.dm = dm
        self.dtype: Any = dm.dtype
        """NumPy's: on this device the facade gives arrays, dtypes and generators of NumPy where its types say torch."""
        self._stored = stored
        self._seeds: Any = dm.create_generator(seed)

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 0.02) -> Tensor:
        """Drawn from a normal distribution with mean zero."""
        seed = int(self._seeds.integers(2**32))
        return self._keep(name, shape, lambda: self.dm.randn(shape, seed, dtype=self.dtype) * deviation)

    def constant(self, name: str, shape: tuple[int, ...], value: float) -> Tensor:
        """The same number everywhere."""
        return self._keep(name, shape, lambda: np.full(shape, value, self.dtype))

    def _keep(self, name: str, shape: tuple[int, ...], draw: Callable[[], Any]) -> Tensor:
        if self._stored is None:
            array: Array = draw()
        elif name not in self._stored:
            raise BadInput(f"the weights have no {name}")
        else:
            array = self._stored[name]
        if (array.shape, array.dtype) != (shape, self.dtype):
            what = f"is {array.dtype} of shape {array.shape}"
            raise BadInput(f"{name} {what} in the weights, and the model needs {self.dtype} of shape {shape}")
        self[name] = tensor = Tensor(array, trainable=True)
        return tensor

    def complete(self) -> None:
        """Say that no layer will ask any more.

        Raises:
            BadInput: the weights have something that none has asked for.
        """
        unknown = sorted((self._stored or {}).keys() - self.keys())
        if unknown:
            raise BadInput(f"the weights have {unknown[0]}, and the model does not")


class Linear:
    """``x @ weight + bias``, for ``x`` of shape ``(..., inputs)``."""

    def __init__(
        self,
        parameters: Parameters,
        name: str,
        inputs: int,
        outputs: int,
        *,
        deviation: float = 0.02,
        bias: bool = True,
    ) -> None:
        self.weight = parameters.normal(f"{name}.weight", (inputs, outputs), deviation)
        self.bias = parameters.constant(f"{name}.bias", (outputs,), 0.0) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., outputs)``."""
        # One product of two matrices instead of one for each of the batch, and so in the way back.
        y = x.reshape(-1, x.shape[-1]) @ self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])


class LayerNorm:
    """Normal numbers along the last dimension, with a gain and a bias that are learnt."""

    def __init__(self, parameters: Parameters, name: str, width: int) -> None:
        self.gain = parameters.constant(f"{name}.gain", (width,), 1.0)
        self.bias = parameters.constant(f"{name}.bias", (width,), 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        return layer_norm(x, self.gain, self.bias)
