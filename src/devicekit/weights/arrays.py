"""What reading weights asks of a framework, of torch's tensors and of NumPy's arrays alike.

``flat`` is a one-dimensional, contiguous tensor or array. Everything here lies on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

from devicekit.errors import WeightsError
from devicekit.host import Host
from devicekit.staging import copy_alone
from devicekit.weights.formats import Format
from devicekit.weights.pages import bytes_at

__all__ = ["Arrays", "NumpyArrays", "TorchArrays"]


class Arrays(Protocol):
    """One framework."""

    def dtype(self, stored: Format) -> Any:
        """The framework's dtype of a format.

        Raises:
            WeightsError: it has none; without the file's name.
        """

    def is_floating(self, dtype: Any) -> bool:
        """It is a dtype of real, fractional numbers."""

    def cut(self, buffer: Any, dtype: Any, offset: int, shape: Sequence[int], count: int) -> Any:
        """A tensor of ``count`` > 0 elements over a part of a buffer, whose owner it keeps alive; nothing is copied."""

    def empty(self, count: int, dtype: Any) -> Any:
        """Fresh flat memory, its contents undefined."""

    def bytes_of(self, flat: Any) -> memoryview:
        """Its bytes, to be written to."""

    def seen_as(self, raw: Any, dtype: Any) -> Any:
        """Flat bytes as numbers."""

    def cast(self, target: Any, source: Any) -> None:
        """Copy one flat tensor into another of the same length and of any dtype, on this thread alone."""

    def plain(self) -> contextlib.AbstractContextManager[object]:
        """Inside, tensors are made as ordinary ones, whatever mode the caller is in."""


class TorchArrays:
    """Tensors of torch on the CPU."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def dtype(self, stored: Format) -> Any:
        """By its name."""
        found = getattr(self.torch, stored.torch, None) if stored.torch else None
        if found is None:
            why = f"torch {self.torch.__version__} has no dtype for {stored.name}"
            raise WeightsError("Weights cannot be loaded.", why=why, try_="a newer torch, or keys= to leave them out")
        return found

    def is_floating(self, dtype: Any) -> bool:
        """As torch says."""
        return bool(dtype.is_floating_point)

    def cut(self, buffer: Any, dtype: Any, offset: int, shape: Sequence[int], count: int) -> Any:
        """Over the buffer, with a storage of its own."""
        return self.torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).view(shape)

    def empty(self, count: int, dtype: Any) -> Any:
        """As torch makes it."""
        return self.torch.empty(count, dtype=dtype, device="cpu")

    def bytes_of(self, flat: Any) -> memoryview:
        """By its address."""
        return bytes_at(flat.data_ptr(), flat.nbytes)

    def seen_as(self, raw: Any, dtype: Any) -> Any:
        """A view."""
        return raw.view(dtype)

    def cast(self, target: Any, source: Any) -> None:
        """In pieces that torch does not spread over threads."""
        copy_alone(self.torch, target, source)

    @contextlib.contextmanager
    def plain(self) -> Any:
        """Not inside inference mode or no_grad: a view made there cannot be changed in place with a graph later."""
        with self.torch.inference_mode(False), self.torch.enable_grad():
            yield


class NumpyArrays:
    """Arrays of NumPy; the formats that it does not know come from ml_dtypes, where that is installed."""

    def __init__(self, host: Host) -> None:
        self.numpy = host.import_module("numpy")
        self._host = host

    def dtype(self, stored: Format) -> Any:
        """By its name, of NumPy or of ml_dtypes."""
        if stored.numpy:
            return self.numpy.dtype(stored.numpy)
        more = self._host.module("ml_dtypes") if stored.ml_dtypes else None
        found = getattr(more, stored.ml_dtypes, None) if more is not None else None
        if found is None:
            why = f"NumPy has no dtype for {stored.name}"
            install = "pip install ml_dtypes" if more is None else "pip install --upgrade ml_dtypes"
            fix = install if stored.ml_dtypes else "keys= to leave them out"
            raise WeightsError("Weights cannot be loaded.", why=why, try_=fix)
        return self.numpy.dtype(found)

    def is_floating(self, dtype: Any) -> bool:
        """NumPy's own, and those of ml_dtypes, which NumPy cannot tell from structures."""
        return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)

    def cut(self, buffer: Any, dtype: Any, offset: int, shape: Sequence[int], count: int) -> Any:
        """Over the buffer."""
        return self.numpy.frombuffer(buffer, dtype=dtype, count=count, offset=offset).reshape(shape)

    def empty(self, count: int, dtype: Any) -> Any:
        """As NumPy makes it."""
        return self.numpy.empty(count, dtype=dtype)

    def bytes_of(self, flat: Any) -> memoryview:
        """By its address: ml_dtypes has no buffer protocol."""
        return bytes_at(flat.ctypes.data, flat.nbytes)

    def seen_as(self, raw: Any, dtype: Any) -> Any:
        """A view."""
        return raw.view(dtype)

    def cast(self, target: Any, source: Any) -> None:
        """NumPy copies on the calling thread anyway."""
        self.numpy.copyto(target, source, casting="unsafe")

    def plain(self) -> contextlib.AbstractContextManager[object]:
        """A cast that ends in infinity or starts from NaN is no reason for a warning, as in torch."""
        return self.numpy.errstate(over="ignore", under="ignore", invalid="ignore")  # type: ignore[no-any-return]
