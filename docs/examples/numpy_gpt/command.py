"""What the commands share: the device, how they end when something is wrong, and where they write."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

import devicekit as dk
from numpy_gpt.errors import BadInput

__all__ = ["add_device", "device", "ended", "tell"]


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="numpy", metavar="NAME", help="any name that devicekit knows (numpy)")


def device(name: str) -> dk.DeviceManager:
    """The manager of a device that computes with arrays of NumPy; ``auto`` is the best of these.

    Raises:
        BadInput: the device is for tensors of another framework.
        devicekit.UnknownDeviceError: the word is no device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dk.DeviceFallbackWarning)  # told below, in one line
        dm = dk.DeviceManager("numpy" if name == "auto" else name)
    if dm.backend != "numpy":
        raise BadInput(f"this program computes with arrays of NumPy, and {name!r} is not for them: try --device numpy")
    if dm.warning is not None:
        tell(f"note: {dm.warning}")
    return dm


def ended(work: Callable[[], None]) -> int:
    """Do the work; the exit code: 0, or 2 after a line that says what was wrong, or 130 when it was broken off."""
    try:
        work()
    except (BadInput, dk.DeviceKitError) as error:
        tell(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def tell(line: str) -> None:
    """A line for the person who watches; stdout is for results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
