"""A rank that joins with the collective of the argument, and lets go of everything where it cannot."""

from __future__ import annotations

import sys

import devicekit as dk


def join() -> str:
    """The error's first two lines."""
    try:
        dk.DeviceManager("cpu").init_distributed(sys.argv[1], timeout=3600)
    except dk.DeviceKitError as error:
        return error.what + error.why
    return "joined"


print(join())
