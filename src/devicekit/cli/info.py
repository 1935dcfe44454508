"""Tell what this machine is: the decision, devices, memory, processor, versions and the variables that matter.

The figures come from child processes, which may start the runtimes; this process starts none.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from devicekit import tuning
from devicekit.cli import output, where, words
from devicekit.cli.diagnosis import auto_in_words
from devicekit.cli.output import human_bytes, one_line
from devicekit.errors import DeviceKitError
from devicekit.formats import FORMATS
from devicekit.host import Host
from devicekit.isolation.facts import BackendFacts, DeviceFacts, Findings
from devicekit.isolation.steps import Wanted
from devicekit.reporting import VARIABLES
from devicekit.tuning.value import fingerprint

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    where.add_json(parser)
    where.add_timeout(parser)
    where.add_simulate(parser)


def run(options: argparse.Namespace) -> int:
    """Examine and print; what is not usable is no failure here."""
    seconds = where.seconds(options)
    with where.chosen_host(options) as host:
        found = where.examined(host, Wanted(seconds=seconds))
        environment = {name: host.env[name] for name in VARIABLES if name in host.env}
        tuned = _tuned(found, host)
    if options.json:
        output.print_json(_as_data(found, environment, tuned))
    else:
        _print(found, environment, tuned)
    return 0


def _tuned(found: Findings, host: Host) -> dict[str, Any] | None:
    """What is saved for the device that was chosen, and whether it counts; None: nothing is saved."""
    chosen = found.device(found.asked.label)
    if chosen is None or found.torch.version is None:
        return None
    backend, device = chosen
    here = fingerprint(host, backend.name, device.info, found.torch.version)
    try:
        saved = tuning.saved(host, here)
    except DeviceKitError as error:
        return {"in_force": False, "reason": f"{error.what} {error.why}", "tuning": None}
    if saved is None:
        return None
    reason = "" if tuning.is_on(host) else f"{tuning.SWITCH} is {host.env[tuning.SWITCH]!r}"
    return {"in_force": not reason, "reason": reason, "tuning": saved.to_dict()}


def _as_data(found: Findings, environment: dict[str, str], tuned: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "decision": dataclasses.asdict(found.asked),
        "automatic": dataclasses.asdict(found.automatic),
        "warnings": list(found.warnings),
        "machine": found.machine,
        "memory": _host_memory(found),
        "torch": dataclasses.asdict(found.torch),
        "backends": [words.backend_as_data(backend, found.asked.backend) for backend in found.backends],
        "versions": _versions(found),
        "tuning": tuned,
        "environment": environment,
    }


def _processor(found: Findings) -> DeviceFacts | None:
    """The processor as a device: its memory is the host's, or what the container leaves of it."""
    backends = [backend for backend in found.backends if not backend.accelerator and backend.usable]
    return backends[0].devices[0] if backends else None


def _host_memory(found: Findings) -> dict[str, Any] | None:
    processor = _processor(found)
    if processor is None:
        return None
    info = processor.info
    return {"total": info.total_memory, "free": info.free_memory, "source": processor.memory_source}


def _versions(found: Findings) -> dict[str, str]:
    """The packages', then what the usable backends add: driver, toolkit, ROCm."""
    told = dict(found.versions)
    if found.torch.version:
        told["torch"] = found.torch.version
    for backend in found.backends:
        told.update(backend.versions)
    return told


# -- as text -----------------------------------------------------------------------------------
def _print(found: Findings, environment: dict[str, str], tuned: dict[str, Any] | None) -> None:
    _section("Decision", [*_decision(found), *_tuning_in_words(tuned)])
    _section("Machine", _machine(found))
    _section("Memory", _memory(found))
    output.print_text("Backends")
    rows = [
        (backend.name, "usable" if backend.usable else "not usable", _reason(backend)) for backend in found.backends
    ]
    output.print_table(rows)
    output.print_text()
    _print_devices(found)
    _print_formats(found)
    _section("Versions", list(_versions(found).items()))
    _section("Environment", list(environment.items()) or [("none", "of the variables that change devices is set")])


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    output.print_text(title)
    output.print_table([(name, one_line(value)) for name, value in rows])
    if title != "Environment":
        output.print_text()


def _decision(found: Findings) -> list[tuple[str, str]]:
    asked = found.asked
    if asked.error is not None:
        rows = [
            ("device", "none"),
            ("error", f"{asked.error['what']} {asked.error['why']}"),
            ("try", asked.error["try"]),
        ]
    else:
        rows = [("device", str(asked.label)), ("asked for", f"{asked.requested!r} by {asked.source}")]
    warnings = [*found.warnings, *([asked.warning] if asked.warning else [])]
    return [*rows, *(("warning", text) for text in warnings), ("automatic", auto_in_words(found))]


def _tuning_in_words(tuned: dict[str, Any] | None) -> list[tuple[str, str]]:
    if tuned is None:
        return []
    if not tuned["in_force"]:
        return [("tuning", f"saved, and not in force: {tuned['reason']}")]
    made = tuned["tuning"]
    threads = "" if made["threads"] is None else f", {made['threads']} threads"
    return [("tuning", f"in force: {made['dtype']}{threads}, measured {made['created']} (devicekit tune --show)")]


def _machine(found: Findings) -> list[tuple[str, str]]:
    machine = found.machine
    if not machine:
        return [("unknown", "it could not be described")]
    quota = machine["cpu_quota"]
    limit = "" if quota is None else f", limited to {quota:g} by the container"
    return [
        ("system", f"{machine['system']}, {machine['architecture']}"),
        ("processor", machine["processor"]),
        ("features", " ".join(machine["cpu_features"]) or "none of those that matter to number formats"),
        ("CPUs", f"{machine['usable_cpus']} usable of {machine['cpus']}{limit}"),
        ("python", f"{machine['python']}, {machine['executable']}"),
    ]


def _memory(found: Findings) -> list[tuple[str, str]]:
    memory = _host_memory(found) or {"total": None, "free": None, "source": "no backend could be asked"}
    total, free = human_bytes(memory["total"]), human_bytes(memory["free"])
    return [("total", total), ("free", free), ("source", memory["source"])]


def _reason(backend: BackendFacts) -> str:
    origin = "" if backend.origin == "devicekit" else f" (from {backend.origin})"
    return one_line(backend.reason) + origin


def _print_devices(found: Findings) -> None:
    devices = [device for backend in found.backends for device in backend.devices]
    output.print_text("Devices")
    rows = [
        (
            device.label,
            one_line(device.info.name) or output.UNKNOWN,
            one_line(device.info.architecture or output.UNKNOWN),
            human_bytes(device.info.total_memory),
            human_bytes(device.info.free_memory),
            one_line(device.memory_source),
        )
        for device in devices
    ]
    output.print_table(rows, ("device", "name", "architecture", "memory", "free", "memory according to"))
    output.print_text()


def _print_formats(found: Findings) -> None:
    devices = [device for backend in found.backends for device in backend.devices]
    output.print_text("Number formats")
    cells = [(d.label, *(words.format_in_words(d, form) for form in FORMATS)) for d in devices if d.info.usable]
    output.print_table(cells, ("device", *FORMATS))
    output.print_text()
    traits = [(d.label, one_line(name), one_line(text)) for d in devices for name, text in d.traits.items()]
    if traits:
        output.print_text("Traits")
        output.print_table(traits)
        output.print_text()
