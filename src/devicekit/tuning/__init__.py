"""What was measured to be best on this machine, kept for all programs: where it lies, and where it counts.

``devicekit tune`` measures and saves. A DeviceManager finds what was saved and goes by it. One file holds the tuning of
one kind of device on one kind of machine, so that a home folder which several machines share loses nothing. A file that
was made elsewhere, or by another torch, never counts.

Every DeviceManager asks whether there is one, so what takes time to import is imported where there is one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

from devicekit.backend import Backend
from devicekit.drafts import Draft
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.tuning.value import Fingerprint, Tuning, fingerprint_of
from devicekit.values import AttentionCase

__all__ = [
    "SWITCH", "THREAD_PINS", "as_text", "begin", "check", "draft", "file_of", "forget", "is_on", "of", "save", "saved",
]  # fmt: skip

log = logging.getLogger("devicekit")

SWITCH = "DEVICEKIT_TUNING"
"""The variable that says whether a saved tuning counts: ``off`` for no."""
_OFF = ("off", "0", "no", "false")

FOLDER = "tuning"

THREAD_PINS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables by which a user sets torch's threads; torchrun sets the first one too."""


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
    from devicekit.tuning.reading import TRY, load

    found = load(file)
    why = here.difference(found.fingerprint)
    if why:
        raise DeviceKitError(f"{file} does not count here.", why=why, try_=TRY)
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
        from devicekit.tuning.reading import TRY

        raise DeviceKitError("this tuning does not count here.", why=why, try_=TRY)


def _shelf(host: Host) -> _Shelf:
    shelf: _Shelf = host.memo.get("tuning") or host.memo.setdefault("tuning", _Shelf(host))
    return shelf


def of(backend: Backend, index: int) -> Tuning | None:
    """The saved tuning of a device; None where none counts. Where anything is saved, this may start the runtime."""
    shelf = _shelf(backend.host)
    return None if shelf.empty else shelf.tuning(backend, index)


def begin(backend: Backend) -> None:
    """Set the number of threads that was best, once a process, where the processor is used and nobody else set it.

    A user sets it by a variable, or by ``torch.set_num_threads`` before: then torch's number is not the one that it
    had chosen by itself when the tuning was measured.
    """
    if backend.accelerator:
        return
    shelf = _shelf(backend.host)
    if shelf.empty or shelf.threads_settled:
        return
    shelf.threads_settled = True
    tuning = shelf.tuning(backend, 0)
    if tuning is None or tuning.threads is None or any(name in backend.host.env for name in THREAD_PINS):
        return
    if backend.torch.get_num_threads() == tuning.own_threads:
        backend.torch.set_num_threads(tuning.threads)
