"""Why something could not be measured, in one line."""

from __future__ import annotations

from devicekit.errors import DeviceKitError

__all__ = ["in_one_line"]


def in_one_line(exc: Exception) -> str:
    """The first line of what it says; torch's go on with all that there is."""
    told = exc.why or exc.what if isinstance(exc, DeviceKitError) else str(exc)
    lines = told.strip().splitlines()
    return lines[0] if lines else type(exc).__name__
