"""Keep a device as this user's choice, for every program that asks devicekit and is told nothing stronger."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from devicekit import host as _host
from devicekit.cli import output, where
from devicekit.cli.diagnosis import Pins, advice, pins_of
from devicekit.errors import DeviceKitError, DeviceUnavailableError, UnknownDeviceError
from devicekit.host import Host
from devicekit.isolation.steps import Wanted
from devicekit.request import AUTO, CHOICE_FILE
from devicekit.resolve import resolver

__all__ = ["add_arguments", "run"]

NOT_USABLE = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("name", metavar="NAME", nargs="?", help='a device as in "cuda:0", "npu", "cpu", or "auto"')
    parser.add_argument("--force", action="store_true", help="save it also if it cannot be used here")
    parser.add_argument("--show", action="store_true", help="tell what is saved")
    parser.add_argument("--reset", action="store_true", help="forget what is saved")
    where.add_json(parser)
    where.add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """Save, show or forget."""
    if [options.name is not None, options.show, options.reset].count(True) != 1:
        raise DeviceKitError("devicekit use does one thing.", try_="a NAME to save, or --show, or --reset")
    host = _host.current()
    file = _file(host)
    if options.name is not None:
        seconds = where.seconds(options)
        name = _spelled(options.name, host)
        refusal = None if options.force or name == AUTO else _why_not(name, host, seconds)
        if refusal is not None:
            output.print_error(refusal)
            return NOT_USABLE
        _save(name, file)
    elif options.reset:
        with _told_as_ours(file):
            file.unlink(missing_ok=True)
    _print(pins_of(host), file, as_json=options.json)
    return 0


def _file(host: Host) -> Path:
    try:
        return host.config_file(CHOICE_FILE)
    except RuntimeError as exc:  # a user without a home folder
        raise DeviceKitError("there is no folder for your choice.", why=str(exc), try_=INSTEAD) from exc


def _spelled(name: str, host: Host) -> str:
    """The name as it is kept.

    Raises:
        UnknownDeviceError: it names no device.
    """
    request = resolver(host).request(name) if name.strip().lower() != AUTO else None
    return AUTO if request is None else request.text.strip().lower()


def _why_not(name: str, host: Host, seconds: float) -> DeviceKitError | None:
    """The error that a strict request for it would raise here; asked in a child process, as its driver may hang."""
    wanted = Wanted(device=name, strict=True, everything=False, describe=False, seconds=seconds)
    error = where.examined(host, wanted).asked.error
    if error is None:
        return None
    fix = advice(error["try"])
    save_anyway = f"devicekit use {name} --force, to save it all the same"
    kind = DeviceUnavailableError if error["known"] else UnknownDeviceError
    return kind(error["what"], why=error["why"], try_=f"{fix}; or {save_anyway}" if fix else save_anyway)


# -- the file ----------------------------------------------------------------------------------
INSTEAD = "a variable instead: export DEVICEKIT_DEVICE=NAME"


def _save(name: str, file: Path) -> None:
    """Atomically: a program that reads at this moment sees the old choice or the new one, never half of one."""
    with _told_as_ours(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(name + "\n")
            os.replace(draft, file)  # noqa: PTH105  # said by name in the sentence above
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)  # noqa: PTH108  # mkstemp gives text
            raise


@contextlib.contextmanager
def _told_as_ours(file: Path) -> Any:
    try:
        yield
    except OSError as exc:
        why = f"{file}: {exc.strerror or exc}"
        raise DeviceKitError("your choice cannot be kept.", why=why, try_=INSTEAD) from exc


# -- telling -----------------------------------------------------------------------------------
def _print(pins: Pins, file: Path, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"saved": pins.saved, "file": str(file), "overridden_by": pins.variables})
        return
    if pins.saved is None:
        output.print_text('Nothing is saved, so programs get what "auto" chooses.')
    else:
        output.print_text(f"Saved: {pins.saved} (in {file}).")
    for name, value in list(pins.variables.items())[:1]:
        output.print_text(f"But {name}={value!r} is set, and wins over the saved choice: unset {name}")
