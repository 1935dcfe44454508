"""Find the tensors of a checkpoint: one file, a shard index, a folder, several files, bytes or an open file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devicekit.errors import WeightsError
from devicekit.weights.header import Entry, UnbelievableError, parsed, plain, read_header, shown
from devicekit.weights.source import FileSource, MemorySource, Source, opened

__all__ = ["Checkpoint", "Stored", "inside", "opened_checkpoint", "weight_map"]

INDEX = ".safetensors.index.json"
LONGEST_INDEX = 100_000_000
"""Bytes; the same bound as a header's."""


class Stored(NamedTuple):
    """A tensor in a file."""

    source: Source
    entry: Entry


class Checkpoint(NamedTuple):
    """All tensors by name, in the files' order."""

    label: str
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    """Of all files together; where two differ, the first one's."""


@contextlib.contextmanager
def opened_checkpoint(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint with its files open.

    Raises:
        WeightsError: nothing is there, it cannot be read, or it is not what it claims to be.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(path, str | os.PathLike):  # first, for some paths have a read() too
            yield _at(_path(path), stack)
        elif isinstance(path, bytes | bytearray | memoryview):
            yield _joined("<bytes>", [MemorySource(path)], stack)
        elif hasattr(path, "read"):
            source = opened(path)
            yield _joined(source.label, [source], stack)
        elif isinstance(path, Sequence):
            paths = [_path(each) for each in path]
            if not paths:
                raise WeightsError("No weights to load.", why="the list of files is empty")
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield _joined(plain(str(paths[0])) + more, _files(paths), stack)
        else:
            raise _no_path(path)


def _path(given: Any) -> Path:
    if isinstance(given, str | os.PathLike):
        told = os.fspath(given)
        if isinstance(told, str) and told:  # Path("") would be the current folder
            return Path(told)
    raise _no_path(given)


def _no_path(given: Any) -> WeightsError:
    what = f"an empty {type(given).__name__}" if given == "" else f"a {type(given).__name__}"
    return WeightsError(
        f"Weights cannot be loaded from {what}.", try_="a path, a list of paths, bytes, or open(path, 'rb')"
    )


def _at(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises what the reading will say better
        path = _in_folder(path)
    if path.name.endswith(".json"):
        return _indexed(path, stack)
    return _joined(plain(str(path)), _files([path]), stack)


def _files(paths: Sequence[Path]) -> Iterator[Source]:
    return (FileSource(str(path)) for path in paths)


def _joined(label: str, sources: Any, stack: contextlib.ExitStack) -> Checkpoint:
    """All tensors of all these files; a name may be in one of them only."""
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for source in sources:
        stack.callback(source.close)
        header = read_header(source)
        metadata = {**header.metadata, **metadata}
        for name, entry in header.entries.items():
            if name in tensors:
                why = f"{shown(name)} is in {tensors[name].source.label} and in {source.label}"
                raise WeightsError(f"{label} cannot be loaded.", why=why, try_="load the files one by one")
            tensors[name] = Stored(source, entry)
    return Checkpoint(label, tensors, metadata)


# -- folders -------------------------------------------------------------------------------------
def _in_folder(folder: Path) -> Path:
    """What is meant by a folder, in the order in which transformers looks."""
    try:
        names = sorted(each.name for each in folder.iterdir())
    except OSError as exc:
        raise WeightsError(f"{plain(str(folder))} cannot be read.", why=exc.strerror or str(exc)) from exc
    if "model.safetensors" in names:
        return inside(folder, "model.safetensors")
    for kind, found in (
        ("indices of shards", [name for name in names if name.endswith(INDEX)]),
        ("files of weights", [name for name in names if name.endswith(".safetensors")]),
    ):
        if len(found) == 1:
            return inside(folder, found[0])
        if found:
            some = ", ".join(plain(name) for name in found[:6]) + (", ..." if len(found) > 6 else "")
            what = f"{plain(str(folder))} does not say which weights are meant."
            raise WeightsError(what, why=f"it holds several {kind}: {some}", try_="name the file or files")
    why = f"no name there ends in .safetensors or {INDEX}"
    raise WeightsError(f"{plain(str(folder))} holds no weights.", why=why)


def inside(folder: Path, name: str) -> Path:
    """The path of a file that an index or a folder names, if it lies in the folder.

    The name comes with the download, so it must not reach other files of this machine: not by ``..``, not by an
    absolute path, not by a link. One kind of link leaves the folder rightly: the hub's cache keeps the files of
    ``snapshots/REVISION`` in ``blobs`` beside ``snapshots``.
    """
    base = Path(os.path.realpath(folder))
    roots = [base, *(parent.parent / "blobs" for parent in (base, *base.parents) if parent.name == "snapshots")]
    if "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts:
        real = Path(os.path.realpath(folder / name))
        if any(real.is_relative_to(root) for root in roots):
            return folder / name
    why = f"it names {shown(name)}, which lies outside of the folder"
    raise WeightsError(f"{plain(str(folder))} cannot be trusted.", why=why)


# -- the index of shards -------------------------------------------------------------------------
def _indexed(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    places = weight_map(path)
    label = plain(str(path))
    held: dict[str, dict[str, Stored]] = {}
    metadata: dict[str, str] = {}
    for shard in dict.fromkeys(places.values()):  # one by one, for a hostile index can name millions
        where = inside(path.parent, shard)
        found = _joined(plain(str(where)), _files([where]), stack)
        held[shard] = found.tensors
        metadata = {**found.metadata, **metadata}
    lost = [(name, shard) for name, shard in places.items() if name not in held[shard]]
    if lost:
        why = f"it says that {shown(lost[0][0])} is in {shown(lost[0][1])}, which holds no such tensor"
        why += f"; {len(lost) - 1} more are lost like that" if len(lost) > 1 else ""
        raise WeightsError(f"{label} does not agree with its shards.", why=why, try_="download all of it again")
    return Checkpoint(label, {name: held[shard][name] for name, shard in places.items()}, metadata)


def weight_map(path: Path) -> dict[str, str]:
    """The names in an index of shards, and the file in which each of them is.

    Raises:
        WeightsError: it cannot be read, or is no index.
    """
    source = FileSource(str(path))
    try:
        if source.size > LONGEST_INDEX:
            raise _no_index(path, f"it has {source.size} bytes; more than {LONGEST_INDEX} is refused")
        raw = source.read(0, source.size)
    finally:
        source.close()
    try:
        described = parsed(raw, "it")
    except UnbelievableError as bad:
        raise _no_index(path, str(bad)) from None
    places = described.get("weight_map") if isinstance(described, dict) else None
    if places is None:
        raise _no_index(path, "it has no weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise _no_index(path, "its weight_map is not a map of names to files")
    return places


def _no_index(path: Path, why: str) -> WeightsError:
    what = f"{plain(str(path))} cannot be read as an index of shards."
    return WeightsError(what, why=why, try_="download it again")
