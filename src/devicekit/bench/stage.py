"""The device that is measured on, and the work that it is given; one class for torch, one for NumPy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from devicekit.backend import Backend
from devicekit.bench.transformer import HEAD, Shape, Transformer
from devicekit.errors import DeviceKitError
from devicekit.formats import NO, claims
from devicekit.measuring import Measurement

__all__ = ["CHANNELS", "FILTER", "IMAGE", "NumpyStage", "Run", "Stage", "TorchStage", "stage_for"]

Run: TypeAlias = Callable[[], object]

CHANNELS, IMAGE, FILTER = 64, 56, 3
"""The convolution: the first stage of ResNet-50 (He et al., 2015)."""


class Stage:
    """What is the same with and without torch.

    Args:
        backend: of the device.
        device: the framework's name of it.
        index: its number.
        preferred: the dtype that models run in; by default the backend's.
    """

    def __init__(self, backend: Backend, device: Any, index: int, preferred: str = "") -> None:
        self.backend = backend
        self.device = device
        self.index = index
        self.preferred = preferred or _name(backend.preferred_dtype(index))

    def measure(self) -> Measurement:
        """A context that waits for the device."""
        return Measurement(self.backend, self.index, None)

    def quiet(self) -> AbstractContextManager[Any]:
        """A context in which nothing is kept for gradients."""
        return contextlib.nullcontext()

    def claims(self) -> dict[str, str]:
        """Number format, to ``native``, ``emulated`` or ``no``; a format that the backend cannot tell of is missing."""
        return claims(self.backend, self.index)

    def copy(self, dtype: str, count: int) -> Run:
        """One array into another."""
        raise NotImplementedError

    def matmul(self, dtype: str, side: int) -> Run:
        """A product of square matrices."""
        raise NotImplementedError

    def attention(self, dtype: str, batch: int, seq: int, hidden: int) -> Run:
        """Scaled dot-product attention, without a mask."""
        raise self._unknown("attention")

    def convolution(self, dtype: str, batch: int) -> Run:
        """A 3 x 3 convolution of images."""
        raise self._unknown("convolution")

    def model(self, dtype: str, batch: int, seq: int, shape: Shape) -> Run:
        """A forward of a transformer."""
        raise self._unknown("transformer")

    def _unknown(self, what: str) -> DeviceKitError:
        return DeviceKitError(f"the {self.backend.name} backend has no {what}")


class TorchStage(Stage):
    """A device of torch."""

    @property
    def torch(self) -> Any:
        """The torch module."""
        return self.backend.torch

    def quiet(self) -> AbstractContextManager[Any]:
        """Torch's own context for inference."""
        return self.torch.inference_mode()  # type: ignore[no-any-return]

    def normal(self, shape: tuple[int, ...], dtype: str, deviation: float = 1.0) -> Any:
        """Normal numbers, drawn on the device."""
        flat = self.backend.allocate(math.prod(shape), getattr(self.torch, dtype), self.device)
        return flat.normal_(0, deviation).view(shape)

    def tokens(self, batch: int, seq: int, below: int) -> Any:
        """Random whole numbers (batch, seq)."""
        return self.backend.put(self.torch.randint(below, (batch, seq)), self.device)

    def copy(self, dtype: str, count: int) -> Run:
        """Within the device's memory."""
        source, target = self.normal((count,), dtype), self.normal((count,), dtype)
        return lambda: target.copy_(source)

    def matmul(self, dtype: str, side: int) -> Run:
        """``torch.mm``, into memory that is there; for formats that it does not take the backend's own product."""
        if dtype in ("tf32", "float8", "int8"):
            a, b = (self._operand(dtype, side) for _ in range(2))
            return self.backend.product(dtype, a, b, self.index)
        a, b, c = (self.normal((side, side), dtype) for _ in range(3))
        return lambda: self.torch.mm(a, b, out=c)

    def _operand(self, form: str, side: int) -> Any:
        if form == "int8":
            whole = self.torch.randint(-128, 128, (side, side), dtype=self.torch.int8)
            return self.backend.put(whole, self.device)
        made = self.normal((side, side), "float32")
        if form == "tf32":
            return made
        types = (name for name, word in self.claims().items() if name.startswith("float8_e4m3") and word != NO)
        return made.to(getattr(self.torch, next(types, "float8_e4m3fn")))

    def attention(self, dtype: str, batch: int, seq: int, hidden: int) -> Run:
        """With the kernel that torch chooses."""
        query, key, value = (self.normal((batch, hidden // HEAD, seq, HEAD), dtype) for _ in range(3))
        return lambda: self.torch.nn.functional.scaled_dot_product_attention(query, key, value)

    def convolution(self, dtype: str, batch: int, *, channels_last: bool = False) -> Run:
        """As torch lays images out, or with the channels last."""
        layout = self.torch.channels_last if channels_last else self.torch.contiguous_format
        images = self.normal((batch, CHANNELS, IMAGE, IMAGE), dtype).contiguous(memory_format=layout)
        filters = self.normal((CHANNELS, CHANNELS, FILTER, FILTER), dtype, 0.04).contiguous(memory_format=layout)
        return lambda: self.torch.nn.functional.conv2d(images, filters, padding=FILTER // 2)

    def model(self, dtype: str, batch: int, seq: int, shape: Shape) -> Run:
        """Random weights in this dtype, random tokens."""
        made = Transformer(self.torch, shape, lambda sides, deviation: self.normal(sides, dtype, deviation))
        tokens = self.tokens(batch, seq, shape.vocabulary)
        return lambda: made(tokens)


class NumpyStage(Stage):
    """NumPy's arrays."""

    def normal(self, count: int, dtype: str) -> Any:
        """Normal numbers.

        Raises:
            DeviceKitError: NumPy has no such dtype, or knows only its name, from ml_dtypes.
        """
        if self.claims().get(dtype) == NO:
            raise DeviceKitError(f"NumPy does not compute in {dtype}.")
        return self.backend.draw_normal((count,), None, self.device, self.backend.as_dtype(dtype))

    def copy(self, dtype: str, count: int) -> Run:
        """``numpy.copyto``."""
        source, target = self.normal(count, dtype), self.normal(count, dtype)
        copyto = self.backend.host.import_module("numpy").copyto
        return lambda: copyto(target, source)

    def matmul(self, dtype: str, side: int) -> Run:
        """``numpy.matmul``, into memory that is there."""
        a, b, c = (self.normal(side * side, dtype).reshape(side, side) for _ in range(3))
        matmul = self.backend.host.import_module("numpy").matmul
        return lambda: matmul(a, b, out=c)


def stage_for(backend: Backend, device: Any, index: int, preferred: str = "") -> Stage:
    """The stage of a device."""
    return (TorchStage if backend.needs_torch else NumpyStage)(backend, device, index, preferred)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
