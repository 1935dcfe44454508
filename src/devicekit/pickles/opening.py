"""Open a file of weights, whatever wrote it, and say what it holds; or why it is not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devicekit.errors import WeightsError
from devicekit.pickles import legacy, npy
from devicekit.pickles.archives import Archive
from devicekit.pickles.known import is_executor, is_known
from devicekit.pickles.machine import Notes
from devicekit.pickles.stand_ins import Global
from devicekit.weights.checkpoint import inside, weight_map
from devicekit.weights.header import UnbelievableError, plain, read_header, something_else
from devicekit.weights.source import Source

__all__ = ["Opened", "UntrustedError", "files_meant", "opened"]

SPARE = 64 << 20
COPIES = 4
"""Bytes that may be copied, for a byte of the file: NumPy's arrays before protocol 3 are texts, and copied once."""
ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy")
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"\x04\x22M\x18": "lz4",
}
ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"ZF")


class UntrustedError(WeightsError):
    """A file that names what is not known to be harmless."""

    def __init__(self, what: str, *, why: str = "", try_: str = "", names: Sequence[tuple[str, int, int]] = ()) -> None:
        super().__init__(what, why=why, try_=try_)
        self.names = names
        """Each with how often it is named, and the byte of the pickle at which it is first."""


class Opened(NamedTuple):
    """What a file holds."""

    root: Any
    kind: str
    """What wrote it."""
    notes: Notes
    ignored: int
    """How many names were not known."""


def opened(source: Source, *, ignore_unknown: bool) -> Opened:
    """What a file holds.

    Raises:
        UntrustedError: it names what is not known to be harmless.
        WeightsError: it cannot be read.
    """
    notes = Notes(room=SPARE + COPIES * source.size)
    try:
        root, kind = _read(source, notes)
    except UnbelievableError as bad:
        _check(source, notes, ignore_unknown=ignore_unknown)  # first, for it is the greater news
        why, fix = _otherwise(source) or (str(bad), "download or save it again")
        raise WeightsError(f"{source.label} cannot be converted.", why=why, try_=fix) from None
    return Opened(root, kind, notes, _check(source, notes, ignore_unknown=ignore_unknown))


def _read(source: Source, notes: Notes) -> tuple[Any, str]:
    start = source.read(0, min(source.size, 8))
    if start.startswith(b"PK"):
        return Archive(source).read(notes)
    if start.startswith(npy.MAGIC):
        return npy.read_array(source), "NumPy's .npy"
    root = legacy.read_pickles(source, notes)
    return root, "torch.save before 1.6" if notes.by_torch else "a pickle"


def _otherwise(source: Source) -> tuple[str, str] | None:
    """What it is, where it is nothing that is converted."""
    start = source.read(0, min(source.size, 512))
    if start[257:262] == b"ustar":
        return "it is a tar archive, as torch.save wrote them before 0.2", "load and save it with a torch of those days"
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            return f"it is compressed with {name}", "decompress it first"
    if start.startswith(ZLIB):
        return "it is compressed with zlib, as joblib does", "joblib.load, and save its arrays with numpy.savez"
    try:
        read_header(source)
    except WeightsError:
        return something_else(source, pickles=False)
    return "it is safetensors already", "use it as it is"


# -- names -----------------------------------------------------------------------------------------
def _check(source: Source, notes: Notes, *, ignore_unknown: bool) -> int:
    unknown = [name for name in notes.named if not is_known(name)]
    if any(name.module.partition(".")[0] == "joblib" for name in unknown):
        why, fix = "joblib wrote it, and mixes arrays into its pickle", "joblib.load, and save them with numpy.savez"
        raise WeightsError(f"{source.label} cannot be converted.", why=why, try_=fix)
    bad = [name for name in unknown if is_executor(name)]
    if bad:
        fix = "do not load it with anything else; ask where it comes from"
        raise _untrusted(source, bad, "it would run what is no part of weights when it is loaded in the usual way", fix)
    if unknown and not ignore_unknown:
        fix = "--ignore-unknown leaves such objects out, if you know what they are; nothing of them is run"
        raise _untrusted(source, unknown, "it names what is not known to be harmless", fix)
    return len(unknown)


def _untrusted(source: Source, names: Sequence[Global], why: str, fix: str) -> UntrustedError:
    counts = Counter(str(name) for name in names)
    first = {str(name): name.at for name in reversed(names)}
    told = [f"{name!a:.100} at byte {first[name]}" for name in list(counts)[:5]]
    more = f", and {len(counts) - 5} more" if len(counts) > 5 else ""
    listed = [(name, count, first[name]) for name, count in counts.items()]
    why = f"{why}: {', '.join(told)}{more}"
    return UntrustedError(f"{source.label} is not converted.", why=why, try_=fix, names=listed)


# -- files -----------------------------------------------------------------------------------------
def files_meant(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of a checkpoint, and for each name of its index, if it has one, the file in which it must be.

    Raises:
        WeightsError: a folder that does not say which, or an index that cannot be trusted.
    """
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises what the reading will say better
        path = _in_folder(path)
    if path.name.endswith(".json"):
        places = {name: str(inside(path.parent, shard)) for name, shard in weight_map(path).items()}
        return [Path(file) for file in dict.fromkeys(places.values())], places
    return [path], {}


def _in_folder(folder: Path) -> Path:
    try:
        names = sorted(each.name for each in folder.iterdir())
    except OSError as exc:
        raise WeightsError(f"{plain(str(folder))} cannot be read.", why=exc.strerror or str(exc)) from exc
    indices = [name for name in names if name.endswith(".index.json") and ".safetensors." not in name]
    found = indices or [name for name in names if name.endswith(ENDINGS)]
    if len(found) == 1:
        return inside(folder, found[0])
    what = f"{plain(str(folder))} does not say which weights are meant."
    held = ", ".join(plain(name) for name in found[:6]) + (", ..." if len(found) > 6 else "")
    why = f"it holds {held}" if found else f"no name there ends in {', '.join(ENDINGS)} or .index.json"
    raise WeightsError(what, why=why, try_="name the file")
