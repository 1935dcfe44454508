"""Ask every backend once, with care: one that raises, hangs or answers nonsense gets a verdict and harms no other."""

from __future__ import annotations

import logging
import threading

from devicekit.backend import Backend
from devicekit.host import Host
from devicekit.registry import Row, load, rows
from devicekit.values import Availability, DeviceInfo

__all__ = ["PROBE_SECONDS", "Probes"]

log = logging.getLogger("devicekit")

PROBE_SECONDS = 30.0
"""How long a driver may take to answer before its backend counts as hanging. A first CUDA start can take 10 s."""


class Probes:
    """The backends of one host and their answers."""

    def __init__(self, host: Host, probe_seconds: float = PROBE_SECONDS) -> None:
        self.host = host
        self.rows = rows(host)
        self.probe_seconds = probe_seconds
        self._backends: dict[Row, Backend] = {}
        self._answers: dict[Row, Availability] = {}

    def backend(self, row: Row) -> Backend:
        """The backend of a row, loaded once."""
        if row not in self._backends:
            self._backends[row] = load(row, self.host)
        return self._backends[row]

    def probe(self, row: Row) -> Availability:
        """A backend's answer, asked once; never raises."""
        if row not in self._answers:
            backend = self.backend(row)
            failure = self.host.torch_failure() if backend.needs_torch else None
            if failure is not None:
                answer = Availability.absent(*failure)
            elif backend.quick_probe:
                answer = _ask(backend)
            else:
                answer = _ask_within(self.probe_seconds, backend)
            log.debug("probe %s: %s", row.name, answer)
            self._answers[row] = answer
        return self._answers[row]

    def usable_rows(self) -> list[Row]:
        """Every row that can be used here, in order of preference."""
        return [row for row in self.rows if self.probe(row).usable]

    def refuse(self, row: Row, reason: str) -> None:
        """Take a backend out for good: it broke after its probe had said yes."""
        self._answers[row] = Availability.no(reason, "devicekit doctor")


def _ask(backend: Backend) -> Availability:
    try:
        answer = backend.probe()
    except (Exception, SystemExit) as exc:
        log.warning("the probe of %s failed", backend.name, exc_info=True)
        return Availability.no(f"its probe raised {type(exc).__name__}: {exc}", "devicekit doctor")
    return answer if _makes_sense(answer) else Availability.no(f"its probe answered nonsense: {answer!r:.200}")


def _makes_sense(answer: object) -> bool:
    if not isinstance(answer, Availability) or not isinstance(answer.devices, tuple):
        return False
    if not (isinstance(answer.reason, str) and isinstance(answer.fix, str)):
        return False
    devices = answer.devices
    if not all(isinstance(d, DeviceInfo) and isinstance(d.index, int) and d.index >= 0 for d in devices):
        return False
    if len({d.index for d in devices}) != len(devices):
        return False
    return any(d.usable for d in devices) or not answer.usable


def _ask_within(seconds: float, backend: Backend) -> Availability:
    """In a thread, because a driver that hangs cannot be interrupted, only left behind."""
    answers: list[Availability] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(backend)), daemon=True, name=f"probe-{backend.name}")
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    return Availability.no(
        f"its driver did not answer within {seconds:g} s", "devicekit doctor; a reboot helps a hanging driver"
    )
