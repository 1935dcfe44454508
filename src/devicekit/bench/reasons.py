"""Why something could not be measured, in one line."""

from __future__ import annotations

from devicekit.errors import DeviceKitError, first_line

__all__ = ["in_one_line"]


def in_one_line(exc: Exception) -> str:
    """The first line of what it says."""
    return first_line(exc.why or exc.what if isinstance(exc, DeviceKitError) else exc) or type(exc).__name__
