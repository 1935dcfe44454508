"""Which machine a command speaks of: this one, or a simulated one; and how it is examined while a person waits."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator

from devicekit import host as _host
from devicekit.cli import output
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.isolation.examination import examine
from devicekit.isolation.facts import Findings
from devicekit.isolation.steps import SECONDS, Wanted

__all__ = ["add_json", "add_simulate", "add_timeout", "chosen_host", "examined", "seconds"]


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """``--simulate NAME``."""
    parser.add_argument(
        "--simulate", metavar="NAME", help="stand on a machine of devicekit.testing.MACHINES, e.g. cuda-laptop"
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """``--timeout SECONDS``."""
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=SECONDS,
        help=f"how long one step, such as importing torch, may take ({SECONDS:g})",
    )


def seconds(options: argparse.Namespace) -> float:
    """The time limit.

    Raises:
        DeviceKitError: it is no time.
    """
    return positive(options.timeout, f"--timeout {options.timeout:g} is no time limit.")


def positive(given: float, otherwise: str) -> float:
    """A number of seconds.

    Raises:
        DeviceKitError: it is no time.
    """
    if not math.isfinite(given) or given <= 0:
        raise DeviceKitError(otherwise, try_="a number of seconds above 0")
    return given


@contextlib.contextmanager
def chosen_host(options: argparse.Namespace) -> Iterator[Host]:
    """This machine, or the simulated one.

    Raises:
        DeviceKitError: there is no simulated machine of this name.
    """
    name = options.simulate
    if name is None:
        yield _host.current()
        return
    from devicekit.testing import simulated_machine  # here, because it is for trying things out
    from devicekit.testing.machines import machine_named

    try:
        machine = machine_named(name)
    except ValueError as exc:
        raise DeviceKitError(f"--simulate {name!r} is no simulated machine.", try_=str(exc)) from exc
    with simulated_machine(machine) as host:
        yield host


def examined(host: Host, wanted: Wanted) -> Findings:
    """What child processes find out, while a person sees what is being asked."""
    with output.busy("starting") as watch:
        return examine(host, wanted, watch)
