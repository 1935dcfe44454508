"""Old weights into safetensors: read without executing, written without losing what lay there, compared afterwards."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devicekit.errors import WeightsError
from devicekit.host import Host
from devicekit.pickles.contents import NOTHING, Contents, contents, part
from devicekit.pickles.opening import Opened, files_meant, opened
from devicekit.pickles.stand_ins import Dense
from devicekit.pickles.streaming import Cast, outgoing
from devicekit.weights.arrays import NumpyArrays, TorchArrays
from devicekit.weights.formats import FORMATS
from devicekit.weights.header import UnbelievableError, plain, read_header, shown
from devicekit.weights.outgoing import Outgoing
from devicekit.weights.progress import Progress
from devicekit.weights.saving import SUFFIX, checked_name, file_meant, save_outgoing
from devicekit.weights.source import FileSource

__all__ = ["DTYPES", "VALUES", "Conversion", "Wish", "convert"]

DTYPES = ("float32", "bfloat16", "float16", "float64")
VALUES = "devicekit.values"
"""The name in the metadata under which the plain values are, as JSON."""
MOST_VALUES = 100_000
"""Letters of JSON that are kept."""
CHUNK = 4 << 20
"""Bytes that are read again at once."""
ROOM = 1 << 30
"""Bytes that a small file may grow to; a view that repeats its elements can be of any size."""
GROWTH = 16
"""How many times its size a larger file may grow to."""


class Wish(NamedTuple):
    """What is asked for."""

    key: str | None = None
    """The part of the file that is wanted."""
    prefix: str = ""
    """What is taken off the names."""
    dtype: str | None = None
    ignore_unknown: bool = False
    overwrite: bool = False


class Conversion(NamedTuple):
    """What was done."""

    path: Path
    """What to load from."""
    kind: str
    """What wrote the old file."""
    tensors: dict[str, int]
    """By format."""
    nbytes: int
    tied: dict[str, str]
    """Second names of tensors that are written once, and the first ones."""
    values: list[str]
    """The plain values that are in the metadata."""
    left_out: dict[str, int]
    """In words, and how many."""
    parts: dict[str, int]
    """The parts of the old file that could be taken alone, and how many tensors are in each."""


def convert(source: Path, target: Path, wish: Wish, host: Host, progress: Progress = None) -> Conversion:
    """Convert a file, an index of shards or a folder.

    Raises:
        UntrustedError: it names what is not known to be harmless.
        WeightsError: it cannot be read or written, or was not written as it should; then nothing has changed.
    """
    files, places = files_meant(source)
    meant = file_meant(target)
    _check_target(files, meant, overwrite=wish.overwrite)
    cast = _cast(wish.dtype, host)
    with contextlib.ExitStack() as stack:
        found = [_found(file, wish, stack) for file in files]
        if wish.key is None:
            _check_places(source, places, files, found)
        groups = [_looked_at(one, wish, host, cast) for one in found]
        _check_all(source, groups, sum(one.source.size for one in found))
        texts, values = _values(found)
        sums: dict[str, int] = {}
        tied = _tied(groups)
        with _believing(plain(str(source))):  # what is compressed shows only now whether it is whole
            path = save_outgoing(
                [[_summed(tensor, sums) for tensor in group] for group in groups],
                target,
                target=meant,
                metadata=texts,
                progress=progress,
                words="converting weights",
                check=lambda written: _compare(written, groups, tied, sums),
            )
        return _told(path, found, groups, tied, values)


class _Found(NamedTuple):
    source: FileSource
    opened: Opened
    contents: Contents
    alone: bool
    """Whether a part was asked for, or there are none."""


# -- what is asked for -----------------------------------------------------------------------------
def _check_target(files: Sequence[Path], meant: Path, *, overwrite: bool) -> None:
    index = meant.with_name(f"{meant.name}.index.json")
    stem, count = meant.name.removesuffix(SUFFIX), len(files)
    shards = [meant.with_name(f"{stem}-{number:05}-of-{count:05}{SUFFIX}") for number in range(1, count + 1)]
    there = next((path for path in (meant, index, *shards) if os.path.lexists(path)), None)
    if there is None:
        return
    if any(os.path.realpath(file) == os.path.realpath(there) for file in files):
        raise WeightsError(f"{plain(str(there))} is what would be converted.", try_="another name for the new file")
    if not overwrite:
        what = f"{plain(str(there))} is there already."
        raise WeightsError(what, why="nothing is overwritten unasked", try_="--overwrite, or another name")


def _cast(dtype: str | None, host: Host) -> Cast | None:
    if dtype is None:
        return None
    form = next(known for known in FORMATS.values() if known.torch == dtype)
    if host.torch_failure() is None:
        return Cast(TorchArrays(host.torch()), form)
    if not host.installed("numpy"):
        raise WeightsError(f"Nothing can be cast to {dtype} here.", why="there is no NumPy", try_="pip install numpy")
    return Cast(NumpyArrays(host), form)


# -- reading ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def _believing(label: str) -> Iterator[None]:
    try:
        yield
    except UnbelievableError as bad:
        what = f"{label} cannot be converted."
        raise WeightsError(what, why=str(bad), try_="download or save it again") from None


def _found(file: Path, wish: Wish, stack: contextlib.ExitStack) -> _Found:
    source = FileSource(str(file))
    stack.callback(source.close)
    made = opened(source, ignore_unknown=wish.ignore_unknown)
    with _believing(source.label):
        root = made.root if wish.key is None else _part(made.root, wish.key, source.label)
        held = contents(root, made.notes.steps)
    held.left_out.update(made.notes.dropped)
    return _Found(source, made, held, wish.key is not None or not isinstance(root, dict))


def _part(root: Any, key: str, label: str) -> Any:
    try:
        return part(root, key)
    except KeyError as exc:
        keys = ", ".join(shown(known) for known in exc.args[:8]) + (", ..." if len(exc.args) > 8 else "")
        why = f"there it has {keys}" if keys else "there it has no keys at all"
        raise WeightsError(f"{label} has no {shown(key)}.", why=why, try_="--key with one of these") from None


def _check_places(source: Path, places: Mapping[str, str], files: Sequence[Path], found: Sequence[_Found]) -> None:
    held = {str(file): one.contents.tensors for file, one in zip(files, found, strict=True)}
    lost = next((name for name, file in places.items() if name not in held[file]), None)
    if lost is not None:
        what = f"{plain(str(source))} does not agree with its shards."
        why = f"it says that {shown(lost)} is in {plain(places[lost])}, which holds no such tensor"
        raise WeightsError(what, why=why, try_="download all of it again")


def _looked_at(found: _Found, wish: Wish, host: Host, cast: Cast | None) -> list[Outgoing]:
    names = found.contents.tensors
    if wish.prefix and names and not any(name.startswith(wish.prefix) for name in names):
        why = f"the names begin otherwise, such as {shown(next(iter(names)))}"
        raise WeightsError(
            f"{found.source.label} has no names with {shown(wish.prefix)}.", why=why, try_="another --key"
        )
    with _believing(found.source.label):
        return [
            outgoing(checked_name(name.removeprefix(wish.prefix)), tensor, host, cast) for name, tensor in names.items()
        ]


def _check_all(source: Path, groups: Sequence[Sequence[Outgoing]], size: int) -> None:
    """There are tensors, each has a name of its own, and they do not fill the disk from a small file."""
    label = plain(str(source))
    counts = Counter(tensor.name for group in groups for tensor in group)
    if not counts:
        raise WeightsError(f"{label} holds no tensors.", try_="another file, or --key without a typing error")
    twice = next((name for name, count in counts.items() if count > 1 or not name), None)
    if twice is not None:
        why = f"more than one of its tensors would be called {shown(twice)}"
        raise WeightsError(f"{label} cannot be converted.", why=why, try_="--key, or no --strip-prefix")
    total = sum(math.prod(tensor.shape) * tensor.format.bits // 8 for group in groups for tensor in group)
    if total > ROOM + GROWTH * size:
        why = f"its tensors repeat their elements: {size} bytes would become {total}"
        raise WeightsError(f"{label} cannot be converted.", why=why, try_="ask where it comes from")


# -- values ----------------------------------------------------------------------------------------
def _values(found: Sequence[_Found]) -> tuple[dict[str, str], list[str]]:
    """The metadata, and the names of what is in it."""
    kept: dict[str, Any] = {}
    left = MOST_VALUES
    for one in found:
        held = one.contents.values
        for key, value in (held if isinstance(held, dict) else {} if held is NOTHING else {"value": held}).items():
            length = len(json.dumps({key: value}))
            if length > left:
                one.contents.left_out[f"the value {shown(key)}, which takes {length} letters as JSON"] += 1
            else:
                kept[key] = value
                left -= length
    return ({VALUES: json.dumps(kept)} if kept else {}), list(kept)


# -- comparing -------------------------------------------------------------------------------------
def _summed(tensor: Outgoing, sums: dict[str, int]) -> Outgoing:
    """The same, and its checksum is known when it is written."""

    def parts() -> Iterator[memoryview]:
        found = 0
        for view in tensor.parts():
            found = zlib.crc32(view, found)
            yield view
        sums[tensor.name] = found

    return tensor._replace(parts=parts)


def _compare(
    written: Mapping[str, Path], groups: Sequence[Sequence[Outgoing]], tied: Mapping[str, str], sums: Mapping[str, int]
) -> None:
    """The new files hold what was meant; they are read again for that.

    Raises:
        WeightsError: they do not.
    """
    wanted = {tensor.name: tensor for group in groups for tensor in group if tensor.name not in tied}
    for name, path in written.items():
        if not name.endswith(SUFFIX):
            continue
        source = FileSource(str(path))
        try:
            for entry in read_header(source).entries.values():
                tensor = wanted.pop(entry.name, None)
                found = _checksum(source, entry.begin, entry.nbytes)
                same = tensor is not None and (entry.format, entry.shape) == (tensor.format, tensor.shape)
                if not same or found != sums[entry.name]:
                    raise _unlike(name, entry.name)
        finally:
            source.close()
    if wanted:
        raise _unlike("the new file", next(iter(wanted)))


def _checksum(source: FileSource, begin: int, nbytes: int) -> int:
    found, room = 0, memoryview(bytearray(min(nbytes, CHUNK)))
    for at in range(0, nbytes, CHUNK):
        view = room[: nbytes - at]
        source.read_into(view, begin + at)
        found = zlib.crc32(view, found)
    return found


def _unlike(file: str, name: str) -> WeightsError:
    why = f"{shown(name)} is not there as it was written"
    return WeightsError(f"{file} could not be written.", why=why, try_="another disk; what lay there is untouched")


def _tied(groups: Sequence[Sequence[Outgoing]]) -> dict[str, str]:
    first: dict[object, str] = {}
    made = {}
    for tensor in (tensor for group in groups for tensor in group if tensor.place is not None):
        name = first.setdefault(tensor.place, tensor.name)
        if name != tensor.name:
            made[tensor.name] = name
    return made


# -- telling ---------------------------------------------------------------------------------------
def _told(
    path: Path,
    found: Sequence[_Found],
    groups: Sequence[Sequence[Outgoing]],
    tied: dict[str, str],
    values: list[str],
) -> Conversion:
    kept = [tensor for group in groups for tensor in group if tensor.name not in tied]
    left_out: Counter[str] = Counter()
    for one in found:
        left_out.update(one.contents.left_out)
    formats = Counter(tensor.format.torch or tensor.format.name for tensor in kept)
    nbytes = sum(tensor.nbytes for tensor in kept)
    return Conversion(path, found[0].opened.kind, dict(formats), nbytes, tied, values, dict(left_out), _parts(found[0]))


def _parts(found: _Found) -> dict[str, int]:
    """The dictionaries directly in the file that hold tensors, if all of them lie in such ones."""
    root, tensors = found.opened.root, found.contents.tensors
    if found.alone or any(isinstance(child, Dense) for child in root.values()):
        return {}
    counts = {key: sum(name.startswith(f"{key}.") for name in tensors) for key in root if isinstance(key, str)}
    return {key: count for key, count in counts.items() if count}
