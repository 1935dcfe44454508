"""The format of torch.save before 1.6: five pickles, one after another, and then the storages' bytes.

The pickles: a magic number, the version, facts of the machine, the object, the storages' keys. Each storage is the
count of its elements in 8 bytes, then its elements, little-endian whatever the machine (torch/serialization.py,
``_legacy_save`` and ``_legacy_load``, and torch/csrc/serialization.cpp of torch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from devicekit.pickles.machine import Machine, Notes
from devicekit.pickles.stand_ins import Global, Piece, Storage, piece_of
from devicekit.pickles.tape import Tape
from devicekit.pickles.tensors import storage
from devicekit.weights.header import UnbelievableError
from devicekit.weights.source import Source

__all__ = ["MAGIC", "nested_storage", "read_pickles"]

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read_pickles(source: Source, notes: Notes, begin: int = 0, end: int | None = None) -> Any:
    """What the file holds: a plain pickle, or what torch.save wrote before 1.6.

    Raises:
        UnbelievableError: it is neither, or there is more behind it.
    """
    tape = Tape(source, begin, source.size if end is None else end)
    found: list[Storage] = []
    root = Machine(notes).run(tape)
    if type(root) is int and root == MAGIC:
        notes.by_torch = not notes.nested
        if Machine(notes).run(tape) != VERSION:
            raise UnbelievableError("its version is none that torch has written")
        Machine(notes).run(tape)
        root = Machine(notes, lambda identity: _persistent(identity, found)).run(tape)
        keys = Machine(notes).run(tape)
        _take(source, tape, keys, found)
    if tape.left:
        raise UnbelievableError(f"{tape.left} bytes follow after its end, at byte {tape.position}")
    return root


def nested_storage(data: Any, *, notes: Notes) -> Storage:
    """A storage whose file is a value of a pickle.

    Raises:
        UnbelievableError: it is no such file.
    """
    if notes.nested or not isinstance(data, bytes | str | Piece):
        raise UnbelievableError("its pickle has a storage without bytes")
    piece = piece_of(data)
    notes.nested = True
    made = read_pickles(piece.source, notes, piece.begin, piece.begin + piece.nbytes)
    notes.nested = False
    if not isinstance(made, Storage):
        raise UnbelievableError("its pickle has a file within it that holds no storage")
    return made


def _persistent(identity: Any, found: list[Storage]) -> Any:
    if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
        if not isinstance(identity[1], Global):
            raise UnbelievableError("its pickle names a class by what is none")
        return identity[1]  # a class of layers; its source text, which comes too, was for a warning
    made = storage(identity)
    view = identity[5] if len(identity) == 6 else None
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not all(type(v) is int and v >= 0 for v in view[1:]):
            raise UnbelievableError("its pickle describes a view of a storage that cannot be")
        made.skip, made.nbytes = view[1] * made.itemsize, view[2] * made.itemsize
    found.append(made)
    return made


def _take(source: Source, tape: Tape, keys: Any, found: Iterable[Storage]) -> None:
    """The storages' bytes lie in the order of the keys."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise UnbelievableError("its list of storages is none")
    by_key: dict[str, list[Storage]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    if sorted(keys) != sorted(by_key):
        raise UnbelievableError("its list of storages does not name those that its tensors lie in")
    for key in keys:
        itemsize = by_key[key][0].itemsize
        count = tape.number(8)
        begin = tape.position
        tape.skip(count * itemsize)
        for each in by_key[key]:
            each.piece = Piece(source, begin, count * itemsize)
