"""What a safetensors file keeps of a torch tensor or a NumPy array: its format, its shape and its bytes.

The bytes are taken part by part while they are written. What has to be copied for that, from a device or into the
order of elements, takes the memory of one part; whatever lies on the host in order already is not copied at all.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from devicekit.errors import WeightsError
from devicekit.host import Host
from devicekit.weights.formats import FORMATS, Format
from devicekit.weights.header import shown
from devicekit.weights.pages import bytes_at

__all__ = ["PART", "Outgoing", "in_parts", "outgoing"]

PART = 64 << 20
"""Bytes that are written at once, and the most that is copied at a time."""

_OF_TORCH = {known.torch: known for known in FORMATS.values() if known.torch}
_OF_NUMPY = {known.numpy or known.ml_dtypes: known for known in FORMATS.values() if known.numpy or known.ml_dtypes}
_CONVERT = "convert it to a tensor or an array, or leave it out"


class Outgoing(NamedTuple):
    """One tensor on its way into a file."""

    name: str
    format: Format
    shape: tuple[int, ...]
    """In elements of the format."""
    nbytes: int
    place: tuple[object, ...] | None
    """Equal for two names of one tensor. None: it has no elements, or its runtime does not tell where they are."""
    framework: str
    """``pt`` or ``np``, as the metadata of safetensors calls them."""
    parts: Callable[[], Iterator[memoryview]]
    """Its bytes, little-endian and in order; each view is good until the next one is asked for."""


def outgoing(name: str, value: Any, host: Host) -> Outgoing:
    """A tensor or an array, looked at.

    Raises:
        WeightsError: it is neither, or no file of this kind can hold it.
    """
    torch, numpy = host.loaded("torch"), host.loaded("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_torch(torch, name, value)
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _of_numpy(numpy, name, value)
    raise _refused(
        name, f"its type is {type(value).__name__}, which is neither a tensor of torch nor an array of NumPy", _CONVERT
    )


def in_parts(whole: Any, most: int = PART) -> Iterator[Any]:
    """A tensor or an array as views of at most so many bytes, one after another in the order of its elements."""
    if whole.nbytes <= most:
        yield whole
        return
    rows = most // whole[0].nbytes
    for begin in range(0, len(whole), max(1, rows)):
        if rows:
            yield whole[begin : begin + rows]
        else:
            yield from in_parts(whole[begin], most)


def _refused(name: str, why: str, fix: str) -> WeightsError:
    return WeightsError(f"{shown(name)} cannot be saved.", why=why, try_=fix)


# -- torch ---------------------------------------------------------------------------------------
def _of_torch(torch: Any, name: str, tensor: Any) -> Outgoing:
    reason = _why_not(torch, tensor)
    if reason is not None:
        raise _refused(name, *reason)
    known = _OF_TORCH[_dtype_name(tensor)]
    shape = tuple(int(length) for length in tensor.shape)
    if known.packed > 1:
        shape = (*shape[:-1], shape[-1] * known.packed)
    place = _place(known, tensor)
    return Outgoing(name, known, shape, tensor.nbytes, place, "pt", functools.partial(_bytes_of_tensor, name, tensor))


def _why_not(torch: Any, tensor: Any) -> tuple[str, str] | None:
    if torch.nn.parameter.is_lazy(tensor):
        return "it has no shape yet, because its lazy module has not run", "run the module once before"
    if tensor.is_nested:
        return "it is a nested tensor, and safetensors holds dense ones only", "each of its parts under its own name"
    if tensor.is_quantized:
        return "it is quantized, and its scale would be lost", "int_repr() and the scale under names of their own"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}, and safetensors holds dense tensors only", "to_dense()"
    if tensor.device.type == "meta":
        return "it is on the meta device and has no values", "load or initialise it first"
    known = _OF_TORCH.get(_dtype_name(tensor))
    if known is None:
        return f"safetensors has no format for {tensor.dtype}", _other_dtype(_dtype_name(tensor))
    if known.packed > 1 and not tensor.dim():
        return f"{tensor.dtype} is packed along the last dimension, and it has none", "a shape of (1,)"
    if tensor.device.type == "cpu" and tensor.numel() and not _address(tensor):
        return _elsewhere(tensor)
    return None


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _other_dtype(name: str) -> str:
    return "complex64, or its real and its imaginary part" if name.startswith("complex") else "another dtype"


def _elsewhere(tensor: Any) -> tuple[str, str]:
    return f"its class {type(tensor).__name__} keeps its values elsewhere than in its own memory", _CONVERT


def _address(tensor: Any) -> int:
    """Where its first element is; 0 where that cannot be told."""
    try:
        if tensor.untyped_storage().device.type == "meta":
            return 0  # a FakeTensor, which would warn of being asked
        return int(tensor.data_ptr())
    except RuntimeError:  # a tensor without memory of its own
        return 0


def _place(known: Format, tensor: Any) -> tuple[object, ...] | None:
    address = _address(tensor) if tensor.numel() else 0
    if not address:
        return None
    strides = tuple(stride * tensor.itemsize for stride in tensor.stride())
    read = (tensor.is_conj(), tensor.is_neg(), sys.byteorder)
    return str(tensor.device), address, tuple(tensor.shape), strides, known.name, read


def _bytes_of_tensor(name: str, tensor: Any) -> Iterator[memoryview]:
    for part in in_parts(tensor.detach()):
        if part.nbytes:
            # The conjugate and the negative are marks on a view until somebody asks for the values.
            plain = part.resolve_conj().resolve_neg().contiguous().to("cpu")
            address = _address(plain)
            if not address:
                raise _refused(name, *_elsewhere(tensor))
            yield bytes_at(address, plain.nbytes)
            del plain  # before the next one is made


# -- NumPy ---------------------------------------------------------------------------------------
def _of_numpy(numpy: Any, name: str, array: Any) -> Outgoing:
    known = _OF_NUMPY.get(array.dtype.name)
    if known is None:
        raise _refused(name, f"safetensors has no format for {array.dtype}", _other_dtype(array.dtype.name))
    if getattr(array, "mask", None) is not None:
        raise _refused(name, "it is a masked array, and its mask would be lost", "filled(), and the mask as another")
    order = {"<": "little", ">": "big"}.get(array.dtype.byteorder, sys.byteorder)
    place = None
    if array.size:  # in the words of _place: a tensor may lie over an array
        place = "cpu", int(array.ctypes.data), array.shape, array.strides, known.name, (False, False, order)
    plain = numpy.asarray(array)  # of a subclass: a matrix would never be flat
    parts = functools.partial(_bytes_of_array, numpy, plain, swapped=order == "big")
    return Outgoing(name, known, tuple(array.shape), int(array.nbytes), place, "np", parts)


def _bytes_of_array(numpy: Any, array: Any, *, swapped: bool) -> Iterator[memoryview]:
    for part in in_parts(array):
        if part.nbytes:
            little = part.byteswap() if swapped else part
            # As bytes, because the dtypes of ml_dtypes have no buffer protocol.
            with memoryview(numpy.ascontiguousarray(little).reshape(-1).view(numpy.uint8)) as view:
                del little  # so that the view alone keeps a copy, and not beyond its turn
                yield view
