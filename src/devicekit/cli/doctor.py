"""Say for every backend whether it can be used here, why not, and what to do; also when torch hangs or aborts.

Exit codes: 0 something is usable and it is what was asked for, 1 there is a problem or the requirement is not met,
2 the examination itself could not be made.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from devicekit.cli import diagnosis, output, where, words
from devicekit.cli.diagnosis import Pins, Problem, Refusal, groups, notes, pins_of, problems
from devicekit.cli.require import Outcome, Requirement, parse
from devicekit.cli.terms import Subject
from devicekit.errors import UnknownDeviceError
from devicekit.host import Host
from devicekit.isolation.facts import DeviceFacts, Findings
from devicekit.isolation.steps import Wanted
from devicekit.registry import rows
from devicekit.request import AUTO

__all__ = ["add_arguments", "run"]

USE_ANOTHER = "another device (--device NAME), or a requirement that this one meets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    where.add_json(parser)
    parser.add_argument("--verify", action="store_true", help="run real kernels on every usable device, in each format")
    parser.add_argument("--device", metavar="NAME", help="examine the choice of this device instead of the pins")
    parser.add_argument(
        "--require",
        metavar="EXPR",
        help='what the device must have, as in "bf16 and memory>=20GiB and not mps"; exit code 1 if it has not',
    )
    where.add_timeout(parser)
    where.add_simulate(parser)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """All that is printed."""

    found: Findings
    pins: Pins
    problems: list[Problem]
    notes: list[str]
    requirement: Requirement | None
    outcome: Outcome | None


def run(options: argparse.Namespace) -> int:
    """Examine, print, and tell in the exit code whether all is well."""
    seconds = where.seconds(options)
    with where.chosen_host(options) as host:
        requirement = None if options.require is None else _requirement(options.require, host)
        found = where.examined(host, Wanted(device=options.device, verify=options.verify, seconds=seconds))
        _refuse_no_device(options.device, found)
        report = _report(found, pins_of(host), requirement)
    if options.json:
        output.print_json(_as_data(report))
    else:
        _print(report)
    return 1 if report.problems else 0


def _refuse_no_device(device: str | None, found: Findings) -> None:
    """An argument that names no device is a mistake; a pin that does is a finding."""
    error = found.asked.error
    if device is not None and device.strip().lower() != AUTO and error is not None and not error["known"]:
        raise UnknownDeviceError(error["what"], why=error["why"], try_=error["try"])


def _requirement(text: str, host: Host) -> Requirement:
    return parse(text, {word: row.name for row in rows(host) if not row.problem for word in (row.name, *row.also)})


def _report(found: Findings, pins: Pins, requirement: Requirement | None) -> Report:
    bad = problems(found)
    outcome = None
    if requirement is not None:
        outcome, problem = _check(found, requirement)
        bad += [problem] if problem is not None else []
    return Report(found, pins, bad, notes(found, pins), requirement, outcome)


def _check(found: Findings, requirement: Requirement) -> tuple[Outcome | None, Problem | None]:
    """The requirement on the device that would be used, and the problem if it is not met."""
    pair = found.device(found.asked.label)
    explicit = found.asked.source == "argument"
    if pair is None or (explicit and found.asked.warning is not None):
        return None, Problem(
            f"required: {requirement.text}: not met, because the device cannot be used.", try_=USE_ANOTHER
        )
    outcome = requirement.check(Subject(found.torch, *pair))
    if outcome.met:
        return outcome, None
    failed = [f"{term}: {told.said}" for term, told in outcome.terms if told.met is not True]
    return outcome, Problem(f"{pair[1].label} does not meet {requirement.text!r}.", "; ".join(failed), USE_ANOTHER)


# -- as data -----------------------------------------------------------------------------------
def _as_data(report: Report) -> dict[str, Any]:
    found, outcome = report.found, report.outcome
    return {
        "good": not report.problems,
        "problems": [problem.to_dict() for problem in report.problems],
        "notes": report.notes,
        "decision": dataclasses.asdict(found.asked),
        "automatic": dataclasses.asdict(found.automatic),
        "pins": report.pins.variables,
        "saved_choice": report.pins.saved,
        "requirement": report.requirement
        and {
            "text": report.requirement.text,
            "met": outcome is not None and outcome.met,
            "terms": [{"term": t, "met": told.met, "actual": told.said} for t, told in outcome.terms]
            if outcome
            else [],
        },
        "torch": dataclasses.asdict(found.torch),
        "backends": [words.backend_as_data(backend, found.asked.backend) for backend in found.backends],
        "machine": found.machine,
        "versions": found.versions,
    }


# -- as text -----------------------------------------------------------------------------------
def _print(report: Report) -> None:
    found = report.found
    output.print_text(words.headline(found))
    usable, here, absent = groups(found)
    width = max(len(name) for name in [*(d.label for d in usable), *(n for r in (*here, *absent) for n in r.names)])
    _print_usable(usable, width)
    _print_refusals("Here, but not usable:", here, width)
    _print_refusals("Not installed (nothing to do, unless this machine has such a device):", absent, width)
    output.print_text()
    output.print_text(output.sentence(diagnosis.asked_in_words(found, report.pins)), hanging=2)
    for line in diagnosis.choice_in_words(found, report.pins):
        output.print_text(output.sentence(line), hanging=2)
    for note in report.notes:
        output.print_text(output.sentence(f"Note: {output.one_line(note)}"), hanging=2)
    _print_requirement(report)
    output.print_text()
    output.print_text(diagnosis.result_in_words(found, report.problems), hanging=2)
    _print_problems(report.problems)


def _print_usable(devices: list[DeviceFacts], width: int) -> None:
    output.print_text()
    output.print_text("Usable:" if devices else "Usable: nothing.")
    for device in devices:
        first, *more = words.device_in_words(device)
        output.print_text(f"  {device.label:<{width}}  {first}", hanging=width + 4)
        for line in more:
            output.print_text(line, indent=width + 4)


def _print_refusals(title: str, refusals: list[Refusal], width: int) -> None:
    if refusals:
        output.print_text()
        output.print_text(title)
    for refusal in refusals:
        names = ", ".join(refusal.names)
        output.print_text(f"  {names:<{width}}  {output.one_line(refusal.reason)}", hanging=width + 4)
        if refusal.fix:
            output.print_text(f"{'':<{width + 4}}try: {output.one_line(refusal.fix)}", hanging=width + 9)


def _print_requirement(report: Report) -> None:
    if report.requirement is None:
        return
    outcome = report.outcome
    state = "met" if outcome is not None and outcome.met else "not met"
    output.print_text(f"Required: {report.requirement.text}: {state}.")
    for term, told in outcome.terms if outcome is not None else ():
        word = {True: "yes", False: "no", None: "unknown"}[told.met]
        output.print_text(f"  {word:<7}  {term}: {output.one_line(told.said)}", hanging=11)


def _print_problems(bad: list[Problem]) -> None:
    for number, problem in enumerate(bad, 1):
        output.print_text(f"  {number}. {output.one_line(problem.what)}", hanging=5)
        if problem.why:
            output.print_text(f"     why: {output.one_line(problem.why)}", hanging=10)
        if problem.try_:
            output.print_text(f"     try: {output.one_line(problem.try_)}", hanging=10)
