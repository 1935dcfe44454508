"""What the findings mean for the person in front of the machine: problems with a way out, and notes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from devicekit.host import AUTOLOAD, Host
from devicekit.isolation.facts import WARNING, BackendFacts, Choice, DeviceFacts, Findings
from devicekit.request import PINS, saved_choice

__all__ = [
    "Pins",
    "Problem",
    "Refusal",
    "advice",
    "asked_in_words",
    "auto_in_words",
    "choice_in_words",
    "groups",
    "notes",
    "pins_of",
    "problems",
    "result_in_words",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a program from what was asked for."""

    what: str
    why: str = ""
    try_: str = ""

    def to_dict(self) -> dict[str, str]:
        """The same under the words of an error."""
        return {"what": self.what, "why": self.why, "try": self.try_}


@dataclass(frozen=True, slots=True)
class Pins:
    """What stands in for an argument."""

    variables: dict[str, str]
    """Those that are set, strongest first."""
    saved: str | None


def pins_of(host: Host) -> Pins:
    """The pins that are set and the saved choice, unread."""
    return Pins({name: host.env[name] for name in PINS if name in host.env}, saved_choice(host))


# -- problems ----------------------------------------------------------------------------------
def problems(found: Findings) -> list[Problem]:
    """Everything that makes the verdict bad, most fundamental first."""
    return [*_of_torch(found), *_of_backends(found), *_of_choice(found)]


def _of_torch(found: Findings) -> Iterator[Problem]:
    torch = found.torch
    if not torch.usable and torch.installed:
        yield Problem("torch is installed, but cannot be imported.", torch.reason, advice(torch.fix) or REINSTALL)
    if torch.usable and torch.plugins_lost:
        yield Problem(
            "torch can be imported, but a plugin that it loads when it starts kills or stops the process.",
            torch.plugins_lost,
            f"uninstall the plugin's package; until then: export {AUTOLOAD}=0",
        )


def _of_backends(found: Findings) -> Iterator[Problem]:
    for backend in found.backends:
        if backend.lost:
            harm = "a program that asks it stands still" if backend.hung else "a program that asks it is taken down"
            yield Problem(f"{backend.name} is broken: {harm}.", backend.lost, advice(backend.fix))
        for device in backend.devices:
            if device.broke:
                yield Problem(f"{device.label} seems usable and is not.", device.info.reason, advice(device.info.fix))
            elif device.info.usable:
                yield from map(functools.partial(_of_format, device), device.contradicted)


def _of_format(device: DeviceFacts, form: str) -> Problem:
    """A product did not do what devicekit says of the device."""
    trial = device.trials[form]
    if trial.ran:
        what = f"{device.label} computes {form}, and devicekit says that it does not."
        return Problem(what, "a product in it ran and was right", "use it, and report the chip and the versions")
    what = f"{device.label} does not compute {form}, and devicekit says that it does."
    return Problem(what, trial.reason, "another format, or a newer torch and driver; and report the chip")


def _of_choice(found: Findings) -> Iterator[Problem]:
    asked = found.asked
    if not any(backend.usable for backend in found.backends):
        yield Problem(
            "nothing on this machine can compute.", "neither torch nor NumPy can be used", "pip install numpy"
        )
    elif asked.error is not None:
        yield Problem(asked.error["what"], asked.error["why"], advice(asked.error["try"]))
    elif asked.warning is not None:
        yield _of_warning(found, asked.warning)


def _of_warning(found: Findings, warning: str) -> Problem:
    """``X was asked for, but ...: reason. Y is used instead.``, with what to do about it."""
    asked = found.asked
    named = next((b for b in found.backends if b.name == asked.requested.strip().lower().partition(":")[0]), None)
    undo = "" if asked.source in ("argument", "default") else _undo(asked.source)
    fix = advice(named.fix) if named is not None and not named.usable else ""
    return Problem(warning, "", "; or ".join(part for part in (fix, undo) if part))


def _undo(source: str) -> str:
    return "devicekit use auto" if source == "saved choice" else f"unset {source}"


REINSTALL = "reinstall torch: pip install --force-reinstall torch"

_CIRCULAR = re.compile(r"""(?:^|; |, then |,? or |, )(?:devicekit doctor(?: says why for each)?|device="auto")""")


def advice(fix: str) -> str:
    """A fix as the doctor gives it: without sending the reader to the doctor, or to the choice made anyway."""
    return _CIRCULAR.sub("", fix).strip("; ,")


# -- notes -------------------------------------------------------------------------------------
def notes(found: Findings, pins: Pins) -> list[str]:
    """What is worth knowing, though nothing fails of it."""
    told = list(found.warnings)
    if pins.saved is not None and pins.variables:
        told.append(f"the saved choice {pins.saved!r} is not used, because {next(iter(pins.variables))} is set")
    devices = [device for backend in found.backends for device in backend.devices]
    told += [f"{device.label}: {device.traits[WARNING]}" for device in devices if WARNING in device.traits]
    known = " ".join(backend.reason for backend in found.backends)
    for module, reason in found.torch.plugin_failures.items():
        if module not in known:
            told.append(f"torch's plugin {module} could not be loaded: {reason}")
    return told


# -- verdicts ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Refusal:
    """Backends that are not usable for one and the same reason."""

    names: tuple[str, ...]
    reason: str
    fix: str


def groups(found: Findings) -> tuple[list[DeviceFacts], list[Refusal], list[Refusal]]:
    """What is usable, what is here but not usable, and what is not installed at all."""
    usable = [device for backend in found.backends for device in backend.devices if device.info.usable]
    here: list[Refusal] = []
    absent: list[Refusal] = []
    for backend in found.backends:
        if not backend.usable:
            _put(here if is_here(found, backend) else absent, _refusal(found, backend))
            continue
        for device in backend.devices:
            if not device.info.usable:
                _put(here, Refusal((device.label,), device.info.reason, advice(device.info.fix)))
    return usable, here, absent


def is_here(found: Findings, backend: BackendFacts) -> bool:
    """Its software is installed, though it may not be usable."""
    return backend.built or _for_want_of_torch(found, backend)


def _for_want_of_torch(found: Findings, backend: BackendFacts) -> bool:
    return found.torch.installed and not found.torch.usable and backend.reason == found.torch.reason


def _refusal(found: Findings, backend: BackendFacts) -> Refusal:
    aside = backend.maker if backend.origin == "devicekit" else f"of {backend.origin}"
    name = f"{backend.name} ({aside})" if aside else backend.name
    if _for_want_of_torch(found, backend):
        return Refusal((name,), "needs torch, which is installed and cannot be imported", "see the problems below")
    return Refusal((name,), backend.reason, advice(backend.fix))


def _put(refusals: list[Refusal], new: Refusal) -> None:
    """Beside the others; those with the same reason become one."""
    for i, old in enumerate(refusals):
        if (old.reason, old.fix) == (new.reason, new.fix):
            refusals[i] = dataclasses.replace(old, names=old.names + new.names)
            return
    refusals.append(new)


def choice_in_words(found: Findings, pins: Pins) -> list[str]:
    """What programs get here, and why."""
    asked, automatic = found.asked, auto_in_words(found)
    if asked.error is not None:
        return [f"Programs get an error and no device until that is corrected; without it {automatic}"]
    if asked.source == "default":
        return [automatic]
    who = _who(asked, pins)
    got = f"Programs get {_named(asked)}"
    return [
        f"{got}, not what {who} asks for" if asked.warning else f"{got}, as {who} asks",
        f"Without that {automatic}",
    ]


def _who(asked: Choice, pins: Pins) -> str:
    if asked.source == "argument":
        return f"--device {asked.requested}"
    if asked.source in pins.variables:
        return f"{asked.source}={pins.variables[asked.source]!r}"
    return f"the {asked.source} {asked.requested!r}"


def asked_in_words(found: Findings, pins: Pins) -> str:
    """Who asks for a device, strongest first."""
    if found.asked.source == "argument":
        return f"A device is asked for by --device {found.asked.requested}, so nothing else counts"
    said = [f"{name}={value!r}" for name, value in pins.variables.items()]
    if pins.saved is not None:
        said.append(f"the saved choice {pins.saved!r}")
    if said:
        return f"A device is asked for by {', then '.join(said)}"
    return f"Nobody asks for a device: none of {', '.join(PINS)} is set, and no choice is saved"


def auto_in_words(found: Findings) -> str:
    """What ``auto`` would choose, and why."""
    chosen = found.automatic
    if chosen.error is not None or chosen.label is None:
        return f'"auto" could not choose: {(chosen.error or {}).get("why") or "it was not asked"}'
    if found.torch.lost:
        harm = "stands still" if found.torch.hung else "is taken down"
        return f'"auto" imports torch, and {harm}; without torch it would choose {_named(chosen)}'
    if found.torch.plugins_lost:
        harm = "which kill or stop it"
        return f'"auto" imports torch with its plugins, {harm}; without them it would choose {_named(chosen)}'
    trap = _trap(found, chosen)
    if trap is not None:
        harm = "stands still" if trap.hung else "is taken down"
        return f'"auto" asks {trap.name} on its way, and {harm}; without {trap.name} it would choose {_named(chosen)}'
    pair = found.device(chosen.label)
    if pair is not None and pair[1].broke:
        return f'"auto" chooses {_named(chosen)} all the same, for it asks and does not try out'
    return f'"auto" chooses {_named(chosen)}: {_because(found, chosen)}'


def _trap(found: Findings, chosen: Choice) -> BackendFacts | None:
    """The broken backend that a program meets before it comes to the chosen one."""
    for backend in found.backends:
        if backend.name == chosen.backend:
            return None
        if backend.lost and backend.automatic:
            return backend
    return None


def _named(chosen: Choice) -> str:
    """``rocm:0``, and what torch calls it where that is another name."""
    same = chosen.label == chosen.device or chosen.index is None
    return str(chosen.label) if same else f"{chosen.label} (torch's name for it is {chosen.device!r})"


def _because(found: Findings, chosen: Choice) -> str:
    backend = next(b for b in found.backends if b.name == chosen.backend)
    if backend.accelerator:
        usable = [device for device in backend.devices if device.info.usable]
        order = ", ".join(b.name for b in found.backends if b.automatic)
        among = "" if len(usable) < 2 else f"; it is one of {len(usable)} usable devices of {backend.name}"
        return f"it is the first usable one in the order {order}{among}"
    if not backend.usable:
        return "it is the last resort, and cannot compute either"
    torch = "" if found.torch.usable else ", and neither can torch be used"
    return f"no accelerator is usable here{torch}"


def result_in_words(found: Findings, bad: list[Problem]) -> str:
    """The last line, or the title of the problems."""
    if bad:
        return "Result: 1 problem." if len(bad) == 1 else f"Result: {len(bad)} problems."
    unused = [b.name for b in found.backends if b.accelerator and not b.usable and b.built]
    rest = f" {' and '.join(unused)} stays unused until what is said above is done." if unused else ""
    return f"Result: good. Programs that ask devicekit run on {found.asked.label}.{rest}"
