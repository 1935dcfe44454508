"""What was measured to be best on this machine, kept for all programs: the value, its file, and where it counts.

``devicekit tune`` measures and saves. A DeviceManager finds what was saved and goes by it. One file holds the tuning of
one kind of device on one kind of machine, so that a home folder which several machines share loses nothing. A file that
was made elsewhere, or by another torch, never counts.

Every DeviceManager asks whether there is one, so what takes time to import is imported where there is one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devicekit.backend import Backend
from devicekit.container import usable_cpus
from devicekit.drafts import Draft
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.values import AttentionCase, DeviceInfo

__all__ = [
    "DTYPES",
    "SWITCH",
    "THREAD_PINS",
    "Fingerprint",
    "Tuning",
    "as_text",
    "begin",
    "check",
    "draft",
    "file_of",
    "fingerprint",
    "fingerprint_of",
    "forget",
    "is_on",
    "load",
    "of",
    "save",
    "saved",
]

log = logging.getLogger("devicekit")

SWITCH = "DEVICEKIT_TUNING"
"""The variable that says whether a saved tuning counts: ``off`` for no."""
_OFF = ("off", "0", "no", "false")

FORMAT = "devicekit.tuning"
VERSION = 1
FOLDER = "tuning"
LARGEST = 1 << 16
"""Bytes of a file; ours have two thousand."""
LONGEST = 200
"""Letters of a text in it."""

DTYPES = ("float32", "bfloat16", "float16")
THREAD_PINS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables by which a user sets torch's threads; torchrun sets the first one too."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Where a tuning counts: on a machine and a device like these, with this software."""

    processor: str
    cpus: int
    """CPUs that this process may use: the affinity mask, cut by the container's quota."""
    quota: float | None
    """CPUs' worth of time that the container gives; None: no quota."""
    backend: str
    device: str
    architecture: str | None
    torch: str
    devicekit: str
    """The part of the version that changes with what a tuning means: ``0.1``, ``2``."""

    def difference(self, other: Fingerprint) -> str:
        """Why a tuning of ``other`` does not count here, in words; empty where it does."""
        for name, words in _WORDS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"it was measured with {words} {theirs!r}, and here it is {mine!r}"
        return ""


_WORDS = {
    "processor": "the processor",
    "cpus": "a number of usable CPUs of",
    "quota": "a CPU quota of",
    "backend": "the backend",
    "device": "the device",
    "architecture": "the architecture",
    "torch": "torch",
    "devicekit": "devicekit",
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """The choices that were fastest, each with what it was measured against."""

    fingerprint: Fingerprint
    created: str
    """When, in UTC: ``2026-01-31T12:00:00+00:00``."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``: the default of ``DeviceManager.dtype``."""
    threads: int | None = None
    """For the processor's own work; None: torch's number, or this device does the work."""
    own_threads: int | None = None
    """What torch had chosen by itself where this was measured; another number there means that the user chose."""
    attention: str | None = None
    """The kernel that was faster than torch's choice, for ``DeviceManager.attention``; None: leave it to torch."""
    channels_last: bool | None = None
    """Convolutions are faster with ``memory_format=torch.channels_last``; None: it cannot be told."""
    allocator: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables that made it faster or smaller; they count only before a process starts, so devicekit
    cannot set them."""
    seconds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """What was measured: question, to choice, to seconds."""

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dict; what a file holds."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}


# -- where it counts -----------------------------------------------------------------------------
def fingerprint(host: Host, backend: str, device: DeviceInfo, torch_version: str) -> Fingerprint:
    """The fingerprint of a device on this host."""
    from devicekit import __version__, reporting

    major, minor = __version__.split(".")[:2]
    return Fingerprint(
        processor=_plain(reporting.processor(host)),
        cpus=usable_cpus(host.cgroup()),
        quota=host.cgroup().cpu_quota(),
        backend=backend,
        device=_plain(device.name),
        architecture=None if device.architecture is None else _plain(device.architecture),
        torch=torch_version,
        devicekit=major if major != "0" else f"0.{minor}",  # before 1.0 the minor is what the major is later
    )


def _plain(text: str) -> str:
    """As a file may hold it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:LONGEST]


def fingerprint_of(backend: Backend, index: int) -> Fingerprint:
    """The same for a backend's device. May start its runtime."""
    return fingerprint(backend.host, backend.name, backend.describe(index), str(backend.torch.__version__))


# -- files ---------------------------------------------------------------------------------------
def file_of(host: Host, where: Fingerprint) -> Path:
    """Where the tuning for this fingerprint is kept.

    Raises:
        RuntimeError: the user has no home folder.
    """
    import hashlib
    import json

    said = json.dumps(dataclasses.asdict(where), sort_keys=True)
    return host.config_file(FOLDER) / f"{where.backend}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def draft(host: Host, where: Fingerprint) -> Draft:
    """The file that a tuning will be kept in, as long as it is not there.

    Raises:
        OSError: it cannot be written.
        RuntimeError: the user has no home folder.
    """
    file = file_of(host, where)
    file.parent.mkdir(parents=True, exist_ok=True)
    return Draft(file)


def save(host: Host, tuning: Tuning, into: Draft) -> None:
    """Keep a tuning for all programs of this user: one that reads at this moment sees the old one or the new one.

    Raises:
        OSError: it cannot be written; what was kept before stays.
    """
    into.commit(as_text(tuning))
    host.memo.pop("tuning", None)


def as_text(tuning: Tuning) -> bytes:
    """What a file holds."""
    import json

    return (json.dumps(tuning.to_dict(), indent=2, allow_nan=False) + "\n").encode()


def forget(host: Host, where: Fingerprint) -> None:
    """Remove what was kept for this fingerprint, if anything.

    Raises:
        OSError: it cannot be removed.
        RuntimeError: the user has no home folder.
    """
    file_of(host, where).unlink(missing_ok=True)
    host.memo.pop("tuning", None)


def load(path: str | os.PathLike[str]) -> Tuning:
    """Read a tuning.

    Raises:
        DeviceKitError: the file cannot be read, or is no tuning; with what is wrong.
    """
    import json

    try:
        content = _content(path)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        why = getattr(exc, "strerror", None) or str(exc)
        raise DeviceKitError(f"{os.fspath(path)} cannot be read.", why=why, try_=_TRY) from exc
    try:
        return _tuning(json.loads(content, parse_constant=_no_number))
    except RecursionError:
        why = "it is nested too deeply"
    except (ValueError, LookupError) as exc:  # of json, of codecs, and ours
        why = str(exc)
    raise DeviceKitError(f"{os.fspath(path)} is no tuning.", why=why, try_=_TRY)


_TRY = "devicekit tune, which measures on this machine"


def _content(path: str | os.PathLike[str]) -> bytes:
    """At most ``LARGEST`` bytes of a regular file; a pipe would keep us waiting, and a device never ends."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = os.read(descriptor, LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    return content


# -- what a file may say -------------------------------------------------------------------------
def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= 1 << 16


def _is_figure(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9  # type: ignore[operator]  # it is a number by now


def _is_table(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and len(value) <= 64 and all(_is_text(k) and of(v) for k, v in value.items())
    )


def _or_none(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or of(value)


_OF_FINGERPRINT: dict[str, Callable[[Any], bool]] = {
    "processor": _is_text,
    "cpus": _is_count,
    "quota": _or_none(_is_figure),
    "backend": _is_text,
    "device": _is_text,
    "architecture": _or_none(_is_text),
    "torch": _is_text,
    "devicekit": _is_text,
}
_OF_TUNING: dict[str, Callable[[Any], bool]] = {
    "fingerprint": lambda value: isinstance(value, dict),
    "created": _is_text,
    "dtype": DTYPES.__contains__,
    "threads": _or_none(_is_count),
    "own_threads": _or_none(_is_count),
    "attention": _or_none(_is_text),
    "channels_last": _or_none(lambda value: isinstance(value, bool)),
    "allocator": _is_table(_is_text),
    "seconds": _is_table(_is_table(_is_figure)),
}


def _tuning(data: object) -> Tuning:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f'it does not say "format": "{FORMAT}"')
    if type(data.get("version")) is not int or data["version"] != VERSION:
        raise ValueError(f"its version is {data.get('version')!r:.40}, and this devicekit reads {VERSION}")
    fields = {name: value for name, value in data.items() if name not in ("format", "version")}
    _check(fields, _OF_TUNING, "it")
    _check(fields["fingerprint"], _OF_FINGERPRINT, "its fingerprint")
    made = Tuning(**{**fields, "fingerprint": Fingerprint(**fields["fingerprint"])})
    if made.threads is not None and made.threads > made.fingerprint.cpus:
        raise ValueError(f"threads is {made.threads}, and it was measured with {made.fingerprint.cpus} usable CPUs")
    return made


def _check(fields: dict[str, Any], known: dict[str, Callable[[Any], bool]], whose: str) -> None:
    for name in known:
        if name not in fields:
            raise ValueError(f"{whose} has no {name}")
        if not known[name](fields[name]):
            raise ValueError(f"{name} cannot be {fields[name]!r:.60}")
    for name in fields:
        if name not in known:
            raise ValueError(f"{whose} has {name!r:.60}, which means nothing")


# -- in a program --------------------------------------------------------------------------------
class _Shelf:
    """The tunings of one host: looked for once, and read once each."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.empty = _is_empty(host)
        self.threads_settled = False
        self._read: dict[tuple[str, int], Tuning | None] = {}

    def tuning(self, backend: Backend, index: int) -> Tuning | None:
        if not is_on(self.host) or not backend.needs_torch:
            return None
        key = (backend.name, index)
        if key not in self._read:
            self._read[key] = self._found(backend, index)
        return self._read[key]

    def _found(self, backend: Backend, index: int) -> Tuning | None:
        try:
            here = fingerprint_of(backend, index)
        except Exception:  # of a runtime or of a third party; whoever uses the device will hear of it
            log.warning("no tuning can be looked up for %s", backend.name, exc_info=True)
            return None
        try:
            return saved(self.host, here)
        except DeviceKitError as error:
            log.warning("the saved tuning does not count: %s (%s)", error.what, error.why)
            return None


def _is_empty(host: Host) -> bool:
    try:
        return all(name.startswith(".") for name in os.listdir(host.config_file(FOLDER)))  # noqa: PTH208  # half the time
    except (OSError, RuntimeError):  # RuntimeError: a user without a home folder
        return True


def is_on(host: Host) -> bool:
    """The user has not switched saved tunings off."""
    return host.env.get(SWITCH, "").strip().lower() not in _OFF


def saved(host: Host, here: Fingerprint) -> Tuning | None:
    """What is kept for this fingerprint; None: nothing.

    Raises:
        DeviceKitError: what is kept there is no tuning, or one of another machine.
    """
    try:
        file = file_of(host, here)
    except RuntimeError:  # a user without a home folder
        return None
    if not os.path.lexists(file):
        return None
    found = load(file)
    why = here.difference(found.fingerprint)
    if why:
        raise DeviceKitError(f"{file} does not count here.", why=why, try_=_TRY)
    return found


def check(tuning: Tuning, here: Fingerprint, backend: Backend) -> None:
    """Whether a tuning from somewhere can be taken over for this device.

    Raises:
        DeviceKitError: it was measured elsewhere, or names a kernel or settings that are none.
    """
    why = here.difference(tuning.fingerprint)
    if (
        not why
        and tuning.attention is not None
        and tuning.attention not in backend.attention_kernels(AttentionCase(getattr(backend.torch, tuning.dtype)))
    ):
        why = f"{tuning.attention!r} is no attention kernel of {backend.name}"
    if not why and tuning.allocator and dict(tuning.allocator) not in backend.allocator_settings():
        why = f"{dict(tuning.allocator)!r:.80} are no settings of an allocator of {backend.name}"
    if why:
        raise DeviceKitError("this tuning does not count here.", why=why, try_=_TRY)


def of(backend: Backend, index: int) -> Tuning | None:
    """The saved tuning of a device; None where none counts. Where anything is saved, this may start the runtime."""
    memo = backend.host.memo
    shelf: _Shelf = memo.get("tuning") or memo.setdefault("tuning", _Shelf(backend.host))
    return None if shelf.empty else shelf.tuning(backend, index)


def begin(backend: Backend) -> None:
    """Set the number of threads that was best, once a process, where the processor is used and nobody else set it.

    A user sets it by a variable, or by ``torch.set_num_threads`` before: then torch's number is not the one that it
    had chosen by itself when the tuning was measured.
    """
    if backend.accelerator:
        return
    memo = backend.host.memo
    shelf: _Shelf = memo.get("tuning") or memo.setdefault("tuning", _Shelf(backend.host))
    if shelf.empty or shelf.threads_settled:
        return
    shelf.threads_settled = True
    tuning = shelf.tuning(backend, 0)
    if tuning is None or tuning.threads is None or any(name in backend.host.env for name in THREAD_PINS):
        return
    if backend.torch.get_num_threads() == tuning.own_threads:
        backend.torch.set_num_threads(tuning.threads)
