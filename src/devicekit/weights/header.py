"""Read the header of a safetensors file and believe nothing in it.

The format (https://github.com/huggingface/safetensors, README): 8 bytes with the header's length, little-endian; that
many bytes of JSON; the tensors' bytes, without a hole. What ``SafeTensors::deserialize`` refuses (safetensors 0.8,
safetensors/src/tensor.rs) is refused here. So is what it lets through in these cases: a name that comes twice, at any
depth; blanks before the first brace, which the README forbids; a tensor described by a list, or its dtype by an object,
which nobody writes; more than 64 dimensions, and shapes that 64 bits cannot count without their zeros. Fields that it
ignores are ignored here too, and in them nesting beyond 127 and integers beyond 308 digits are let through.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

from devicekit.errors import WeightsError
from devicekit.weights.formats import FORMATS, Format

__all__ = [
    "Entry",
    "Header",
    "Readable",
    "UnbelievableError",
    "parsed",
    "plain",
    "read_header",
    "shown",
    "something_else",
]

LONGEST = 100_000_000
"""Bytes of a header: ``MAX_HEADER_SIZE`` of safetensors."""
MOST_DIMENSIONS = 64
"""NumPy's limit, and of most functions of torch."""
LARGEST = (1 << 63) - 1
"""torch and NumPy count in 64 bits with a sign."""
WIDEST = 16
"""Bytes of an element of the widest dtype that they have."""
BOMB = 10
"""A header longer than a MiB holds at most one bracket in so many bytes: a tensor takes 45 bytes and three brackets."""
DEEPEST = 127
"""Brackets within each other: serde_json's limit, for programs that raised Python's recursion limit. There a header of
100 kB could overflow the C stack of Python 3.11 and end the process; elsewhere the parser stops by itself."""
USUAL_RECURSION = 1000
"""What ``sys.getrecursionlimit()`` is when nobody has changed it."""
CHUNK = 64 << 10
"""Bytes of a header that are looked at at once, where it is looked at piece by piece."""
MOST_DIGITS = 308
"""Of a number, where the interpreter sets no limit: reading millions of them takes hours."""


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


class UnbelievableError(Exception):
    """Why a header cannot be believed; the one place that knows the file makes the error of it."""


class _OddError(Exception):
    """What is wrong with a piece of JSON, as the end of a sentence."""


def read_header(source: Readable) -> Header:
    """The header, checked.

    Raises:
        WeightsError: with the file, the tensor's name where there is one, and the reason.
    """
    try:
        raw = source.read(8, _length(source))
        if not raw.startswith(b"{"):
            raise UnbelievableError("its header does not begin with '{'")
        return _checked(parsed(raw, "its header"), 8 + len(raw), source.size)
    except UnbelievableError as bad:
        why, fix = something_else(source) or (str(bad), "download or save it again")
        raise WeightsError(f"{source.label} cannot be read as safetensors.", why=why, try_=fix) from None


# -- names in messages ---------------------------------------------------------------------------
def shown(name: str) -> str:
    """A tensor's name in a message: a hostile one can be megabytes long, or hold what a terminal obeys."""
    return repr(name) if len(name) <= 120 else ascii(name[:117]) + "..."


def plain(path: str) -> str:
    """A path in a message: as it is, unless a terminal would obey it or nobody would read it to its end."""
    return path if path.isprintable() and len(path) <= 1000 else ascii(path[:1000])[1:-1]


# -- what it is instead --------------------------------------------------------------------------
_PICKLE = "it is a pickle, which could run code when loaded"
_ZIP = "it is a ZIP file, as torch.save writes them, with a pickle in it, which could run code when loaded"
_CONVERT = "devicekit convert, which makes safetensors of it and executes nothing in it"
_ELSEWHERE = "the safetensors version of the same model"
_AGAIN = "download it again"
# None fits the length of a header, 8 bytes of which the last four are zeros, but for lengths that nobody's header has.
_Row: TypeAlias = "tuple[re.Pattern[bytes], str, str]"


def _row(start: bytes, what: str, fix: str) -> _Row:
    return re.compile(start, re.IGNORECASE | re.DOTALL), what, fix


_PICKLES = (
    _row(rb"PK\x03\x04", _ZIP, _CONVERT),
    _row(rb"\x80[\2-\5](?!..\0\0\0\0)|\x80[\4\5]\x95", _PICKLE, _CONVERT),
    _row(rb"\([dl]p\d|[}\]]q\0[^\0]|c(collecti|torch\.|numpy\.|__built|copy_reg)", _PICKLE, _CONVERT),
)
_OTHERS = (
    _row(rb"version http", "it is a Git LFS pointer: the weights themselves were not downloaded", "git lfs pull"),
    _row(rb"GGUF", "it is a GGUF file", _ELSEWHERE),
    _row(rb"\x89HDF", "it is an HDF5 file", _ELSEWHERE),
    _row(rb"\x1f\x8b\x08", "it is compressed with gzip", "gunzip"),
    _row(rb"\s*<(!doctype|html|\?xml)", "it is a web page: the download brought an error page", _AGAIN),
    _row(rb"\{[^\0]{7}", "it is JSON, as an index of shards or a server's error message is", "the file of weights"),
    _row(rb"\0{8}", "it begins with zeros, as a download that was not completed does", _AGAIN),
)


def something_else(source: Readable, *, pickles: bool = True) -> tuple[str, str] | None:
    """What it is instead, and what to do; None: that cannot be told. Without ``pickles`` it is none for sure."""
    start = source.read(0, min(24, source.size))
    rows = (*_PICKLES, *_OTHERS) if pickles else _OTHERS
    return next(((what, fix) for magic, what, fix in rows if magic.match(start)), None)


# -- the length ----------------------------------------------------------------------------------
def _length(source: Readable) -> int:
    if source.size < 8:
        raise UnbelievableError(f"it has {source.size} bytes, and the length of the header alone takes 8")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > LONGEST:
        raise UnbelievableError(f"its header would be {length} bytes long; more than {LONGEST} is refused")
    if length > source.size - 8:
        why = f"its header would be {length} bytes long, but the file ends after {source.size}: it was cut off"
        raise UnbelievableError(why)
    return length


# -- the JSON ------------------------------------------------------------------------------------
def parsed(raw: bytes, what: str) -> Any:
    """JSON in which no name comes twice, and which takes no more to read than a list of tensors as long as it.

    Raises:
        UnbelievableError: it is none; ``what`` is the sentence's subject.
    """
    if _nests(raw):
        raise UnbelievableError(f"{what} nests more than any list of tensors does")
    try:
        text = raw.decode("utf-8")
        made = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integers(text),
        )
        if _HALF.search(text):  # rare, and then certainty is worth a second look at everything
            json.dumps(made, ensure_ascii=False).encode("utf-8")
        return made
    except _OddError as odd:
        raise UnbelievableError(f"{what} {odd}") from None
    except RecursionError:
        raise UnbelievableError(f"{what} nests more than any list of tensors does") from None
    except UnicodeEncodeError:
        raise UnbelievableError(f"{what} holds half of a surrogate pair, which is no text") from None
    except UnicodeDecodeError as exc:
        raise UnbelievableError(f"{what} is not UTF-8: {exc.reason} at byte {exc.start}") from None
    except ValueError as exc:  # JSONDecodeError, and integers of thousands of digits
        raise UnbelievableError(f"{what} is not JSON: {exc}") from None


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _nests(raw: bytes) -> bool:
    """Brackets so many, or so deep, that it is no list of tensors."""
    brackets = raw.count(b"[") + raw.count(b"{")
    dense = len(raw) > 1 << 20 and brackets * BOMB > len(raw)
    deep = brackets > DEEPEST and sys.getrecursionlimit() > USUAL_RECURSION
    if not dense and not deep:
        return False
    left = _brackets(raw)
    return (dense and left.count(b"[") * BOMB > len(raw)) or (deep and _deeper(left))


def _brackets(raw: bytes) -> bytes:
    """All that nest, as square ones: those outside of texts."""
    without_escapes = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    as_square, all_else = bytes.maketrans(b"{}", b"[]"), bytes(set(range(256)) - set(b"[]{}"))
    made = bytearray()
    inside = 0
    for at in range(0, len(without_escapes), CHUNK):  # a split of it all would take 32 times its length
        parts = without_escapes[at : at + CHUNK].split(b'"')
        made += b"".join(parts[inside::2]).translate(as_square, all_else)
        inside = (inside + len(parts) - 1) % 2
    return bytes(made)


def _deeper(left: bytes) -> bool:
    """Innermost pairs are taken out until none is left."""
    for _ in range(DEEPEST + 1):
        if b"[" * (DEEPEST + 1) in left:
            return True
        shorter = left.replace(b"[]", b"")
        if len(shorter) == len(left):
            return False  # none at all, or some without their other half, which is no JSON
        left = shorter
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise _OddError(f"names {shown(twice)} twice")


def _no_constant(text: str) -> NoReturn:
    raise _OddError(f"holds {text:.20}, which is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _OddError(f"holds the number {text:.20}, which is out of range")
    return number


def _integers(text: str) -> Callable[[str], float]:
    """How whole numbers are read: by ``int`` alone, unless there is something to look out for."""
    endless = not getattr(sys, "get_int_max_str_digits", int)()  # before Python 3.10.7 there is no limit
    return _careful_int if endless or "-0" in text else int


def _careful_int(text: str) -> float:
    if len(text) > MOST_DIGITS:
        raise _OddError(f"holds a number of {len(text)} digits")
    return int(text) if text != "-0" else -0.0  # a fraction to safetensors, and so no length


# -- the tensors ---------------------------------------------------------------------------------
def _checked(described: dict[str, Any], start: int, size: int) -> Header:
    metadata = _metadata(described.pop("__metadata__", None))
    entries = {name: _entry(name, fields, start) for name, fields in described.items()}
    end, before = start, ""
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.nbytes)):
        if entry.begin != end:
            how = "overlaps" if entry.begin < end else "leaves a hole after"
            raise UnbelievableError(f"{shown(entry.name)} {how} {shown(before) if before else 'the header'}")
        end, before = entry.begin + entry.nbytes, entry.name
    if end > size:
        why = f"{shown(before)} would end at byte {end}, but the file ends after {size}: it was cut off"
        raise UnbelievableError(why)
    if end < size:
        raise UnbelievableError(f"the file has {size - end} bytes that belong to no tensor")
    return Header(entries, metadata)


def _metadata(described: Any) -> dict[str, str]:
    if described is None:
        return {}
    if not isinstance(described, dict) or not all(isinstance(value, str) for value in described.values()):
        raise UnbelievableError("its __metadata__ is not a map of texts to texts")
    return described


def _entry(name: str, fields: Any, start: int) -> Entry:
    if not isinstance(fields, dict):
        raise UnbelievableError(f"{shown(name)} is not described by an object")
    try:
        word, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    except KeyError as exc:
        raise UnbelievableError(f"{shown(name)} has no {exc.args[0]}") from None
    found = FORMATS.get(word) if type(word) is str else None
    if found is None:
        raise UnbelievableError(f"{shown(name)} has the dtype {reprlib.repr(word)}; known are {', '.join(FORMATS)}")
    if not _whole(shape) or len(shape) > MOST_DIMENSIONS:
        why = f"{shown(name)} has the shape {reprlib.repr(shape)}, not up to {MOST_DIMENSIONS} whole numbers"
        raise UnbelievableError(why)
    if 0 in shape and math.prod(filter(None, shape)) > LARGEST // WIDEST:
        raise UnbelievableError(f"{shown(name)} has the shape {reprlib.repr(shape)}, too large even without its zeros")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        why = f"{shown(name)} has the offsets {reprlib.repr(offsets)}: two whole numbers, the smaller first"
        raise UnbelievableError(why)
    begin, end = offsets
    if not _fits(shape, found, end - begin):
        why = f"{shown(name)} of shape {reprlib.repr(shape)} in {word} does not fit the {end - begin} bytes it is given"
        raise UnbelievableError(why)
    return Entry(name, found, tuple(shape), start + begin, end - begin)


def _fits(shape: list[int], found: Format, nbytes: int) -> bool:
    """The shape in this format takes exactly these bytes."""
    bits = math.prod(shape) * found.bits
    return bits == nbytes * 8 and (found.packed == 1 or (len(shape) > 0 and shape[-1] % found.packed == 0))


def _whole(numbers: Any) -> bool:
    """A list of whole numbers from 0 on; True and False are none."""
    if type(numbers) is not list:
        return False
    for number in numbers:  # noqa: SIM110 - all() takes five times as long for two numbers, a third of reading a header
        if type(number) is not int or not 0 <= number <= LARGEST:
            return False
    return True
