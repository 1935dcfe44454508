"""Attempts to meet somebody who is not there, each in time; prints the errors, one after the other."""

from __future__ import annotations

import os
import socket

import devicekit as dk

free = socket.socket()
free.bind(("127.0.0.1", 0))
port = free.getsockname()[1]
free.close()
os.environ.update(WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def attempt(rank: int) -> None:
    os.environ["RANK"] = str(rank)
    try:
        dk.DeviceManager("cpu").init_distributed(timeout=1)
    except dk.DeviceKitError as error:
        print(error, "\n--")


attempt(1)  # nobody listens
attempt(0)  # nobody comes
taken = socket.socket()
taken.bind(("127.0.0.1", port))
taken.listen()
attempt(0)  # somebody else listens
