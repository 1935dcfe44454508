"""What a pickle is read into instead of objects: values that know nothing but what the file says, and do nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from devicekit.weights.formats import Format
from devicekit.weights.source import MemorySource, Source

__all__ = [
    "Array",
    "Bag",
    "Dense",
    "Dtype",
    "Global",
    "Odd",
    "Opaque",
    "Piece",
    "Refused",
    "Storage",
    "keyed",
    "piece_of",
]

LONGEST_TEXT = 4096
"""Letters of a text that stands for bytes."""
PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


class Piece(NamedTuple):
    """Bytes that stay where they are until they are needed."""

    source: Source
    begin: int
    nbytes: int


def piece_of(data: bytes | str | Piece) -> Piece:
    """Bytes that were read already; a short text is what Python 2 called bytes.

    Raises:
        ValueError: the text holds more than bytes, or is long, and so would be copied for each who asks.
    """
    if isinstance(data, Piece):
        return data
    if isinstance(data, str) and len(data) > LONGEST_TEXT:
        raise ValueError("a long text")
    raw = data.encode("latin-1") if isinstance(data, str) else data
    return Piece(MemorySource(raw), 0, len(raw))


class Global:
    """A class or a function that the file names. It is never looked up."""

    __slots__ = ("at", "module", "name")

    def __init__(self, module: str, name: str, at: int) -> None:
        self.module = module
        self.name = name
        self.at = at
        """The byte of the pickle at which it is named."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """An object of a class that is not understood, with everything that the file gives it: arguments, state, items."""

    __slots__ = ("given", "of")

    def __init__(self, of: Global, *given: Any) -> None:
        self.of = of
        self.given = list(given)


class Odd:
    """A dictionary's key that is no plain value; never compared, because comparing could take for ever."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key


def keyed(keys: Iterable[Any], values: Iterable[Any]) -> dict[Any, Any]:
    """A dictionary that compares only keys that are compared in no time."""
    return dict(zip((key if type(key) in PLAIN_KEYS else Odd(key) for key in keys), values, strict=True))


class Bag(list):  # type: ignore[type-arg]
    """A set; a list, because hashing could take for ever."""


class Storage:
    """Memory of torch's, under a key of the file.

    Args:
        key: under which the file keeps it.
        format: of its elements; None: safetensors has none for them.
        itemsize: bytes of an element.
        nbytes: in all, as the pickle says.
        kind: its class, for messages.
    """

    __slots__ = ("format", "itemsize", "key", "kind", "nbytes", "piece", "skip", "swapped")

    def __init__(self, key: str, format: Format | None, itemsize: int, nbytes: int, kind: str) -> None:  # noqa: A002
        self.key = key
        self.format = format
        self.itemsize = itemsize
        self.nbytes = nbytes
        self.kind = kind
        self.piece: Piece | None = None
        """Its bytes; None until the file has told where they are."""
        self.skip = 0
        """Bytes of the piece before its own: it is a view of another."""
        self.swapped = False
        """Whether its numbers are big-endian."""


class Dense:
    """A tensor or an array. Offset and strides count elements."""

    __slots__ = ("format", "framework", "offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        format: Format,  # noqa: A002
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int = 0,
        framework: str = "pt",
    ) -> None:
        self.storage = storage
        self.format = format
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.framework = framework


class Refused:
    """A tensor that no safetensors file can hold as it is."""

    __slots__ = ("fix", "why")

    def __init__(self, why: str, fix: str) -> None:
        self.why = why
        self.fix = fix


class Dtype:
    """A dtype of NumPy; ``code`` as in ``f4``, or the name of a class of ml_dtypes."""

    __slots__ = ("code", "swapped")

    def __init__(self, code: str) -> None:
        self.code = code
        self.swapped = code.startswith(">")


class Array:
    """An array of NumPy, empty until its state comes."""

    __slots__ = ("content",)

    def __init__(self) -> None:
        self.content: Dense | Refused | str | None = None
        """A text: what it is, for it holds no numbers."""
