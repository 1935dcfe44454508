"""NumPy's arrays, numbers and dtypes, as a pickle or the header of a ``.npy`` describes them.

The sources: ``array_reduce`` and ``arraydescr_reduce`` in numpy/_core/src/multiarray, numpy/_core/numeric.py; NumPy 2.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from devicekit.pickles.stand_ins import Array, Dense, Dtype, Global, Piece, Refused, Storage, piece_of
from devicekit.pickles.tensors import whole_numbers
from devicekit.weights.formats import FORMATS
from devicekit.weights.header import UnbelievableError

__all__ = ["CLASSES", "RULES", "array_of", "fill", "order", "row_major"]

_NUMBERS = {
    "f8": ("F64", "d"), "f4": ("F32", "f"), "f2": ("F16", "e"), "c8": ("C64", ""), "b1": ("BOOL", "?"),
    "i8": ("I64", "q"), "i4": ("I32", "i"), "i2": ("I16", "h"), "i1": ("I8", "b"),
    "u8": ("U64", "Q"), "u4": ("U32", "I"), "u2": ("U16", "H"), "u1": ("U8", "B"),
}  # fmt: skip
"""The format, and the letter of ``struct`` for one number."""
_OF_ML_DTYPES = {known.ml_dtypes: known for known in FORMATS.values() if known.ml_dtypes}
CLASSES = {("numpy", "ndarray"), *(("ml_dtypes", name) for name in _OF_ML_DTYPES)}


# -- dtypes ----------------------------------------------------------------------------------------
def _dtype(code: Any, *_: Any) -> Dtype:
    if isinstance(code, Global):
        return Dtype(code.name)
    if type(code) is not str or len(code) > 100:
        raise UnbelievableError("its pickle has an array of an unknown dtype")
    return Dtype(code)


def order(dtype: Dtype, state: Any) -> None:
    """The state of a dtype: its version, the order of bytes, the subarray, names and fields of a structure, and more.

    Raises:
        UnbelievableError: it is another thing.
    """
    if not isinstance(state, tuple) or len(state) < 5:
        raise UnbelievableError("its pickle has a dtype without a description")
    dtype.swapped = state[1] in (">", b">")
    if any(part is not None for part in state[2:5]):
        dtype.code = "V"


# -- arrays ----------------------------------------------------------------------------------------
def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of an array whose last index runs fastest."""
    return tuple(itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1] if shape else ()


def array_of(dtype: Dtype, shape: tuple[int, ...], data: Any, *, by_columns: bool) -> Dense | Refused | str:
    """An array; words for one that holds no numbers.

    Raises:
        UnbelievableError: its bytes are not as many as it needs.
    """
    code = dtype.code.lstrip("<>=|")
    code = "b1" if code == "?" else code
    form = _OF_ML_DTYPES.get(code) or FORMATS.get(_NUMBERS.get(code, ("", ""))[0])
    if form is None:
        if code[:1] in ("c", "f", "g", "G") or len(code) > 8:
            return Refused(f"safetensors has no format for the dtype {code!a:.40}", "another dtype")
        return f"an array of dtype {code!a:.40}, which holds no numbers"
    if not isinstance(data, bytes | str | Piece):
        raise UnbelievableError("its pickle has an array without bytes")
    piece = piece_of(data)
    itemsize = form.bits // 8
    if piece.nbytes != math.prod(shape) * itemsize:
        raise UnbelievableError(f"its pickle has an array with {piece.nbytes} bytes, which do not fit its shape")
    held = Storage("", form, itemsize, piece.nbytes, code)
    held.piece, held.swapped = piece, dtype.swapped and itemsize > 1
    strides = row_major(shape[::-1])[::-1] if by_columns else row_major(shape)
    return Dense(held, form, shape, strides, framework="np")


def _empty(kind: Any, *_: Any) -> Array:
    made = Array()
    if not isinstance(kind, Global) or (kind.module, kind.name) != ("numpy", "ndarray"):
        made.content = Refused("its class is no plain array of NumPy", "numpy.asarray() before it is saved")
    return made


def fill(array: Array, state: Any) -> None:
    """The state of an array: its version, the shape, the dtype, whether columns come first, the bytes.

    Raises:
        UnbelievableError: it is another thing.
    """
    if array.content is not None:
        if isinstance(array.content, Refused):
            return
        raise UnbelievableError("its pickle fills an array twice")
    if not isinstance(state, tuple) or len(state) not in (4, 5) or not isinstance(state[-3], Dtype):
        raise UnbelievableError("its pickle has an array without a description")
    shape, dtype, by_columns, data = state[-4:]
    array.content = array_of(dtype, whole_numbers(shape), data, by_columns=by_columns is True or by_columns == 1)


def _from_buffer(data: Any, dtype: Any, shape: Any, letter: Any) -> Array:
    """``_frombuffer`` of protocol 5."""
    if not isinstance(dtype, Dtype):
        raise UnbelievableError("its pickle has an array without a dtype")
    made = Array()
    made.content = array_of(dtype, whole_numbers(shape), data, by_columns=letter == "F")
    return made


def _number(dtype: Any, data: Any = None) -> Any:
    """A number of NumPy's, as Python's."""
    if not isinstance(dtype, Dtype):
        raise UnbelievableError("its pickle has a number without a dtype")
    _, letter = _NUMBERS.get(dtype.code.lstrip("<>=|"), ("", ""))
    if letter and isinstance(data, bytes | str):
        raw = data if isinstance(data, bytes) else data.encode("latin-1")
        return struct.unpack((">" if dtype.swapped else "<") + letter, raw)[0]
    made = Array()
    made.content = f"a value of NumPy's of dtype {dtype.code!a:.40}"
    return made


RULES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
}
