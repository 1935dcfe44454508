"""Convert checkpoints of torch, pickle or NumPy to safetensors, without executing what is in them.

SOURCE is a file (.pt, .pth, .bin, .ckpt, .pkl, .npz, .npy), an index of shards, or a folder. TARGET is a file whose
name ends in .safetensors, or a folder. torch is not needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from devicekit import host as _host
from devicekit.cli import output, where
from devicekit.cli.output import human_bytes, one_line
from devicekit.errors import DeviceKitError
from devicekit.pickles.conversion import DTYPES, VALUES, Conversion, Wish, convert
from devicekit.pickles.opening import UntrustedError

__all__ = ["add_arguments", "run"]

UNTRUSTED = 1
SHOWN = 5
"""How many of a kind are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("source", metavar="SOURCE", help="a file, an index of shards, or a folder")
    parser.add_argument("target", metavar="TARGET", help="a file that ends in .safetensors, or a folder")
    parser.add_argument("--key", metavar="NAME", help="take only what is under this key: state_dict, or a.b")
    parser.add_argument("--strip-prefix", metavar="TEXT", default="", help='take this off the names: "module."')
    parser.add_argument("--dtype", choices=DTYPES, help="cast floating-point tensors to it")
    parser.add_argument("--ignore-unknown", action="store_true", help="leave out objects of unknown classes")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies there, once the new is whole")
    where.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, and tell what became of what."""
    wish = Wish(options.key, options.strip_prefix, options.dtype, options.ignore_unknown, options.overwrite)
    for path in (options.source, options.target):
        if not path or "\0" in path:
            raise DeviceKitError(f"{path!r} is no file.", try_="devicekit convert old.pt new.safetensors")
    try:
        done = convert(Path(options.source), Path(options.target), wish, _host.current())
    except UntrustedError as error:
        output.print_error(error)
        if options.json:
            names = [{"name": name, "count": count, "byte": at} for name, count, at in error.names]
            output.print_json({"source": options.source, "refused": names})
        return UNTRUSTED
    if options.json:
        output.print_json(_as_data(options.source, done))
    else:
        _print(done)
    return 0


def _as_data(source: str, done: Conversion) -> dict[str, Any]:
    return {
        "source": source,
        "kind": done.kind,
        "target": str(done.path),
        "tensors": sum(done.tensors.values()),
        "bytes": done.nbytes,
        "dtypes": done.tensors,
        "tied": done.tied,
        "values": done.values,
        "left_out": done.left_out,
        "parts": done.parts,
    }


def _print(done: Conversion) -> None:
    formats = ", ".join(f"{count} {name}" for name, count in done.tensors.items())
    total = f"{_tensors(sum(done.tensors.values()))}, {human_bytes(done.nbytes)} ({formats})"
    output.print_text(f"{one_line(done.path)}: {total}, from {done.kind}; written, read again and compared")
    if done.tied:
        pairs = _some([f"{second} = {first}" for second, first in done.tied.items()])
        output.print_text(f"tied, so written once, and noted in the metadata: {pairs}", indent=2, hanging=4)
    if done.values:
        output.print_text(f"kept as JSON in the metadata, under {VALUES!r}: {_some(done.values)}", indent=2, hanging=4)
    for what, count in done.left_out.items():
        output.print_text(f"left out ({count}): {one_line(what)}", indent=2, hanging=4)
    if done.parts:
        pairs = _some([f"{key} ({_tensors(count)})" for key, count in done.parts.items()])
        output.print_text(f"names begin with the keys of the old file; --key takes one part alone: {pairs}", indent=2)


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return one_line(", ".join(name[:120] for name in names[:SHOWN])) + more
