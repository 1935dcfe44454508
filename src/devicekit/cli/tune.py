"""Measure what is best for a device on this machine, and keep it for every program that asks devicekit.

Threads, dtype, attention kernel, the layout of images and the allocator's settings. It counts for this machine, this
device and this torch only. DEVICEKIT_TUNING=off ignores it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devicekit import host as _host
from devicekit import tuning
from devicekit.bench.choosing import QUESTIONS, Trial, Tuner
from devicekit.bench.stage import TorchStage
from devicekit.cli import output, where
from devicekit.cli.bench import duration_in_words, seconds_of
from devicekit.cli.files import draft, told_as_ours
from devicekit.drafts import Draft
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.isolation.steps import label
from devicekit.resolve import Decision, resolver
from devicekit.tuning import reading
from devicekit.tuning.value import Fingerprint, Tuning, fingerprint_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--device", metavar="NAME", help="instead of the one that would be chosen")
    parser.add_argument("--duration", metavar="SECONDS", type=float, default=2.0, help="of one choice, about (2)")
    parser.add_argument("--show", action="store_true", help="tell what is saved for this device on this machine")
    parser.add_argument("--reset", action="store_true", help="forget it")
    parser.add_argument("--load", metavar="FILE", help="save what --output wrote, if it is of a machine like this")
    parser.add_argument(
        "--output", metavar="FILE", help="write what was measured, or with --show what is saved, to a file"
    )
    where.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, show, forget or load."""
    chosen = [options.show, options.reset, options.load is not None]
    if chosen.count(True) > 1 or (options.output is not None and (options.reset or options.load is not None)):
        raise DeviceKitError(
            "devicekit tune does one thing.", try_="nothing to measure, or --show, --reset, --load FILE"
        )
    duration, host = seconds_of(options), _host.current()
    decision = _decided(options.device, host)
    here = fingerprint_of(decision.backend, decision.index or 0)
    file = _file(host, here)
    trials: dict[str, list[Trial]] = {}
    with draft("--output", options.output) as copy:
        found: Tuning | None
        if options.reset:
            with _told_as_ours():
                tuning.forget(host, here)
            found = None
        elif options.show:
            found = tuning.saved(host, here)
        elif options.load is not None:
            found = _loaded(options.load, decision, here)
            with _kept(host, here) as place:
                tuning.save(host, found, place)
        else:
            found, trials = _measured(decision, here, duration, host)
        if copy is not None:
            _write(copy, options.output, found)
    if options.json:
        output.print_json(_as_data(found, file, trials, host))
    else:
        _print(label(decision.name, decision.index), found, file, trials, host)
    return 0


def _decided(name: str | None, host: Host) -> Decision:
    decision = resolver(host).decide(name, strict=True)
    if not decision.backend.needs_torch:
        why = "dtypes, threads and kernels are torch's"
        raise DeviceKitError(
            f"there is nothing to tune on the {decision.name} backend.", why=why, try_="pip install torch"
        )
    return decision


def _measured(
    decision: Decision, here: Fingerprint, duration: float, host: Host
) -> tuple[Tuning, dict[str, list[Trial]]]:
    """Measure and save; that it cannot be saved is found out before."""
    with _kept(host, here) as place, output.busy("starting") as watch:
        stage = TorchStage(decision.backend, decision.device, decision.index or 0)
        tuner = Tuner(
            stage, label(decision.name, decision.index), duration=duration, watch=lambda now: watch(f"measuring {now}")
        )
        found = tuner.tune()
        tuning.save(host, found, place)
    return found, tuner.trials


def _loaded(path: str, decision: Decision, here: Fingerprint) -> Tuning:
    """The tuning in a file.

    Raises:
        DeviceKitError: it is none, or does not count here; what was saved before stays.
    """
    found = reading.load(path)
    tuning.check(found, here, decision.backend)
    return found


# -- files -----------------------------------------------------------------------------------------
PLACE = "a configuration folder that you may write to"


def _file(host: Host, here: Fingerprint) -> Path:
    try:
        return tuning.file_of(host, here)
    except RuntimeError as exc:  # a user without a home folder
        raise DeviceKitError("the tuning cannot be kept.", why=str(exc), try_=PLACE) from exc


@contextlib.contextmanager
def _kept(host: Host, here: Fingerprint) -> Iterator[Draft]:
    """Where the tuning will be kept."""
    with _told_as_ours(), tuning.draft(host, here) as place:
        yield place


@contextlib.contextmanager
def _told_as_ours() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        why = f"{exc.filename}: {exc.strerror or exc}" if exc.filename else str(exc)
        raise DeviceKitError("the tuning cannot be kept.", why=why, try_=PLACE) from exc


def _write(copy: Draft, path: str, found: Tuning | None) -> None:
    if found is None:
        raise DeviceKitError(f"{path} was not written.", why="nothing is saved for this device", try_="devicekit tune")
    with told_as_ours("--output", path):
        copy.commit(tuning.as_text(found))


# -- telling ---------------------------------------------------------------------------------------
def _as_data(found: Tuning | None, file: Path, trials: dict[str, list[Trial]], host: Host) -> dict[str, Any]:
    return {
        "tuning": None if found is None else found.to_dict(),
        "file": str(file),
        "in_force": found is not None and tuning.is_on(host),
        "trials": {question: [dataclasses.asdict(trial) for trial in told] for question, told in trials.items()},
    }


def _print(name: str, found: Tuning | None, file: Path, trials: dict[str, list[Trial]], host: Host) -> None:
    if found is None:
        output.print_text(f"Nothing is saved for {name}: `devicekit tune` measures what is best.")
        return
    output.print_text(f"{name}: {output.one_line(found.fingerprint.device)}, measured {found.created}")
    output.print_table(answers(found))
    if trials:
        output.print_text()
        output.print_text("Measured")
        output.print_table(
            [_cells(question, trial) for question in QUESTIONS for trial in trials.get(question, ())],
            ("question", "choice", "time", ""),
        )
    output.print_text()
    output.print_text(f"Saved in {file}.")
    if not tuning.is_on(host):
        output.print_text(f"But {tuning.SWITCH}={host.env[tuning.SWITCH]!r} is set, so it does not count.")


def answers(found: Tuning) -> list[tuple[str, str]]:
    """The choices as rows of text."""
    layouts = {None: "unknown", True: "channels_last", False: "as torch lays images out"}
    allocator = " ".join(f"{name}={value}" for name, value in found.allocator.items())
    return [
        ("dtype", found.dtype),
        ("threads", "torch's own number" if found.threads is None else str(found.threads)),
        ("attention", found.attention or "torch's own choice"),
        ("convolution", layouts[found.channels_last]),
        ("allocator", f"export {allocator}, before the program starts" if allocator else "as it is"),
    ]


def _cells(question: str, trial: Trial) -> tuple[str, ...]:
    time = "" if trial.seconds is None else duration_in_words(trial.seconds)
    return (question, trial.choice, time, output.one_line(trial.note))
