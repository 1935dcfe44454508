"""The ``.npy`` format: a magic word, the length of a header, the header, the numbers (NEP 1; numpy/lib/format.py)."""

from __future__ import annotations

import ast
from typing import Any

from devicekit.pickles.arrays import array_of
from devicekit.pickles.stand_ins import Array, Dtype, Piece
from devicekit.pickles.tensors import whole_numbers
from devicekit.weights.header import UnbelievableError
from devicekit.weights.source import Source

__all__ = ["MAGIC", "read_array"]

MAGIC = b"\x93NUMPY"
LONGEST = 10_000
"""Bytes of a header, NumPy's own limit."""


def read_array(source: Source) -> Array:
    """The array that begins where the source begins, and ends where it ends.

    Raises:
        UnbelievableError: it is none.
    """
    start = _part(source, 0, 8)
    if start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise UnbelievableError("its array does not begin as NumPy has it")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(_part(source, 8, width), "little")
    if length > LONGEST:
        raise UnbelievableError(f"the header of its array would be {length} bytes long")
    begin = 8 + width + length
    described = _described(_part(source, 8 + width, length))
    made = Array()
    data = Piece(source, begin, source.size - begin)
    shape = whole_numbers(described["shape"])
    made.content = array_of(_dtype(described["descr"]), shape, data, by_columns=described["fortran_order"] is True)
    return made


def _part(source: Source, begin: int, length: int) -> bytes:
    if begin + length > source.size:
        raise UnbelievableError("its array was cut off")
    return source.read(begin, length)


def _described(raw: bytes) -> dict[str, Any]:
    try:
        made = ast.literal_eval(raw.decode("utf-8").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        made = None
    if not isinstance(made, dict) or set(made) != {"descr", "fortran_order", "shape"}:
        raise UnbelievableError("the header of its array is no description of one")
    return made


def _dtype(code: Any) -> Dtype:
    """A structure is described by a list."""
    return Dtype(code if isinstance(code, str) else "V")
