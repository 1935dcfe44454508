"""A tensor of an old file on its way into a new one: part by part, without torch.

Numbers in order are read from where they lie. Others, and those that are to be of another dtype, need NumPy or torch.
"""

from __future__ import annotations

import array
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from devicekit.errors import WeightsError
from devicekit.host import Host
from devicekit.pickles.arrays import row_major
from devicekit.pickles.stand_ins import Dense, Piece
from devicekit.weights.arrays import Arrays
from devicekit.weights.formats import Format
from devicekit.weights.header import UnbelievableError, shown
from devicekit.weights.outgoing import PART, Outgoing, in_parts

__all__ = ["Cast", "outgoing"]

_CODES = {array.array(code).itemsize: code for code in "BHILQ"}
"""Letters of Python's arrays by their bytes."""


class Cast:
    """To another format, by a framework."""

    def __init__(self, arrays: Arrays, target: Format) -> None:
        self._arrays = arrays
        self.target = target

    def check(self, name: str, source: Format) -> None:
        """Whether the framework knows both.

        Raises:
            WeightsError: it does not.
        """
        for form in (source, self.target):
            try:
                self._arrays.dtype(form)
            except WeightsError as exc:
                what = f"{shown(name)} cannot be cast."
                raise WeightsError(what, why=exc.why, try_="pip install torch, or ml_dtypes") from None

    def bytes_of(self, data: bytearray, source: Format) -> Iterator[memoryview]:
        """The same numbers in the other format."""
        arrays, count = self._arrays, len(data) * 8 // source.bits
        made = arrays.empty(count, arrays.dtype(self.target))
        with arrays.plain():
            arrays.cast(made, arrays.cut(data, arrays.dtype(source), 0, (count,), count))
        yield arrays.bytes_of(made)  # whose memory lives as long as this frame


def outgoing(name: str, tensor: Dense, host: Host, cast: Cast | None) -> Outgoing:
    """A tensor, looked at.

    Raises:
        UnbelievableError: it reaches beyond the bytes that the file has for it.
        WeightsError: something is missing here that it needs.
    """
    form, shape = tensor.format, tensor.shape
    itemsize = form.bits * form.packed // 8
    piece = _own(name, tensor, itemsize)
    strides = tuple(stride for length, stride in zip(shape, tensor.strides, strict=True) if length != 1)
    in_order = math.prod(shape) == 0 or strides == row_major(tuple(length for length in shape if length != 1))
    if not in_order and not host.installed("numpy"):
        why = "its elements do not lie in order, and are put in order by NumPy, which is not installed"
        raise WeightsError(f"{shown(name)} cannot be converted.", why=why, try_="pip install numpy")
    if form.packed > 1:
        if not shape:
            raise UnbelievableError(f"{shown(name)} is packed along its last dimension, and has none")
        shape = (*shape[:-1], shape[-1] * form.packed)
    if cast is not None and (not form.floating or form == cast.target):
        cast = None
    if cast is not None:
        cast.check(name, form)
    parts = _in_order(piece, math.prod(tensor.shape) * itemsize) if in_order else _gathered(tensor, piece, host)
    width = 1 if not tensor.storage.swapped else itemsize // 2 if form.name == "C64" else itemsize
    result = form if cast is None else cast.target
    nbytes = math.prod(shape) * result.bits // 8
    place = (id(piece.source), piece.begin, shape, strides, result.name) if nbytes else None
    changed = functools.partial(_changed, parts, width, form, cast)
    return Outgoing(name, result, shape, nbytes, place, tensor.framework, changed)


def _own(name: str, tensor: Dense, itemsize: int) -> Piece:
    """The bytes from its first element to its last."""
    held = tensor.storage
    extent = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)) + 1
    begin = tensor.offset * itemsize
    needed = extent * itemsize if 0 not in tensor.shape else 0
    if needed and begin + needed > held.nbytes:
        raise UnbelievableError(f"{shown(name)} needs {begin + needed} bytes of a storage of {held.nbytes}")
    piece = held.piece
    if piece is None or held.skip + held.nbytes > piece.nbytes:
        there = 0 if piece is None else piece.nbytes
        raise UnbelievableError(f"the storage of {shown(name)} would have {held.nbytes} bytes, and {there} are there")
    return Piece(piece.source, piece.begin + held.skip + begin, needed)


# -- parts -----------------------------------------------------------------------------------------
_Parts = Callable[[], Iterator[bytearray]]


def _in_order(piece: Piece, nbytes: int) -> _Parts:
    def read() -> Iterator[bytearray]:
        for begin in range(0, nbytes, PART):
            yield _read(piece.source, piece.begin + begin, min(PART, nbytes - begin))

    return read


def _gathered(tensor: Dense, piece: Piece, host: Host) -> _Parts:
    """All between the first and the last element is read, and the elements are picked part by part."""

    def pick() -> Iterator[bytearray]:
        numpy: Any = host.import_module("numpy")
        itemsize = tensor.format.bits * tensor.format.packed // 8
        whole = numpy.frombuffer(_read(piece.source, piece.begin, piece.nbytes), dtype=f"V{itemsize}")
        strides = [stride * itemsize for stride in tensor.strides]
        view = numpy.lib.stride_tricks.as_strided(whole, tensor.shape, strides, writeable=False)
        for part in in_parts(view):
            yield bytearray(numpy.ascontiguousarray(part).tobytes())

    return pick


def _read(source: Any, begin: int, nbytes: int) -> bytearray:
    made = bytearray(nbytes)
    source.read_into(memoryview(made), begin)
    return made


def _changed(parts: _Parts, width: int, form: Format, cast: Cast | None) -> Iterator[memoryview]:
    for part in parts():
        if width > 1:
            _swap(part, width)
        if cast is None:
            yield memoryview(part)
        else:
            yield from cast.bytes_of(part, form)


def _swap(part: bytearray, width: int) -> None:
    numbers = array.array(_CODES[width], bytes(part))
    numbers.byteswap()
    part[:] = numbers.tobytes()
