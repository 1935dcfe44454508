"""Files of weights made byte by byte, so that tests can break each byte, and what to compare results by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import devicekit
from devicekit.errors import WeightsError

PIECE = 4 << 20
"""Bytes that are read at once; ``progress`` is called between two pieces."""


def described(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    """A tensor as a header describes it; by default two numbers in eight bytes."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header: JSON to be, text, or bytes; and a length that may lie.

    JSON is filled up with blanks, as safetensors does it, so that what follows can be mapped.
    """
    if not isinstance(header, str | bytes):
        header = json.dumps(header, separators=(",", ":"))
        header += " " * (-len(header) % 8)
    raw = header.encode("utf-8") if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def numbers(*values: float) -> bytes:
    """As float32."""
    return torch.tensor(values, dtype=torch.float32).numpy().tobytes()


GOOD = file_of({"w": described()}, numbers(1, 2))
"""The smallest file that holds something."""


def shard(name: str, *values: float) -> bytes:
    """A file with one tensor."""
    count = len(values)
    return file_of({name: described(shape=[count], offsets=[0, 4 * count])}, numbers(*values))


def sparse(path: Path, sizes: Mapping[str, int]) -> Path:
    """A file of float32 tensors with so many elements each, all zero, which takes no room on the disk."""
    header, at = {}, 0
    for name, count in sizes.items():
        header[name] = described(shape=[count], offsets=[at, at + 4 * count])
        at += 4 * count
    start = file_of(header)
    path.write_bytes(start)
    os.truncate(path, len(start) + at)
    return path


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """A folder with these files in it; text is where a link leads to."""
    for name, held in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(held, str):
            path.symlink_to(held)
        else:
            path.write_bytes(held)
    return folder


def index_of(weight_map: Any, **more: Any) -> bytes:
    """An index of shards."""
    return json.dumps({"metadata": {"total_size": 8.0}, "weight_map": weight_map, **more}).encode()


def refused(call: Callable[[], object], *words: str) -> WeightsError:
    """The error of a call that must be refused, with these words in it."""
    with pytest.raises(WeightsError) as caught:
        call()
    said = str(caught.value)
    assert [word for word in words if word not in said] == [], said
    assert "\x1b" not in said
    assert len(said) < 5000
    return caught.value


def plain_bytes(value: Any) -> bytes:
    """A tensor's or an array's elements, as they lie in memory."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return bytes(value.tobytes())


def facts(loaded: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All that can be said about tensors or arrays."""
    return {name: (str(value.dtype), tuple(value.shape), plain_bytes(value)) for name, value in loaded.items()}


def on_torch() -> devicekit.DeviceManager:
    """A manager that gives tensors of torch."""
    return devicekit.DeviceManager("cpu")


def on_numpy() -> devicekit.DeviceManager:
    """A manager that gives arrays of NumPy."""
    return devicekit.DeviceManager("numpy")


def child(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """A process of its own, which may end by a signal."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
