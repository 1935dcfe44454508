"""Read a tuning that anybody may have written: whatever is wrong with the file is said, and nothing else happens."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from typing import Any

from devicekit.errors import DeviceKitError
from devicekit.tuning.value import DTYPES, FORMAT, LONGEST, VERSION, Fingerprint, Tuning

__all__ = ["TRY", "load"]

LARGEST = 1 << 16
"""Bytes of a file; ours have two thousand."""
TRY = "devicekit tune, which measures on this machine"


def load(path: str | os.PathLike[str]) -> Tuning:
    """Read a tuning.

    Raises:
        DeviceKitError: the file cannot be read, or is no tuning; with what is wrong.
    """
    try:
        content = _content(path)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        why = getattr(exc, "strerror", None) or str(exc)
        raise DeviceKitError(f"{os.fspath(path)} cannot be read.", why=why, try_=TRY) from exc
    try:
        return _tuning(json.loads(content, parse_constant=_no_number))
    except RecursionError:
        why = "it is nested too deeply"
    except (ValueError, LookupError) as exc:  # of json, of codecs, and ours
        why = str(exc)
    raise DeviceKitError(f"{os.fspath(path)} is no tuning.", why=why, try_=TRY)


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
