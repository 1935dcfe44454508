"""Read the header of a safetensors file and believe nothing in it.

The format (https://github.com/huggingface/safetensors, README): 8 bytes with the header's length, little-endian; that
many bytes of JSON; the tensors' bytes, without a hole. What is checked here is what ``SafeTensors::deserialize`` checks
in safetensors/src/tensor.rs, and duplicate names, which it lets through.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple, NoReturn, Protocol

from devicekit.errors import WeightsError
from devicekit.weights.formats import FORMATS, Format

__all__ = ["Entry", "Header", "Readable", "read_header", "shown"]

LONGEST = 100_000_000
"""Bytes of a header: ``MAX_HEADER_SIZE`` of safetensors."""
MOST_DIMENSIONS = 64
"""torch's and NumPy's own limit."""
BOMB = 10
"""A header longer than a MiB holds at most one bracket in so many bytes: a tensor takes 45 bytes and three brackets."""


class Readable(Protocol):
    """What a header is read from."""

    @property
    def label(self) -> str:
        """Its name for messages."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there.

        Raises:
            WeightsError: it cannot be read, or it ends before.
        """


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    format: Format
    shape: tuple[int, ...]
    """As the file says it: in elements of the format."""
    begin: int
    """Where its bytes begin, counted from the beginning of the file."""
    nbytes: int


class Header(NamedTuple):
    """What a file says it holds."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


class _HeaderError(Exception):
    """Why a header cannot be believed; the one place that knows the file makes the error of it."""


def read_header(source: Readable) -> Header:
    """The header, checked.

    Raises:
        WeightsError: with the file, the tensor's name where there is one, and the reason.
    """
    try:
        length = _length(source)
        return _checked(_parse(source.read(8, length)), 8 + length, source.size)
    except _HeaderError as bad:
        raise WeightsError(f"{source.label} cannot be read as safetensors.", why=str(bad), try_=_fix(source)) from None


def shown(name: str) -> str:
    """A tensor's name in a message: a hostile one can be megabytes long, or hold what a terminal obeys."""
    return repr(name) if len(name) <= 120 else ascii(name[:117]) + "..."


# -- what it is instead --------------------------------------------------------------------------
_PICKLE = 'torch.load(path, map_location="cpu", weights_only=True), then save_safetensors, if you trust its author'
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "it is a ZIP file, as torch.save writes them: a pickle, which could run code when loaded", _PICKLE),
    (b"\x80\x02", "it is a pickle, which could run code when loaded", _PICKLE),
    (b"\x80\x03", "it is a pickle, which could run code when loaded", _PICKLE),
    (b"\x80\x04", "it is a pickle, which could run code when loaded", _PICKLE),
    (b"\x80\x05", "it is a pickle, which could run code when loaded", _PICKLE),
    (b"version ", "it is a Git LFS pointer: the weights themselves were not downloaded", "git lfs pull"),
    (b"GGUF", "it is a GGUF file", "the safetensors version of the same model"),
    (b"\x89HDF", "it is an HDF5 file", "the safetensors version of the same model"),
    (b"<!DOCTYP", "it is a web page: the download brought an error page", "download it again"),
    (b"<html", "it is a web page: the download brought an error page", "download it again"),
)


def _other(source: Readable) -> tuple[str, str] | None:
    start = source.read(0, min(8, source.size))
    return next(((what, fix) for magic, what, fix in _OTHERS if start.startswith(magic)), None)


def _fix(source: Readable) -> str:
    other = _other(source)
    return other[1] if other else "download or save it again"


# -- the length and the JSON ---------------------------------------------------------------------
def _length(source: Readable) -> int:
    other = _other(source)
    if source.size < 8:
        raise _HeaderError(
            other[0] if other else f"it has {source.size} bytes, and the length of the header alone takes 8"
        )
    length = int.from_bytes(source.read(0, 8), "little")
    if length <= min(LONGEST, source.size - 8):
        return length
    if other:
        raise _HeaderError(other[0])
    if length > LONGEST:
        raise _HeaderError(f"its header would be {length} bytes long; more than {LONGEST} is refused")
    raise _HeaderError(
        f"its header would be {length} bytes long, but the file ends after {source.size}: it was cut off"
    )


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _HeaderError("its header does not begin with '{'")
    if len(raw) > 1 << 20 and (raw.count(b"[") + raw.count(b"{")) * BOMB > len(raw):
        raise _HeaderError("its header nests more than any list of tensors does")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _HeaderError(f"its header is not UTF-8: {exc.reason} at byte {exc.start}") from None
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_no_float)  # type: ignore[no-any-return]
    except RecursionError:
        raise _HeaderError("its header nests too deeply") from None
    except ValueError as exc:  # JSONDecodeError, and integers of thousands of digits
        raise _HeaderError(f"its header is not JSON: {exc}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise _HeaderError(f"its header names {shown(twice)} twice")


def _no_constant(text: str) -> NoReturn:
    raise _HeaderError(f"its header holds {text:.20}, which is no JSON")


def _no_float(text: str) -> NoReturn:
    raise _HeaderError(f"its header holds the fraction {text:.20}, where only whole numbers have a meaning")


# -- the tensors ---------------------------------------------------------------------------------
def _checked(parsed: dict[str, Any], start: int, size: int) -> Header:
    metadata = _metadata(parsed.pop("__metadata__", {}))
    entries = {name: _entry(name, described, start) for name, described in parsed.items()}
    end, before = start, ""
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.nbytes)):
        if entry.begin != end:
            how = "overlaps" if entry.begin < end else "leaves a hole after"
            raise _HeaderError(f"{shown(entry.name)} {how} {shown(before) if before else 'the header'}")
        end, before = entry.begin + entry.nbytes, entry.name
    if end > size:
        raise _HeaderError(f"{shown(before)} would end at byte {end}, but the file ends after {size}: it was cut off")
    if end < size:
        raise _HeaderError(f"the file has {size - end} bytes that belong to no tensor")
    return Header(entries, metadata)


def _metadata(described: Any) -> dict[str, str]:
    if not isinstance(described, dict) or not all(isinstance(value, str) for value in described.values()):
        raise _HeaderError("its __metadata__ is not a map of texts to texts")
    return described


def _entry(name: str, described: Any, start: int) -> Entry:
    if not isinstance(described, dict):
        raise _HeaderError(f"{shown(name)} is not described by an object")
    try:
        word, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    except KeyError as exc:
        raise _HeaderError(f"{shown(name)} has no {exc.args[0]}") from None
    found = FORMATS.get(word) if type(word) is str else None
    if found is None:
        raise _HeaderError(f"{shown(name)} has the dtype {word!r:.40}; known are {', '.join(FORMATS)}")
    if not _whole(shape) or len(shape) > MOST_DIMENSIONS:
        raise _HeaderError(f"{shown(name)} has the shape {str(shape)[:60]}, not up to {MOST_DIMENSIONS} whole numbers")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _HeaderError(f"{shown(name)} has the offsets {str(offsets)[:60]}: two whole numbers, the smaller first")
    begin, end = offsets
    bits = math.prod(shape) * found.bits
    if bits % 8 or bits // 8 != end - begin or (found.packed > 1 and (not shape or shape[-1] % found.packed)):
        raise _HeaderError(
            f"{shown(name)} of shape {str(shape)[:60]} in {word} does not fit the {end - begin} bytes it is given"
        )
    return Entry(name, found, tuple(shape), start + begin, end - begin)


def _whole(numbers: Any) -> bool:
    """A list of whole numbers from 0 on; True and False are none."""
    return type(numbers) is list and all(type(number) is int and number >= 0 for number in numbers)
