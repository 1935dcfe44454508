"""Run a program that was written for CUDA on another device, unchanged: "cuda" means the device that was chosen.

  devicekit run [OPTIONS] script.py ARGUMENTS...
  devicekit run [OPTIONS] -m module ARGUMENTS...
  devicekit run [OPTIONS] -c text ARGUMENTS...

What stands behind the script is the script's own. It ends as under ``python``, with the program's exit code.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devicekit import host as _host
from devicekit.cli import output
from devicekit.errors import DeviceKitError
from devicekit.redirect.running import Program, asks_for_cuda

if TYPE_CHECKING:
    from devicekit.redirect.recording import Record
    from devicekit.redirect.redirect import Redirect

__all__ = ["add_arguments", "run"]

log = logging.getLogger("devicekit")

DTYPES = ("float16", "bfloat16", "float32")
QUIET = ("warning", "error", "critical")
"""Levels of DEVICEKIT_LOG_LEVEL, where it is set, that leave out which device it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.usage = "devicekit run [OPTIONS] (script.py | -m module | -c text) [ARGUMENTS ...]"
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("-m", dest="kind", action="store_const", const="module", help="it is a module, as python -m")
    kind.add_argument("-c", dest="kind", action="store_const", const="text", help="it is a text, as python -c")
    parser.add_argument("--device", metavar="NAME", help="what cuda means, instead of the one that would be chosen")
    parser.add_argument("--count", metavar="N", type=int, help="how many devices a processor stands for")
    parser.add_argument("--autocast-dtype", choices=DTYPES, help="what autocast computes in where it takes float16")
    parser.add_argument("--shim", metavar="PACKAGE", action="append", default=[], help="stand in for it: flash-attn")
    strict = parser.add_argument_group("simulated GPUs, on the processor")
    strict.add_argument("--strict-cuda", action="store_true", help="tensors look like CUDA's, and do not mix")
    strict.add_argument("--memory", metavar="SIZE", help="of each (24GiB)")
    strict.add_argument("--capability", metavar="X.Y", help="compute capability (8.6)")
    told = parser.add_argument_group("what is told")
    told.add_argument("--report", action="store_true", help="tell at the end what was redirected, where, how often")
    told.add_argument("--report-json", metavar="FILE", help="write the same as data")
    told.add_argument("--quiet", action="store_true", help="do not say which device it is")
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Enter the redirect, run the program, and stay so until the process ends.

    Raises:
        SystemExit: always; as the program ended.
        DeviceKitError: it cannot be run here.
    """
    ending = contextlib.ExitStack()
    atexit.register(ending.close)  # before torch is imported: after the program's own, its threads and its children
    program = _program(options)
    _check(options)
    program.check()
    redirect, words = _strict(options) if options.strict_cuda else _translating(options)
    if not options.quiet and _host.current().env.get("DEVICEKIT_LOG_LEVEL", "").strip().lower() not in QUIET:
        output.talk(f"devicekit: {words}")
    _leave_logging_to_the_program()
    with _as_notes():
        redirect.__enter__()
    ending.callback(_end, redirect, options, os.getpid())
    try:
        program.run()
    except SystemExit as end:
        if not redirect.strict and redirect.target.device_type != "cuda" and asks_for_cuda(end.__cause__):
            output.talk("devicekit: try --strict-cuda, which makes tensors look like CUDA's.")
        raise
    raise SystemExit(0)


def _program(options: argparse.Namespace) -> Program:
    words = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not words:
        raise DeviceKitError("devicekit run needs a program.", try_="devicekit run script.py, or -m module")
    return Program(words[0], words[1:], options.kind or "script")


def _check(options: argparse.Namespace) -> None:
    failure = _host.current().torch_failure()
    if failure is not None:
        raise DeviceKitError("CUDA can be redirected only where torch is installed.", why=failure[0], try_=failure[1])
    if options.report_json is not None and not Path(options.report_json).absolute().parent.is_dir():
        raise DeviceKitError(f"{options.report_json} cannot be written.", why="there is no such folder", try_="another")
    for name in () if options.strict_cuda else ("memory", "capability"):
        if getattr(options, name) is not None:
            why = "a device that is there has what it has"
            raise DeviceKitError(f"--{name} is of simulated GPUs.", why=why, try_=f"--strict-cuda --{name}")
    if options.strict_cuda and options.device not in (None, "auto", "cpu"):
        why = "simulated GPUs are on the processor"
        raise DeviceKitError(f"--device {options.device} and --strict-cuda exclude each other.", why=why, try_="one")


def _wants_record(options: argparse.Namespace) -> bool:
    return options.report or options.report_json is not None


def _leave_logging_to_the_program() -> None:
    """Ours alone speaks through the handler that the door has set up: with one there, basicConfig does nothing."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if str(getattr(handler.formatter, "_fmt", "")).startswith("devicekit:"):
            root.removeHandler(handler)
            log.addHandler(handler)
            log.propagate = False


@contextlib.contextmanager
def _as_notes() -> Iterator[None]:
    """What would be warnings, for the person who watches."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in heard):
        output.talk(f"devicekit: note: {text}")


# -- which redirect --------------------------------------------------------------------------------
def _translating(options: argparse.Namespace) -> tuple[Redirect, str]:
    from devicekit.redirect.entry import redirect_cuda

    dtype = options.autocast_dtype and getattr(_host.current().torch(), options.autocast_dtype)
    with _as_notes():
        redirect = redirect_cuda(
            options.device or "auto",
            count=options.count,
            autocast_dtype=dtype,
            report=_wants_record(options),
            children=True,
            shims=options.shim,
        )
    return redirect, _said(options, redirect)


def _said(options: argparse.Namespace, redirect: Redirect) -> str:
    """Which device, and why."""
    from devicekit.resolve import resolver

    decision = resolver().decide(options.device)
    request, target = decision.request, redirect.target
    if target.device_type == "cuda":
        return '"cuda" is what it says here: nothing is redirected.'
    if decision.warning:
        why = "as told above"
    elif request.source == "argument":
        why = f"as --device {request.text} says"
    elif request.source != "default":
        why = f"as {request.source} says: {request.text}"
    else:
        why = "no accelerator is usable; devicekit doctor says why" if target.on_host else "the best that is usable"
    return f'"cuda" is {decision.device} here: {why}.'


def _strict(options: argparse.Namespace) -> tuple[Redirect, str]:
    from devicekit.redirect.children import MASQUERADE, Settings
    from devicekit.redirect.recording import Record
    from devicekit.redirect.redirect import Redirect
    from devicekit.redirect.simulated import SimulatedTarget, in_bytes

    torch = _host.current().torch()
    memory, capability = options.memory or "24GiB", _capability(options.capability or "8.6")
    count = 1 if options.count is None else options.count
    target = SimulatedTarget(torch, count, in_bytes(memory), capability)
    settings = Settings(
        policy=MASQUERADE,
        count=count,
        memory=memory,
        capability=capability,
        autocast_dtype=options.autocast_dtype,
        shims=tuple(options.shim),
    )
    dtype = options.autocast_dtype and getattr(torch, options.autocast_dtype)
    record = Record() if _wants_record(options) else None
    made = Redirect(target, record=record, autocast_dtype=dtype, strict=True, shims=options.shim, children=settings)
    each = f"{output.human_bytes(in_bytes(memory))}, compute capability {capability[0]}.{capability[1]}"
    return made, f'"cuda" is {count} simulated GPU{"s" if count > 1 else ""} of {each}, on the processor.'


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise DeviceKitError(f"--capability {text} is no compute capability.", try_="8.6")
    return int(major), int(minor)


# -- the end ---------------------------------------------------------------------------------------
def _end(redirect: Redirect, options: argparse.Namespace, owner: int) -> None:
    """Take all back and tell what it was; in the process that was started, and in none that it has forked."""
    if os.getpid() != owner:
        return
    redirect.__exit__(None, None, None)
    record = redirect.record
    if record is None:
        return
    if options.report:
        _print(record, "simulated GPUs" if redirect.strict else redirect.target.device_type)
    if options.report_json is not None:
        _write(Path(options.report_json), {"target": _target(redirect), **record.to_dict()})


def _target(redirect: Redirect) -> dict[str, Any]:
    target = redirect.target
    card = target.card(0)
    return {"device": target.device_type, "name": card.name, "count": target.count, "simulated": redirect.strict}


def _print(record: Record, where: str) -> None:
    rows = record.rows()
    for title, refused in ((f"redirected to {where}", False), ("refused, or gone on without", True)):
        told = [(str(row.times), row.what, _place(row)) for row in rows if row.refused == refused]
        if told:
            output.talk(f"devicekit: {title}:")
            output.print_table(told, ("times", "what", "where"), to=sys.stderr)
    if not rows:
        output.talk("devicekit: nothing was redirected.")


def _place(row: Any) -> str:
    return f"{output.one_line(row.file)}:{row.line}" if row.file else "in torch itself"


def _write(file: Path, told: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as exc:
        output.print_error(DeviceKitError(f"{file} cannot be written.", why=str(exc), try_="another file"))
