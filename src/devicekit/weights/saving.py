"""``save_safetensors``: tensors into files that any reader of safetensors understands, without ever losing old ones.

One tensor after another is written, so that saving takes no memory to speak of. Names keep their order in the header;
the bytes lie in descending order of element size, so that each tensor can be mapped where it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devicekit import host as hosts
from devicekit.errors import WeightsError
from devicekit.host import Host
from devicekit.weights.header import LONGEST, shown
from devicekit.weights.outgoing import Outgoing, outgoing
from devicekit.weights.progress import Progress, following
from devicekit.weights.replacing import Replacement, reported

__all__ = ["checked_name", "file_meant", "save_outgoing", "save_safetensors"]

SUFFIX = ".safetensors"
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE | re.ASCII)


class _File(NamedTuple):
    """One file of weights that is to be."""

    name: str
    header: bytes
    tensors: Sequence[Outgoing]
    """In the order of their names."""


def save_safetensors(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
    progress: Progress = None,
) -> Path:
    """Save weights as safetensors; what lay there before stays until the new is whole.

    Args:
        obj: a module, or tensors and arrays by name. Those that are one in memory are written once, and the other
            names go into the metadata, from where loading ties them again.
        path: a file whose name ends in ``.safetensors``, or a folder, for ``model.safetensors`` in it.
        metadata: texts for the file; ``format`` is added where it is missing.
        max_shard_size: bytes, or as in ``"5GB"`` and ``"5GiB"``: more than that goes into several files and an index.
        progress: called with the bytes done and the bytes in all; True: a bar on stderr; False: nothing. By default a
            bar where a person watches and it takes more than a second.

    Returns:
        What to load from: the file, or the index.

    Raises:
        WeightsError: something cannot be saved, or the system refused; then nothing has changed.
    """
    target, limit, host = file_meant(path), _limit(max_shard_size), hosts.current()
    tensors = [outgoing(checked_name(name), value, host) for name, value in _by_name(obj, host).items()]
    return save_outgoing([tensors], path, target=target, metadata=metadata, limit=limit, progress=progress)


def save_outgoing(
    groups: Sequence[Sequence[Outgoing]],
    path: str | os.PathLike[str],
    *,
    target: Path,
    metadata: Mapping[str, str] | None = None,
    limit: int | None = None,
    progress: Progress = None,
    words: str = "saving weights",
    check: Callable[[Mapping[str, Path]], object] | None = None,
) -> Path:
    """Save what was looked at already: no group shares a file with another.

    Args:
        groups: their names are checked, and none comes twice.
        path: as the caller was told, a file or a folder, which is made.
        target: the file that is meant by it.
        metadata: as for ``save_safetensors``.
        limit: bytes of a file.
        progress: as for ``save_safetensors``.
        words: beside the bar.
        check: looks at the new files, by their names to be, while what lay there before is still untouched.

    Returns:
        What to load from: the file, or the index.

    Raises:
        WeightsError: something cannot be saved, or the system refused; then nothing has changed.
    """
    tensors = [tensor for group in groups for tensor in group]
    kept, aliases = _untied(tensors)
    texts = _texts(metadata, aliases, tensors)
    shards = [shard for group in groups for shard in _shards([t for t in group if t.name not in aliases], limit)]
    files = _files(target.name.removesuffix(SUFFIX), list(filter(None, shards)) or [[]], texts, aliases)
    if target != Path(path):
        with reported(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
    with following(progress, sum(tensor.nbytes for tensor in kept), words=words) as tell:
        return _write(target, files, tell, check)


# -- what is asked for ---------------------------------------------------------------------------
def file_meant(path: str | os.PathLike[str]) -> Path:
    """A file of weights, or the one in a folder of that name.

    Raises:
        WeightsError: it is an index.
    """
    target = Path(path)
    if target.name.endswith(".json"):
        what = f"Weights cannot be saved as {target}."
        raise WeightsError(what, why="an index of shards comes by itself", try_="a name that ends in .safetensors")
    return target if target.name.endswith(SUFFIX) else target / f"model{SUFFIX}"


def _limit(size: int | str | None) -> int | None:
    if size is None or (type(size) is int and size > 0):
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is not None:
        number, prefix, binary = match.groups()
        base = 1024 if binary else 1000
        made = int(float(number) * base ** " kmgt".index(prefix.lower() or " "))
        if made > 0 and (prefix or not binary):
            return made
    raise WeightsError(f"{size!r} is no size of a shard.", try_='max_shard_size="5GB", "5GiB" or a number of bytes')


# -- what is written -----------------------------------------------------------------------------
def _by_name(obj: Any, host: Host) -> Mapping[Any, Any]:
    torch = host.loaded("torch")
    if torch is not None and isinstance(obj, torch.nn.Module):
        return obj.state_dict()  # type: ignore[no-any-return]  # torch has no types here
    if isinstance(obj, Mapping):
        return obj
    what = f"Weights cannot be saved from a {type(obj).__name__}."
    raise WeightsError(what, try_="a module, or a dict of tensors or arrays by name")


def checked_name(name: Any) -> str:
    """A name that a file can hold.

    Raises:
        WeightsError: it is none.
    """
    if not isinstance(name, str):
        why = f"the name {shown(repr(name))} is a {type(name).__name__}, and a file holds texts only"
        raise WeightsError("Weights cannot be saved.", why=why, try_="str(name)")
    if name == "__metadata__":
        why = f"{name!r} is where the file keeps its own texts"
        raise WeightsError("Weights cannot be saved.", why=why, try_="metadata=, or another name")
    return _unicode(name)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        why = f"{text!a:.120} is no Unicode text: {exc.reason}"
        raise WeightsError("Weights cannot be saved.", why=why, try_="another text") from None
    return text


def _untied(tensors: Iterable[Outgoing]) -> tuple[list[Outgoing], dict[str, str]]:
    """Each tensor once, under its first name, and the other names with that one."""
    first: dict[object, str] = {}
    kept, aliases = [], {}
    for tensor in tensors:
        name = tensor.name if tensor.place is None else first.setdefault(tensor.place, tensor.name)
        if name == tensor.name:
            kept.append(tensor)
        else:
            aliases[tensor.name] = name
    return kept, aliases


def _texts(metadata: Any, aliases: Mapping[str, str], tensors: Sequence[Outgoing]) -> dict[str, str]:
    """What the file says of itself, whichever tensors it holds."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise WeightsError(f"A {type(metadata).__name__} is no metadata.", try_='metadata={"license": "apache-2.0"}')
    made = dict(metadata or {})
    for key, text in made.items():
        if not isinstance(key, str) or not isinstance(text, str):
            why = f"{shown(repr(key))}: {shown(repr(text))} in metadata= is not a text under a text"
            raise WeightsError("Weights cannot be saved.", why=why, try_="str() or json.dumps() of it")
        _unicode(key), _unicode(text)
    # transformers refuses a file without it; tensors of torch and arrays together are for torch.
    made.setdefault("format", "np" if {tensor.framework for tensor in tensors} == {"np"} else "pt")
    for alias, kept in aliases.items():
        if made.pop(alias, kept) != kept:
            why = f"it is tied to {shown(kept)}, and the metadata, where that is kept, has another text of this name"
            raise WeightsError(
                f"{shown(alias)} cannot be saved.", why=why, try_="another name in metadata=, or clone()"
            )
    return made


# -- where it is written -------------------------------------------------------------------------
def _shards(tensors: Sequence[Outgoing], limit: int | None) -> list[list[Outgoing]]:
    """One after another, as many as fit; one that fits nowhere has a file of its own."""
    shards: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in tensors:
        if limit is not None and shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _files(
    stem: str, shards: Sequence[Sequence[Outgoing]], texts: Mapping[str, str], aliases: Mapping[str, str]
) -> list[_File]:
    made = []
    for number, tensors in enumerate(shards, 1):
        name = f"{stem}-{number:05}-of-{len(shards):05}{SUFFIX}" if len(shards) > 1 else stem + SUFFIX
        here = {tensor.name for tensor in tensors}
        ties = {alias: kept for alias, kept in aliases.items() if kept in here}
        made.append(_File(name, _header(tensors, {**texts, **ties}), tensors))
    return made


def _laid_out(tensors: Iterable[Outgoing]) -> list[Outgoing]:
    """In the order of their bytes."""
    return sorted(tensors, key=lambda tensor: -tensor.format.bits)


def _header(tensors: Iterable[Outgoing], metadata: Mapping[str, str]) -> bytes:
    offsets: dict[str, list[int]] = {}
    end = 0
    for tensor in _laid_out(tensors):
        offsets[tensor.name] = [end, end + tensor.nbytes]
        end += tensor.nbytes
    described: dict[str, Any] = {"__metadata__": metadata}
    for tensor in tensors:
        entry = {"dtype": tensor.format.name, "shape": tensor.shape, "data_offsets": offsets[tensor.name]}
        described[tensor.name] = entry
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST:
        why = f"their header would be {len(text)} bytes long, and no reader takes more than {LONGEST}"
        raise WeightsError("Weights cannot be saved.", why=why, try_="max_shard_size=, or less metadata")
    return len(text).to_bytes(8, "little") + text


# -- writing -------------------------------------------------------------------------------------
def _write(
    target: Path,
    files: Sequence[_File],
    tell: Callable[[int], None],
    check: Callable[[Mapping[str, Path]], object] | None,
) -> Path:
    index = target.with_name(f"{target.name}.index.json")
    result = target if len(files) == 1 else index
    for path in (result, *(target.with_name(file.name) for file in files)):
        if path.is_dir() and not path.is_symlink():
            raise WeightsError(f"{path} could not be written.", why="it is a folder", try_="another name, or remove it")
    with Replacement(target.parent) as new:
        for file in files:
            with new.file(file.name) as append:
                append(file.header)
                for tensor in _laid_out(file.tensors):
                    for part in tensor.parts():
                        append(part)
                        tell(len(part))
        if result is index:
            with new.file(index.name) as append:
                append(_index(files))
        if check is not None:
            check(new.written)
        names = {result.name, *(file.name for file in files)}
        new.commit([name for name in (target.name, index.name, *_old_shards(index)) if name not in names])
    return result


def _index(files: Sequence[_File]) -> bytes:
    """In the form of the Hugging Face hub, with the names in the order of the headers."""
    size = sum(tensor.nbytes for file in files for tensor in file.tensors)
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    return json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2).encode() + b"\n"


def _old_shards(index: Path) -> list[str]:
    """The shards of an index that is to go: of what it names only files that this function could have written."""
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # there is none, or it is no index
    pattern = re.compile(rf"{re.escape(index.name.removesuffix(f'{SUFFIX}.index.json'))}-\d{{5,}}-of-\d{{5,}}{SUFFIX}")
    return sorted(name for name in named if isinstance(name, str) and pattern.fullmatch(name))
