"""Examine a host from outside: child after child, until every backend has a verdict.

Each child that is lost names its culprit (:mod:`devicekit.isolation`); that step gets the reason, and the next child is
asked for what is left. A torch that cannot even be imported is left out of the last child, so that NumPy still answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from devicekit.errors import DeviceKitError
from devicekit.formats import FORMATS, Trial
from devicekit.host import AUTOLOAD, Host
from devicekit.isolation.facts import BackendFacts, Choice, DeviceFacts, Findings, TorchFacts
from devicekit.isolation.process import LostChildError, converse
from devicekit.isolation.steps import Wanted, closer_steps, label
from devicekit.registry import Row, rows
from devicekit.request import saved_choice
from devicekit.values import Availability, DeviceInfo

__all__ = ["examine"]

log = logging.getLogger("devicekit")


def examine(host: Host, wanted: Wanted, watch: Callable[[str], None] = lambda _: None) -> Findings:
    """Ask all backends of this host, in child processes.

    Args:
        host: the real one or a simulated one.
        wanted: what to ask.
        watch: is told the name of each step as it begins.

    Raises:
        DeviceKitError: no child process can be started here.
    """
    with contextlib.ExitStack() as stack:
        notes = _Notes(host, wanted)
        if host.to_json() is not None:  # what a simulated machine writes must not outlive a child that is lost
            folder = tempfile.TemporaryDirectory(prefix="devicekit-", ignore_cleanup_errors=True)
            notes.scratch = stack.enter_context(folder)
        while not _finished(notes, watch):
            pass
        return notes.findings()


def _finished(notes: _Notes, watch: Callable[[str], None]) -> bool:
    """One more child; False when it was lost on its way."""
    try:
        answers = converse(notes.request(), notes.wanted.seconds, lambda step: watch(notes.in_words(step)))
        for step, told in answers:
            notes.answers.setdefault(step, told)
    except LostChildError as lost:
        log.debug("child lost at %s: %s", lost.step, lost.reason)
        notes.lose(lost)
        return False
    return True


class _Notes:
    """What the children have said so far, and so what the next one is to be asked."""

    def __init__(self, host: Host, wanted: Wanted) -> None:
        self.host = host
        self.wanted = wanted
        self.rows = rows(host)
        self.answers: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, str] = {}
        self.hung: set[str] = set()
        self.autoload = host.env.get(AUTOLOAD, "1") == "1" and bool(host.torch_plugins()[1])
        self.plugins_lost = ""
        self.scratch: str | None = None

    def request(self) -> dict[str, Any]:
        """What is left to ask."""
        positions, wanted = range(len(self.rows)), self.wanted
        skip = [step for step in (*self.answers, *self.lost) if not step.startswith(("torch", "probe"))]
        return {
            "machine": self.host.to_json(),
            "saved": saved_choice(self.host),
            "scratch": self.scratch,
            "backends": [p for p in positions if wanted.everything and self._is_open(p)],
            "refused": [[p, self.lost[f"probe {p}"]] for p in positions if f"probe {p}" in self.lost],
            "skip": skip if wanted.everything else [*skip, "torch"],
            "failed": [step for step in (*self.answers, *self.lost) if self._why(step)],
            "torch": self.lost.get("torch"),
            "autoload": not self.plugins_lost,
            "decide": True,
            "device": wanted.device,
            "strict": wanted.strict,
            "everything": wanted.everything,
            "describe": wanted.describe,
            "verify": wanted.verify,
            "log_level": log.getEffectiveLevel(),
        }

    def _is_open(self, position: int) -> bool:
        """Something about this row has not been asked yet."""
        told = self.answers.get(f"probe {position}")
        if f"probe {position}" in self.lost:
            return False
        if told is None or "error" in told:
            return told is None
        seen = {*self.answers, *self.lost}
        return any(step not in seen for step in closer_steps(position, told["availability"], self.wanted))

    def lose(self, lost: LostChildError) -> None:
        """Note a culprit. Each loss takes something out of the next request, so there is an end."""
        if lost.step is None or lost.step in self.lost:
            raise DeviceKitError(
                "no child process can be started to ask in.", why=lost.reason, try_=f"{sys.executable} --version"
            )
        if lost.step == "torch" and self.autoload and not self.plugins_lost:
            self.plugins_lost = lost.reason  # is it torch, or a plugin that it loads? the next child tells
            return
        self.lost[lost.step] = lost.reason
        self.hung |= {lost.step} if lost.hung else set()
        self.answers.pop(lost.step, None)

    def in_words(self, step: str) -> str:
        """The step for a person who waits."""
        kind, *where = step.split()
        if not where:
            return {"torch": "importing torch", "decision": "choosing"}.get(kind, "reading the machine")
        verb = {"probe": "asking", "verify": "running a kernel on", "try": "multiplying on"}.get(kind, "describing")
        return f"{verb} {label(self.rows[int(where[0])].name, *where[1:2])}"

    # -- putting it together -------------------------------------------------------------------
    def findings(self) -> Findings:
        """The verdicts."""
        machine = self.answers.get("machine", {})
        decision = self.answers.get("decision", {})
        why = {"what": "no device could be chosen.", "why": self._why("decision"), "try": "", "known": True}
        return Findings(
            torch=self._torch(),
            backends=tuple(self._backend(p, row) for p, row in enumerate(self.rows)),
            asked=Choice(**decision.get("asked", {"error": why})),
            automatic=Choice(**decision.get("automatic", {"error": why})),
            warnings=tuple(decision.get("warnings", ())),
            machine=machine.get("machine", {}),
            versions=machine.get("versions", {}),
        )

    def _why(self, step: str) -> str:
        """Why a step has no answer; empty where it has one or was not asked."""
        return self.lost.get(step) or str(self.answers.get(step, {}).get("error", ""))

    def _torch(self) -> TorchFacts:
        told = self.answers.get("torch", {"error": "it was not asked"})
        reason = self._why("torch") or told.get("error")
        if reason:
            lost, hung = "torch" in self.lost, "torch" in self.hung
            return TorchFacts(False, reason=reason, fix=TORCH_FIX, lost=lost, hung=hung)
        return TorchFacts(**told, plugins_lost=self.plugins_lost)

    def _backend(self, position: int, row: Row) -> BackendFacts:
        step = f"probe {position}"
        told = self.answers.get(step, {"error": "it was not asked"})
        reason = self._why(step) or told.get("error")
        if reason:
            return BackendFacts(
                row.name,
                row.origin,
                False,
                reason,
                self._fix(step),
                automatic=row.automatic,
                maker=_maker(row),
                lost=self.lost.get(step, ""),
                hung=step in self.hung,
            )
        said = _availability(told["availability"])
        devices = tuple(self._device(position, told, info) for info in said.devices)
        verdict = said
        if said.usable and not any(device.info.usable for device in devices):
            verdict = Availability.yes(device.info for device in devices)  # which makes it a no, with the reason
        return BackendFacts(
            name=row.name,
            origin=row.origin,
            usable=verdict.usable,
            reason=verdict.reason,
            fix=verdict.fix,
            built=verdict.built,
            accelerator=told["accelerator"],
            automatic=row.automatic,
            maker=_maker(row) if told["accelerator"] else "",
            lost=self.lost.get(f"versions {position}", ""),
            hung=f"versions {position}" in self.hung,
            devices=devices,
            versions=_without_error(self.answers.get(f"versions {position}", {})),
        )

    def _fix(self, step: str) -> str:
        if step in self.hung:
            return HUNG_FIX
        return LOST_FIX if step in self.lost else BROKE_FIX

    def _failed_kernel(self, where: str) -> str:
        raised = self._why(f"verify {where}")
        return f"a test kernel failed: {raised}" if raised else ""

    def _trials(self, where: str) -> dict[str, Trial]:
        """What came of the formats that were tried; a product that took its child down did not run."""
        found: dict[str, Trial] = {}
        for form in FORMATS:
            step = f"try {where} {form}"
            told = _without_error(self.answers.get(step, {}))
            if told:
                found[form] = Trial(**told)
            elif self._why(step):
                found[form] = Trial(False, self._why(step))
        return found

    def _device(self, position: int, told: dict[str, Any], info: DeviceInfo) -> DeviceFacts:
        where = f"{position} {info.index}"
        closer = _without_error(self.answers.get(f"describe {where}", {}))
        verified = self.answers.get(f"verify {where}", {}).get("verified")
        merged = _merge(info, closer)
        kernel = self.lost.get(f"verify {where}") or self._failed_kernel(where)
        described = self._why(f"describe {where}")
        if described or kernel:
            fix = self._fix(f"describe {where}" if described else f"verify {where}")
            merged = dataclasses.replace(merged, usable=False, reason=described or kernel, fix=fix)
        return DeviceFacts(
            label=label(told["backend"], info.index if told["indexed"] else None),
            info=merged,
            memory_source=closer["memory"]["source"] if closer else PROBE_SOURCE,
            precisions=closer.get("precisions", {}),
            trials=self._trials(where),
            traits=closer.get("traits", {}),
            verified=False if kernel else verified,
            broke=info.usable and not merged.usable,
        )


PROBE_SOURCE = "the probe, which starts no runtime"
TORCH_FIX = "reinstall torch (pip install --force-reinstall torch); until then set DEVICEKIT_DEVICE=numpy"
LOST_FIX = "update or reinstall its driver and its plugin for torch; until then set DEVICEKIT_DEVICE=cpu"
HUNG_FIX = "a reboot helps a hanging driver, a longer --timeout a slow one; until then set DEVICEKIT_DEVICE=cpu"
BROKE_FIX = "its newest driver, or a torch that was built for it; until then set DEVICEKIT_DEVICE=cpu"


def _maker(row: Row) -> str:
    return row.hints[0] if row.hints else ""


def _without_error(told: dict[str, Any]) -> dict[str, Any]:
    return {} if "error" in told else told


def _availability(told: dict[str, Any]) -> Availability:
    return Availability(**{**told, "devices": tuple(_info(device) for device in told["devices"])})


def _info(told: dict[str, Any]) -> DeviceInfo:
    """A device as it was told; a third party's memory that is no number of bytes is unknown."""
    sizes = {name: _size(told[name]) for name in ("total_memory", "free_memory")}
    return DeviceInfo(**{**told, **sizes})


def _size(told: Any) -> int | None:
    return told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else None


def _merge(info: DeviceInfo, closer: dict[str, Any]) -> DeviceInfo:
    """The probe's word, made more exact by the runtime's; what only one of them knows is kept."""
    if not closer:
        return info
    known = {key: value for key, value in closer["info"].items() if key != "index" and value not in (None, "")}
    memory = {"total_memory": closer["memory"]["total"], "free_memory": closer["memory"]["available"]}
    known.update({key: value for key, value in memory.items() if value is not None})
    return _info({**dataclasses.asdict(info), **known})
