"""What the three programs share: the choice of a device, and errors in words instead of tracebacks."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable

import devicekit as dk
from image_editing.editor import Editor

__all__ = ["HOST", "add_model_options", "check_port", "opened", "run"]

HOST = "127.0.0.1"
"""Where the page is served: on this machine, to this machine."""
DTYPES = ("bfloat16", "float16", "float32")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, on which device, and what is done to it."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a diffusers folder of a HiDream pipeline")
    parser.add_argument("--device", default="auto", help="any name that devicekit knows (default: auto)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format; by default the fastest that the device has")
    parser.add_argument("--lora", metavar="FILE", help="a safetensors file, added to the weights")
    parser.add_argument("--lora-scale", type=float, default=1.0, help="how much of it (default: 1)")
    parser.add_argument("--save-memory", action="store_true", help="offload, slice and tile where that helps")


def opened(arguments: argparse.Namespace) -> Editor:
    """The editor that was asked for, on its device or the next one that can be used: ``dm.warning`` tells which."""
    return Editor.open(
        arguments.model,
        dk.DeviceManager(arguments.device, dtype=arguments.dtype),
        lora=arguments.lora,
        lora_scale=arguments.lora_scale,
        save_memory=arguments.save_memory,
    )


def check_port(port: int) -> None:
    """Ask for it before minutes are spent on loading a model that cannot be served.

    Raises:
        DeviceKitError: it is taken, or no port.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except (OSError, OverflowError) as error:
        raise dk.DeviceKitError(f"Port {port} cannot be used.", why=str(error), try_="another --port") from error


def run(work: Callable[[], int]) -> int:
    """Do it; what went wrong is told on stderr, and is exit code 2."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        return work()
    except (dk.DeviceKitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
    return 2
