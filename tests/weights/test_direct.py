"""Reading past the system's page cache: the same weights, whatever lies where, and the ordinary way where it fails."""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devicekit as dk
from devicekit.weights.pages import LARGE, fresh
from devicekit.weights.reading import PIECE
from devicekit.weights.source import BLOCK, FileSource
from tests.weights.comparing import drawn, same, same_dicts, saved
from tests.weights.files import refused
from tests.weights.test_loading import header_by_hand, is_mapped, linux

TENSORS = {
    "small": drawn(torch.float32, (7, 3), 1),
    "bytes": drawn(torch.uint8, (13,), 2),
    "void": drawn(torch.float32, (0,), 3),
    "some": drawn(torch.bfloat16, (150_001,), 4),
    "large": drawn(torch.int16, (LARGE + 5,), 5),
    "pieces": drawn(torch.float32, (2 * PIECE // 4 + 77,), 6),
    "last": drawn(torch.int8, (1,), 7),
}


@pytest.fixture(scope="module")
def dm() -> dk.DeviceManager:
    """The CPU."""
    return dk.DeviceManager("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with all of TENSORS, none of which begins with a block."""
    return saved(tmp_path_factory.mktemp("direct"), TENSORS)


def direct(path: Path, kind: type[FileSource] = FileSource) -> FileSource:
    """The file, read past the cache; skips where the file system cannot."""
    source = kind(str(path))
    source.bypass_cache()
    room = memoryview(bytearray(2 * BLOCK))
    if not any(source.start(room, offset) for offset in (0, 8)):
        source.close()
        pytest.skip("this file system cannot be read past the cache")
    return source


def cached(path: Path) -> list[bool]:
    """Of each page of the file, whether it is in the page cache (mincore(2))."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as pages:
        found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        held = (ctypes.c_char * size).from_buffer(pages)
        asked = ctypes.CDLL(None, use_errno=True).mincore(held, ctypes.c_size_t(size), found)
        del held
    assert asked == 0
    return [bool(page & 1) for page in found]


# -- the same weights ----------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [None, 1, 3])
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_the_result_is_the_same(path: Path, dm: dk.DeviceManager, dtype: Any, workers: int | None) -> None:
    """Past the cache comes what comes through it, also when it is cast, by any number of threads."""
    usual = dm.load_safetensors(path, dtype=dtype, copy=True)
    assert same_dicts(dm.load_safetensors(path, dtype=dtype, direct=True, workers=workers), usual)


@linux
def test_it_is_owned(path: Path, dm: dk.DeviceManager) -> None:
    """Nothing is the file's pages, and each tensor has a storage of its own size."""
    loaded = dm.load_safetensors(path, direct=True)
    assert not any(is_mapped(tensor, path) for tensor in loaded.values() if tensor.numel())
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in loaded.values())


@pytest.mark.parametrize("align", [1, 2, 8])
def test_any_place_in_the_file_will_do(tmp_path: Path, dm: dk.DeviceManager, align: int) -> None:
    """Weights that begin anywhere, also across the boundaries of their own numbers, are the same."""
    length = LARGE // 4 + 3
    (tmp_path / "w").write_bytes(
        header_by_hand({"a": ("U8", [3], 3), "b": ("F32", [length], 4 * length), "c": ("U8", [1], 1)}, align)
        + drawn(torch.uint8, (4 * length + 4,)).numpy().tobytes()
    )
    assert same_dicts(dm.load_safetensors(tmp_path / "w", direct=True), dm.load_safetensors(tmp_path / "w", copy=True))


def test_a_module_is_filled_in_place(path: Path, dm: dk.DeviceManager) -> None:
    """Memory that lies anywhere is filled as well, and stays the same."""
    module = torch.nn.Module()
    for name, tensor in TENSORS.items():
        module.register_buffer(name, torch.zeros_like(tensor))
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    dm.load_safetensors(path, into=module, direct=True)
    assert same_dicts(module.state_dict(), TENSORS)
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before


def test_what_is_no_file_is_read_as_ever(path: Path, dm: dk.DeviceManager) -> None:
    """Bytes, streams and files that are open at some other place give the same."""
    raw = path.read_bytes()
    later = path.with_name("later")
    later.write_bytes(b"seven.." + raw)
    with later.open("rb") as file:
        file.seek(7)
        for source in (raw, io.BytesIO(raw), file):
            assert same_dicts(dm.load_safetensors(source, direct=True), TENSORS)
        assert file.tell() == 7


def test_arrays_of_numpy(path: Path) -> None:
    """The host without torch reads past the cache too."""
    numpy = dk.DeviceManager("numpy")
    loaded, usual = (numpy.load_safetensors(path, keys=["large", "some"], **way) for way in ({"direct": True}, {}))
    assert all(np.array_equal(loaded[name].view(np.uint16), usual[name].view(np.uint16)) for name in usual)


@settings(deadline=None)
@given(begin=st.integers(0, 3 * BLOCK), length=st.integers(0, 3 * BLOCK), skew=st.integers(0, BLOCK))
def test_any_stretch_into_any_memory(path: Path, begin: int, length: int, skew: int) -> None:
    """Every stretch of bytes arrives, and nothing is written beside it, wherever the memory lies."""
    source = direct(path)
    room = memoryview(fresh(6 * BLOCK))
    try:
        for at in (skew, source.start(room, begin)):
            room[:] = b"\xa5" * len(room)
            source.read_into(room[at : at + length], begin)
            with path.open("rb") as file:
                file.seek(begin)
                assert bytes(room) == b"\xa5" * at + file.read(length) + b"\xa5" * (len(room) - at - length)
    finally:
        source.close()


# -- the cache -----------------------------------------------------------------------------------
@linux
def test_the_cache_stays_as_it_is(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Of a file that is not in the cache no more than the header is afterwards; the ordinary way leaves all of it."""
    path = saved(tmp_path, {name: TENSORS[name] for name in ("large", "pieces")})
    direct(path).close()
    for way, most in (({"direct": True}, 0.1), ({"dtype": torch.float64, "direct": True}, 0.1), ({"copy": True}, 1)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if any(cached(path)):
            pytest.skip("this file system keeps files in the cache")
        dm.load_safetensors(path, **way)
        pages = cached(path)
        assert (most == 1 and all(pages)) or sum(pages) < most * len(pages)


# -- where it fails ------------------------------------------------------------------------------
class Refusing(FileSource):
    """A file system that takes reads past the cache, and then fails at the second."""

    asked = 0

    def _blocks(self, room: Any, position: int) -> int:
        self.asked += 1
        if self.asked > 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super()._blocks(room, position)


def test_a_refusal_is_no_failure(path: Path) -> None:
    """When the system refuses in the middle, the rest is read the ordinary way, and nobody asks again."""
    source = direct(path, Refusing)
    room = memoryview(fresh(9 * BLOCK))
    for begin in (100, 200):
        start = source.start(room, begin)
        source.read_into(room[start : start + 7 * BLOCK], begin)
        assert room[start : start + 7 * BLOCK] == path.read_bytes()[begin : begin + 7 * BLOCK]
    source.close()
    assert source.asked == 2


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """Bytes that are gone since the file was opened are said to be, whether a block or a part of one is missing."""
    for left in (BLOCK, BLOCK + 100, 5):
        path = tmp_path / "w"
        path.write_bytes(bytes(4 * BLOCK))
        source = direct(path)
        room = memoryview(fresh(5 * BLOCK))
        os.truncate(path, left)
        refused(lambda: source.read_into(room[: 4 * BLOCK], 0), f"it ended at byte {left}", f"had {4 * BLOCK} bytes")  # noqa: B023
        source.close()


# -- memory --------------------------------------------------------------------------------------
def script(code: str) -> str:
    """What a new process says."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@linux
@pytest.mark.parametrize("way", ["copy=True", "direct=True", "dtype=torch.float64"])
def test_a_child_writes_to_its_own(path: Path, way: str) -> None:
    """What a forked process writes into a loaded tensor, its parent does not see."""
    code = (
        "import os, devicekit as dk, torch\n"
        f"w = dk.DeviceManager('cpu').load_safetensors({str(path)!r}, {way})['pieces'].view(torch.uint8)\n"
        "before = w.clone(); child = os.fork(); child or (w[:9].fill_(7), os._exit(0)); os.waitpid(child, 0)\n"
        "print(torch.equal(w, before))"
    )
    assert script(code) == "True"


@linux
@pytest.mark.parametrize("way", ["copy=True", "direct=True"])
def test_no_room_is_out_of_memory(tmp_path: Path, way: str) -> None:
    """Where the system gives no memory, the error is torch's own, and is_out_of_memory knows it."""
    path = saved(tmp_path, {"w": torch.zeros(16 << 20, dtype=torch.float32)})
    code = (
        "import resource, devicekit as dk, torch\n"
        f"dm = dk.DeviceManager('cpu'); dm.load_safetensors({str(saved(tmp_path, TENSORS, 'other'))!r}, copy=True)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))\n"
        f"try: dm.load_safetensors({str(path)!r}, {way}, workers=1)\n"
        "except Exception as exc: print(dk.is_out_of_memory(exc))"
    )
    assert script(code) == "True"


@linux
def test_memory_is_given_back_tensor_by_tensor(path: Path, dm: dk.DeviceManager) -> None:
    """A tensor that is let go leaves the process at once, though its neighbours stay."""
    loaded = dm.load_safetensors(path, copy=True)
    used = int(Path("/proc/self/statm").read_text().split()[1])
    kept = loaded["large"]
    del loaded
    freed = used - int(Path("/proc/self/statm").read_text().split()[1])
    assert freed * mmap.PAGESIZE > 0.9 * TENSORS["pieces"].nbytes
    assert same(kept, TENSORS["large"])


def test_fresh_memory_has_the_size_that_was_asked_for() -> None:
    """Small, large, and not a number of whole pages."""
    for nbytes in (1, BLOCK, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 5):
        memory = fresh(nbytes)
        assert len(memory) == nbytes
        memory[nbytes - 1] = 7
        assert memory[nbytes - 1] == 7
        assert memory[0] in (0, 7)
