"""Measure what every usable device can do: memory bandwidth, products, attention, convolution, a transformer's forward.

Each figure is the median of several samples, taken when the device had nothing else to do. What cannot be measured is a
row with the reason. The numpy backend is measured where there is no torch, or when it is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from devicekit import host as _host
from devicekit.bench import plot, results
from devicekit.bench.cases import DTYPES, KINDS, Settings
from devicekit.bench.rows import FAILED, Row, rows
from devicekit.bench.stage import stage_for
from devicekit.bench.transformer import HEAD
from devicekit.cli import output, where
from devicekit.cli.files import draft, told_as_ours
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.isolation.steps import label
from devicekit.manager import DeviceManager
from devicekit.resolve import Decision, resolver

__all__ = ["add_arguments", "duration_in_words", "progress", "run", "seconds_of"]

NOTHING_MEASURED = 1
LARGEST = 2**31 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--device", metavar="NAME", help="this one only; without it every device that can be used")
    parser.add_argument("--only", metavar="WORD", nargs="+", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--batch-sizes", metavar="N", nargs="+", help="for attention, convolution and model (32)")
    parser.add_argument(
        "--seq-lengths", metavar="N", nargs="+", help="for attention (1024, on a processor 256) and model (128, 16)"
    )
    parser.add_argument(
        "--hidden-sizes", metavar="N", nargs="+", help=f"for attention and model, multiples of {HEAD} (1024)"
    )
    parser.add_argument("--dtype", metavar="NAME", nargs="+", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--iterations", metavar="N", type=int, default=10, help="samples of a row (10)")
    parser.add_argument("--duration", metavar="SECONDS", type=float, default=10.0, help="of a row, about (10)")
    parser.add_argument("--output", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw them: .png, .svg or .pdf; needs matplotlib")
    where.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check what can go wrong, measure, tell."""
    settings = _settings(options)
    host = _host.current()
    with contextlib.ExitStack() as stack:
        text = stack.enter_context(draft("--output", options.output))
        picture = stack.enter_context(draft("--plot", _drawable(options.plot, host)))
        told, found = _measure(_targets(options.device, host), settings, host)
        if text is not None:
            with told_as_ours("--output", options.output):
                text.commit(results.as_text(told))
        if picture is not None:
            with told_as_ours("--plot", options.plot):
                plot.draw(host, found, picture.path)
                picture.commit()
    if options.json:
        output.print_json(told)
    else:
        _print(told, found)
    return 0 if any(row.seconds is not None for row in found) else NOTHING_MEASURED


# -- what was asked for ----------------------------------------------------------------------------
def _settings(options: argparse.Namespace) -> Settings:
    if options.iterations < 1:
        raise DeviceKitError(f"--iterations {options.iterations} measures nothing.", try_="a number of samples from 1")
    return Settings(
        only=_words("--only", options.only, KINDS) or KINDS,
        batch_sizes=_numbers("--batch-sizes", options.batch_sizes),
        seq_lengths=_numbers("--seq-lengths", options.seq_lengths),
        hidden_sizes=_numbers("--hidden-sizes", options.hidden_sizes, HEAD),
        dtypes=_words("--dtype", options.dtype, tuple(DTYPES)),
        iterations=options.iterations,
        duration=seconds_of(options),
    )


def seconds_of(options: argparse.Namespace) -> float:
    """``--duration``.

    Raises:
        DeviceKitError: it is no time.
    """
    return where.positive(options.duration, f"--duration {options.duration:g} is no time.")


def _split(texts: Sequence[str] | None) -> list[str]:
    """``1 2`` and ``1,2`` are the same."""
    return [word for text in texts or () for word in text.split(",") if word]


def _words(option: str, texts: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    found = [word.strip().lower() for word in _split(texts)]
    for word in found:
        if word not in known:
            raise DeviceKitError(f"{option} {word!r} means nothing.", try_=f"of {', '.join(known)}")
    if texts is not None and not found:
        raise DeviceKitError(f"{option} names nothing.", try_=f"of {', '.join(known)}")
    return tuple(word for word in known if word in found)


def _numbers(option: str, texts: Sequence[str] | None, step: int = 1) -> tuple[int, ...]:
    hint = f"whole numbers, multiples of {step}" if step > 1 else "whole numbers from 1, such as 1 8 32"
    found = _split(texts)
    if texts is not None and not found:
        raise DeviceKitError(f"{option} names nothing.", try_=hint)
    for word in found:
        if not (word.isascii() and word.isdigit() and len(word) <= 10 and 1 <= int(word) <= LARGEST):
            raise DeviceKitError(f"{option} {word!r} is no size.", try_=hint)
        if int(word) % step:
            raise DeviceKitError(f"{option} {word} cannot be measured.", why=f"a head is {step} wide", try_=hint)
    return tuple(dict.fromkeys(map(int, found)))


# -- files -----------------------------------------------------------------------------------------
def _drawable(path: str | None, host: Host) -> str | None:
    """The path of the picture.

    Raises:
        DeviceKitError: it cannot be drawn.
    """
    if path is None:
        return None
    if Path(path).suffix.lower() not in plot.ENDINGS:
        raise DeviceKitError(
            f"--plot {path} cannot be drawn.", why="its ending names no format", try_=", ".join(plot.ENDINGS)
        )
    if not host.installed("matplotlib"):
        why = "matplotlib is not installed"
        raise DeviceKitError("--plot cannot draw here.", why=why, try_='pip install "devicekit[plot]"')
    return path


# -- measuring -------------------------------------------------------------------------------------
def _targets(name: str | None, host: Host) -> list[tuple[str, Decision]]:
    """Label and decision of every device that is to be measured.

    Raises:
        DeviceKitError: the one that was asked for cannot be had, or there is none.
    """
    here = resolver(host)
    if name is not None:
        decision = here.decide(name, strict=True)
        return [(label(decision.name, decision.index), decision)]
    usable = [row for row in here.usable_rows() if row.automatic]
    if any(row.name == "cpu" for row in usable):
        usable = [row for row in usable if row.name != "numpy"]  # the same processor
    found = [
        here.decide(f"{row.name}:{device.index}" if here.backend(row).indexed else row.name, strict=True)
        for row in usable
        for device in here.probe(row).devices
        if device.usable
    ]
    if not found:
        raise DeviceKitError(
            "nothing can be measured here.", why="neither torch nor NumPy can be used", try_="pip install numpy"
        )
    return [(label(decision.name, decision.index), decision) for decision in found]


def _measure(
    targets: Sequence[tuple[str, Decision]], settings: Settings, host: Host
) -> tuple[dict[str, Any], list[Row]]:
    created, devices = results.now(), []
    work: list[tuple[str, Callable[[], Row]]] = []
    for name, decision in targets:
        try:
            manager = DeviceManager(name, strict=True)
            told = results.about(name, manager, decision.backend)
            stage = stage_for(decision.backend, decision.device, decision.index or 0, told["dtype"])
            work += rows(name, stage, settings)
        except Exception as exc:  # of a runtime that is broken; the other devices are measured all the same
            told = results.unknown(name, decision.backend)
            work += [(name, functools.partial(_broken, name, kind, exc)) for kind in settings.only]
        devices.append(told)
    found = []
    with progress(len(work)) as tell:
        for words, measure in work:
            tell(f"measuring {words}")
            found.append(measure())
    backends = [decision.backend for _, decision in targets]
    return results.document(created, host, devices, backends, settings, found), found


def _broken(name: str, kind: str, exc: Exception) -> Row:
    return Row(name, kind, "", {}, "", FAILED, f"{type(exc).__name__}: {exc}")


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr where a person watches; the block gets a function to call before each step, with words."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def tell(words: str) -> None:
            nonlocal begun
            bar.update(task, description=words, completed=begun)
            begun += 1

        yield tell


# -- as text ---------------------------------------------------------------------------------------
RATES = {"bandwidth": "gigabytes_per_second", "model": "tokens_per_second"}
UNITS = {"gigabytes_per_second": "GB/s", "teraflops_per_second": "TFLOP/s", "tokens_per_second": "tokens/s"}


def _print(told: dict[str, Any], found: Sequence[Row]) -> None:
    for device in told["devices"]:
        parts = [device["name"], device["architecture"], device["dtype"] and f"models run in {device['dtype']}"]
        tuned = ", tuned" if device["tuning"] is not None else ""
        output.print_text(f"{device['label']}: {', '.join(output.one_line(part) for part in parts if part)}{tuned}")
    output.print_text()
    head = ("device", "what", "dtype", "size", "time", "spread", "rate", "peak memory")
    output.print_table([_cells(row) for row in found], head)
    notes = [(row, text) for row in found for text in (*row.notes, *([row.reason] if row.reason else []))]
    if notes:
        output.print_text()
    for row, text in notes:
        output.print_text(f"{row.device}, {row.kind}, {row.dtype}: {output.one_line(text)}", indent=2, hanging=4)


def _cells(row: Row) -> tuple[str, ...]:
    first = (row.device, row.kind, row.dtype, row.words)
    if row.seconds is None or row.fastest is None or row.slowest is None:
        return (*first, row.status.replace("_", " "), "", "", "")
    spread = f"{(row.slowest - row.fastest) / row.seconds:.0%}" if row.samples > 1 and row.seconds else ""
    name = RATES.get(row.kind, "teraflops_per_second")
    figure = row.rates[name]
    rate = f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"
    memory = "" if row.peak_memory is None else output.human_bytes(row.peak_memory)
    return (*first, duration_in_words(row.seconds), spread, f"{rate} {UNITS[name]}", memory)


def duration_in_words(seconds: float) -> str:
    """``12.3 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
