"""torch's tensors as a pickle describes them: storages by persistent ids, tensors over them.

The sources: torch/_utils.py, torch/storage.py and torch/serialization.py of torch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from devicekit.pickles.stand_ins import Array, Dense, Global, Refused, Storage
from devicekit.weights.formats import FORMATS
from devicekit.weights.header import LARGEST, MOST_DIMENSIONS, WIDEST, UnbelievableError

__all__ = ["DTYPES", "RULES", "STORAGES", "TENSOR_CLASSES", "WITH_STATE", "WITH_TYPE", "storage", "whole_numbers"]

_CLASSES: dict[str, tuple[str, int]] = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1), "UntypedStorage": ("U8", 1), "_UntypedStorage": ("U8", 1),
    "ComplexFloatStorage": ("C64", 8), "ComplexDoubleStorage": ("", 16),
    "QInt8Storage": ("", 1), "QUInt8Storage": ("", 1), "QInt32Storage": ("", 4),
    "QUInt4x2Storage": ("", 1), "QUInt2x4Storage": ("", 1),
}  # fmt: skip
"""Format (empty: safetensors has none) and bytes of an element."""
STORAGES = {(module, name) for module in ("torch", "torch.storage", "torch.cuda") for name in _CLASSES}

_OF_TORCH = {known.torch: known for known in FORMATS.values() if known.torch}
_WITHOUT_FORMAT = ("complex32", "complex64", "complex128", "qint8", "quint8", "qint32", "quint4x2", "quint2x4")
_OF_FEW_BITS = tuple(f"{kind}{bits}" for kind in ("int", "uint", "bits") for bits in (1, 2, 3, 4, 5, 6, 7))
DTYPES = {*_OF_TORCH, *_WITHOUT_FORMAT, *_OF_FEW_BITS, "bits8", "bits16", "half", "float", "double", "long"}
TENSOR_CLASSES = {
    ("torch", "Tensor"),
    ("torch._tensor", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn.parameter", "Buffer"),
}
WITH_TYPE = ("torch._tensor", "_rebuild_from_type_v2")
WITH_STATE = ("torch._utils", "_rebuild_parameter_with_state")


# -- storages --------------------------------------------------------------------------------------
def storage(identity: Any) -> Storage:
    """The storage of a persistent id: ``("storage", class, key, location, count)``, where it was saved aside.

    Raises:
        UnbelievableError: it is another thing.
    """
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise UnbelievableError("its pickle refers to something outside of it that is no storage")
    kind, key, _, count = identity[1:5]
    if not isinstance(kind, Global) or (kind.module, kind.name) not in STORAGES:
        raise UnbelievableError("its pickle has a storage of an unknown class")
    if type(key) is not str or type(count) is not int or not 0 <= count <= LARGEST // WIDEST:
        raise UnbelievableError("its pickle describes a storage that cannot be")
    name, itemsize = _CLASSES[kind.name]
    return Storage(key, FORMATS.get(name), itemsize, count * itemsize, kind.name)


# -- tensors ---------------------------------------------------------------------------------------
def whole_numbers(value: Any) -> tuple[int, ...]:
    """A shape, or strides.

    Raises:
        UnbelievableError: it is none.
    """
    if not isinstance(value, tuple | list) or len(value) > MOST_DIMENSIONS:
        raise UnbelievableError("its pickle has a tensor without a shape")
    if not all(type(number) is int and 0 <= number <= LARGEST for number in value):
        raise UnbelievableError("its pickle has a tensor whose shape or strides are no whole numbers from 0 on")
    if math.prod(filter(None, value)) > LARGEST // WIDEST and len(value) and 0 in value:
        raise UnbelievableError("its pickle has a tensor that is too large even without its zeros")
    return tuple(value)


def _tensor(of: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Dense | Refused:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``; more: requires_grad, hooks, and the marks on the tensor."""
    if not isinstance(of, Storage):
        raise UnbelievableError("its pickle has a tensor without a storage")
    return _dense(of, of.format, offset, shape, strides, more[2] if len(more) > 2 else None, of.kind)


def _typed_tensor(of: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Dense | Refused:
    """``_rebuild_tensor_v3``, for dtypes without a class of storages; more[2] is the dtype."""
    if not isinstance(of, Storage) or len(more) < 3 or not isinstance(more[2], Global):
        raise UnbelievableError("its pickle has a tensor without a storage or a dtype")
    name = more[2].name
    return _dense(of, _OF_TORCH.get(name), offset, shape, strides, more[3] if len(more) > 3 else None, name)


def _dense(of: Storage, form: Any, offset: Any, shape: Any, strides: Any, marks: Any, kind: str) -> Dense | Refused:
    if form is None:
        return Refused(*_without_format(kind))
    if marks:
        return Refused("it is a conjugate or negative view", "resolve_conj().resolve_neg() before it is saved")
    shape, strides = whole_numbers(shape), whole_numbers(strides)
    if len(shape) != len(strides) or type(offset) is not int or not 0 <= offset <= LARGEST:
        raise UnbelievableError("its pickle has a tensor whose shape, strides and offset do not fit each other")
    return Dense(of, form, shape, strides, offset)


def _without_format(kind: str) -> tuple[str, str]:
    if kind.startswith(("Q", "q")):
        return _QUANTIZED
    return f"safetensors has no format for {kind}", "another dtype, before it is saved"


_QUANTIZED = ("it is quantized, and its scale would be lost", "int_repr() and the scale under names of their own")


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, Dense | Refused):
        raise UnbelievableError("its pickle has a parameter without a tensor")
    return data


def _from_device(data: Any, *_: Any) -> Any:
    """Of devices without a storage that can be saved; the values come as an array or as a tensor of the CPU."""
    if isinstance(data, Array):
        data = data.content
    return _parameter(data)


def _refusing(why: str, fix: str) -> Callable[..., Refused]:
    return lambda *_: Refused(why, fix)


_SPARSE = _refusing("it is sparse, and safetensors holds dense tensors only", "to_dense() before it is saved")
_NESTED = _refusing("it is a nested tensor, and safetensors holds dense ones only", "each part under a name of its own")
RULES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    WITH_STATE: _parameter,
    WITH_TYPE: lambda *_: None,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _from_device,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _from_device,
    ("torch._utils", "_rebuild_xla_tensor"): _from_device,
    ("torch._utils", "_rebuild_qtensor"): _refusing(*_QUANTIZED),
    ("torch._utils", "_rebuild_sparse_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_nested_tensor"): _NESTED,
    ("torch._utils", "_rebuild_wrapper_subclass"): _refusing("it is of a subclass of Tensor", "the plain tensor"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _refusing(
        "it is on the meta device and has no values", "load or initialise it before it is saved"
    ),
}
