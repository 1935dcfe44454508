"""Decide: from what was asked for and what is usable here to one device, with the reason for every no."""

from __future__ import annotations

import logging
import numbers
import sys
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from devicekit import host as _host
from devicekit.backend import Backend
from devicekit.errors import DeviceFallbackWarning, DeviceKitError, DeviceUnavailableError
from devicekit.host import Host
from devicekit.probing import PROBE_SECONDS, Probes
from devicekit.registry import Row
from devicekit.request import (
    AUTO,
    GPU,
    PINS,
    Request,
    environment_reader,
    local_rank,
    parse,
    saved_choice,
    words_of,
)
from devicekit.values import Availability, DeviceInfo, Explanation, Verdict

if TYPE_CHECKING:
    import torch

__all__ = [
    "Decision", "Resolver", "available_backends", "explain", "index_problem", "resolve_device", "resolver", "warn",
]  # fmt: skip

log = logging.getLogger("devicekit")


@dataclass(frozen=True, slots=True)
class Decision:
    """One device, chosen."""

    name: str
    """The backend's name."""
    backend: Backend
    device: Any
    index: int | None
    """None: there is only one, or the runtime's current one is meant."""
    request: Request
    answer: Availability
    """The backend's probe."""
    warning: str | None = None


class Resolver(Probes):
    """Decides among the backends of one host, and remembers what it decided."""

    def __init__(self, host: Host, probe_seconds: float = PROBE_SECONDS) -> None:
        super().__init__(host, probe_seconds)
        self._decisions: dict[Any, Decision] = {}
        self._told: set[str] = set()
        self._words = words_of(self.rows)
        self._automatic = [row for row in self.rows if row.automatic]
        self._environment = environment_reader(host.env, (*PINS, "LOCAL_RANK"))
        self._saved: tuple[str | None] | None = None

    # -- what was asked for --------------------------------------------------------------------
    def request(self, preferred: object) -> Request:
        """The argument where it says something, else the strongest pin, else the saved choice, else auto."""
        if preferred is not None:
            asked = self.parse(preferred, "argument")
            if asked.word != AUTO:
                return asked
        set_pins = [(name, self.host.env[name]) for name in PINS if name in self.host.env]
        if set_pins:
            self._warn_of_disagreement(set_pins)
            name, text = set_pins[0]
            return self.parse(text, name)
        if self._saved is None:
            self._saved = (saved_choice(self.host),)
        if self._saved[0] is not None:
            return self.parse(self._saved[0], "saved choice")
        return Request(AUTO)

    def parse(self, value: object, source: str) -> Request:
        """Read a device as the user spells it, third parties' included.

        Raises:
            UnknownDeviceError: no device is spelled like this.
        """
        try:
            return parse(value, source, self._words)
        except DeviceKitError:
            # The word may be what torch calls a third party's device; only its class knows, so it is loaded now.
            plugins = [row for row in self.rows if row.origin != "devicekit"]
            return parse(value, source, words_of(self.rows, [self.backend(row).device_type for row in plugins]))

    def _warn_of_disagreement(self, pins: list[tuple[str, str]]) -> None:
        (first, text), *others = pins
        for name, other in others:
            if other.strip().lower() != text.strip().lower():
                self._warn_once(f"{first}={text!r} and {name}={other!r} disagree: {first} is used")

    def _warn_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warn(message)

    # -- deciding ------------------------------------------------------------------------------
    def decide(
        self, preferred: object = None, *, strict: bool = False, pinned: bool = True, current: bool = False
    ) -> Decision:
        """The device for a request; with ``pinned=False`` as if nobody had pinned or saved one.

        With ``current`` no index is chosen where the request has none.

        Raises:
            UnknownDeviceError: the request, or the pin that stands in for it, is no device.
            DeviceUnavailableError: only with ``strict``: it is a device, but cannot be used here.
        """
        with self.host.lock:
            request = self.request(preferred) if pinned else Request(AUTO)
            return self._decide(replace(request, current=True) if current else request, strict)

    def _decide(self, request: Request, strict: bool) -> Decision:
        wanted = self._wanted(request)
        for row in wanted:
            decision = self._take(row, request, strict)
            if decision is not None:
                return decision
        if request.word == AUTO:
            return self._last_resort(request)
        reason, fix = self._why_none(wanted)
        if strict:
            what = f"{request.said()} was asked for, but it cannot be used here."
            raise DeviceUnavailableError(what, why=reason, try_=fix)
        instead = self._decide(replace(request, word=AUTO, index=None), strict=False)
        told = (
            f"{request.said()} was asked for, but it cannot be used here: {reason}. {instead.device} is used instead."
        )
        return replace(instead, request=request, warning=told)

    def _wanted(self, request: Request) -> list[Row]:
        """The rows that a request can mean, best first."""
        if request.word == AUTO:
            return self._automatic
        if request.word == GPU:
            return [row for row in self._automatic if self.backend(row).accelerator]
        named = [row for row in self.rows if request.word in (row.name, *row.also)]
        alike = [row for row in self.rows if self.backend(row).device_type == request.word]
        return list(dict.fromkeys(named + alike))

    def _take(self, row: Row, request: Request, strict: bool) -> Decision | None:
        """The decision for this row; None where it cannot be used."""
        answer = self.probe(row)
        if not answer.usable:
            return None
        backend, warning = self.backend(row), None
        index = request.index
        if index is not None:
            problem = index_problem(row.name, answer, index)
            if problem and strict:
                what = f"{request.said()} was asked for, but it cannot be used here."
                raise DeviceUnavailableError(what, why=problem[0], try_=problem[1])
            index = None if problem else index
            warning = problem[0] if problem else None
        if index is None and not request.current:
            index, rank_warning = self._default_index(backend, answer)
            warning = warning or rank_warning
        index = index if backend.indexed else None
        try:
            device = backend.device(index)
        except Exception as exc:  # a third party's, or a runtime that broke since the probe
            log.warning("backend %s cannot name its device", row.name, exc_info=True)
            self.refuse(row, f"its device() raised {type(exc).__name__}: {exc}")
            return None
        if warning:
            warning = f"{request.said()} was asked for: {warning}. {device} is used instead."
        return Decision(row.name, backend, device, index, request, answer, warning)

    def _default_index(self, backend: Backend, answer: Availability) -> tuple[int, str | None]:
        """LOCAL_RANK's device under torchrun, else the one that the user made current, else the freest."""
        usable = [d for d in answer.devices if d.usable]
        warning = None
        rank = local_rank(self.host.env)
        if rank is not None and backend.indexed and len(usable) > 1:
            if rank in [d.index for d in usable]:
                return rank, None
            warning = f"LOCAL_RANK={rank}, but {_valid(usable)}"
        try:
            current = backend.current_index()
        except Exception:
            log.warning("backend %s cannot tell its current device", backend.name, exc_info=True)
            current = None
        if current in [d.index for d in usable] and current is not None:
            return current, warning
        return max(usable, key=_preference).index, warning

    def _why_none(self, wanted: list[Row]) -> tuple[str, str]:
        """The most telling refusal: of software that is installed, if there is any."""
        refused = [self.probe(row) for row in wanted]
        built = [answer for answer in refused if answer.built]
        if built or len(refused) == 1:
            first = (built or refused)[0]
            return first.reason, first.fix
        torch_missing = self.host.torch_failure()
        if torch_missing is not None:
            return torch_missing
        if len({self.backend(row).device_type for row in wanted}) == 1:
            return refused[0].reason, refused[0].fix
        names = ", ".join(row.name for row in wanted)
        return f"no accelerator is usable here ({names} were asked)", "devicekit doctor says why for each"

    def _last_resort(self, request: Request) -> Decision:
        """Nothing can compute here; the device is the CPU all the same, and the warning says what is missing."""
        row = next(row for row in self.rows if row.name == "numpy")
        warning = "neither torch nor numpy can be used here: pip install torch, or pip install numpy"
        return Decision(row.name, self.backend(row), "cpu", None, request, self.probe(row), warning)

    # -- the quick way -------------------------------------------------------------------------
    def automatic(self) -> Any:
        """The device for no argument. The pins are read again at each call; the rest only when they have changed."""
        seen = self._environment()
        decision = self._decisions.get(seen)
        if decision is None:
            decision = self.decide()
            if decision.warning is None:
                self._decisions[seen] = decision
            else:
                warn(decision.warning)
        return decision.device

    def named(self, preferred: object, strict: bool) -> Any:
        """The device for an argument; one that can mean nothing else is kept for the next time."""
        decision = self.decide(preferred, strict=strict)
        if decision.warning is not None:
            warn(decision.warning)
        elif (
            decision.request.source == "argument"
            and _is_settled(decision)
            and not isinstance(preferred, numbers.Number)
        ):
            self.host.settled[preferred] = decision.device
        return decision.device

    # -- explaining ----------------------------------------------------------------------------
    def explain(self, preferred: object = None) -> Explanation:
        """The decision and a verdict for every row."""
        decision = self.decide(preferred)
        return Explanation(
            device=str(decision.device),
            backend=decision.name,
            index=decision.index,
            requested=decision.request.text,
            source=decision.request.source,
            warning=decision.warning,
            verdicts=tuple(self._verdict(row, decision) for row in self.rows),
        )

    def _verdict(self, row: Row, decision: Decision) -> Verdict:
        answer = self.probe(row)
        return Verdict(
            backend=row.name,
            usable=answer.usable,
            reason=answer.reason,
            fix=answer.fix,
            devices=answer.devices,
            chosen=self.backend(row) is decision.backend,
            origin=row.origin,
        )


def _is_settled(decision: Decision) -> bool:
    return decision.request.index is not None or not decision.backend.indexed


def index_problem(name: str, answer: Availability, index: int) -> tuple[str, str] | None:
    """Why this index cannot be had, and what to try."""
    device = answer.device(index)
    usable = [d for d in answer.devices if d.usable]
    if device is None:
        return f"{name} has no device {index}: {_valid(usable)}", f'"{name}" without an index'
    if not device.usable:
        return device.reason, device.fix or _valid(usable)
    return None


def _valid(usable: list[DeviceInfo]) -> str:
    numbers = [d.index for d in usable]
    if len(numbers) == 1:
        return f"the only one is {numbers[0]}"
    if numbers == list(range(len(numbers))):
        return f"valid are 0 to {numbers[-1]}"
    return f"valid are {', '.join(map(str, numbers))}"


def _preference(device: DeviceInfo) -> tuple[bool, int, int]:
    """Integrated last; then the most free memory, where it is known; then the lowest index."""
    return (not device.integrated, device.free_memory or 0, -device.index)


def warn(message: str) -> None:
    """Warn at the line outside devicekit that asked."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "devicekit":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DeviceFallbackWarning, stacklevel=level)


# -- the public names ------------------------------------------------------------------------------
def resolver(host: Host | None = None) -> Resolver:
    """The resolver of a host, made once; of the current host by default."""
    where = host if host is not None else _host.current()
    made = where.memo.get("resolver")
    if made is None:
        with where.lock:
            made = where.memo.setdefault("resolver", Resolver(where))
    assert isinstance(made, Resolver)
    return made


def resolve_device(preferred_device: object = None, *, strict: bool = False) -> torch.device:
    """Decide on a device.

    Args:
        preferred_device: None or ``"auto"``; ``"cpu"``; ``"gpu"``, the best accelerator; ``"cuda"``, ``"rocm"``,
            ``"xpu"``, ``"npu"`` with or without ``:N``; ``"mps"``, ``"vulkan"``, ``"numpy"``; a plugin's name; a whole
            number, the Nth device of the best accelerator; a ``torch.device``. Without an argument the pins decide:
            ``DEVICEKIT_DEVICE``, ``KRONOS_DEVICE``, ``PREFERRED_DEVICE``, ``YIRAGE_BACKEND``, then what
            ``devicekit use`` saved.
        strict: raise, instead of taking another device with a :class:`DeviceFallbackWarning`.

    Returns:
        A ``torch.device``; on a host without torch the string ``"cpu"``, NumPy's own name for its device.

    Raises:
        UnknownDeviceError: the word, or the pin, is no device.
        DeviceUnavailableError: only with ``strict``.
    """
    where = _host._current
    if preferred_device is None:
        here = where.memo.get("resolver") or resolver()
        return here.named(None, strict) if strict else here.automatic()  # type: ignore[no-any-return]
    try:
        settled = where.settled.get(preferred_device)  # whole numbers are never kept: 1 == True == 1.0
    except TypeError:  # what has no hash is no device; parse() says so
        settled = None
    if settled is not None:
        return settled  # type: ignore[no-any-return]
    return resolver().named(preferred_device, strict)  # type: ignore[no-any-return]


def explain(preferred_device: object = None) -> Explanation:
    """The decision for a request as data, with a verdict, a reason and a fix for every backend.

    Raises:
        UnknownDeviceError: the word, or the pin, is no device.
    """
    return resolver().explain(preferred_device)


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can be used here, in order of preference."""
    return tuple(row.name for row in resolver().usable_rows())
