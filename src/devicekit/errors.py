"""One tree of errors. Each holds what happened, why, and what to try next.

DeviceKitError
  +- UnknownDeviceError      (also ValueError)    the word is no device
  +- DeviceUnavailableError  (also RuntimeError)  the device is known, but not usable here
  +- WeightsError            (also RuntimeError)  weights that cannot be read, placed or trusted
  +- BatchSizeError          (also RuntimeError)  not even the smallest batch fits

DeviceFallbackWarning        (UserWarning)        another device than the one asked for was taken
"""

from __future__ import annotations

__all__ = [
    "BatchSizeError",
    "DeviceFallbackWarning",
    "DeviceKitError",
    "DeviceUnavailableError",
    "UnknownDeviceError",
    "WeightsError",
    "first_line",
]


class DeviceKitError(Exception):
    """What happened, why, and what to try.

    ``str(error)`` is three lines, so that a log line or a traceback carries the way out as well.
    """

    def __init__(self, what: str, *, why: str = "", try_: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.try_ = try_

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.try_:
            lines.append(f"  try: {self.try_}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own __reduce__ would drop the keywords between processes.
        return _rebuild, (type(self), self.what, self.why, self.try_)


def _rebuild(cls: type[DeviceKitError], what: str, why: str, try_: str) -> DeviceKitError:
    return cls(what, why=why, try_=try_)


class UnknownDeviceError(DeviceKitError, ValueError):
    """A word that names no device: a typo, an empty string, a negative index."""


class DeviceUnavailableError(DeviceKitError, RuntimeError):
    """A device that devicekit knows, but that cannot be used on this machine."""


class WeightsError(DeviceKitError, RuntimeError):
    """A weights file that cannot be read, does not fit, or is not what it claims to be."""


class BatchSizeError(DeviceKitError, RuntimeError):
    """Not even the smallest batch size ran."""


class DeviceFallbackWarning(UserWarning):
    """Another device than the one that was asked for is used; the message says why."""


def first_line(said: object) -> str:
    """What an error or a text says first; empty where it says nothing. torch's errors go on with all that there is."""
    return next(iter(str(said).strip().splitlines()), "")
