"""Bytes on their way to a device arrive whole, in bounded memory, whatever a runtime puts off and whatever it lacks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from devicekit.backends._cudalike import CudaLike
from devicekit.host import current
from devicekit.staging import ALONE, Staging, StreamStaging
from devicekit.values import Availability
from devicekit.weights.loading import Loader, load
from devicekit.weights.reading import PIECE
from tests.weights.late_runtime import LateRuntime

THERE = torch.device("cuda", 1)
NBYTES = 256
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
F8, I64, U8 = torch.float8_e4m3fn, torch.int64, torch.uint8

Part = tuple[int, torch.dtype, torch.dtype]
"""Elements, their dtype in the file, and on the device."""


def made(runtime: LateRuntime, kind: type[StreamStaging] = StreamStaging, nbytes: int = NBYTES) -> StreamStaging:
    """A staging for the second device, made while the first one is current."""
    return kind(runtime.torch, nbytes, runtime, THERE, runtime.allocate)


def send(staging: Staging, pieces: list[list[Part]], targets: list[Any]) -> list[Any]:
    """Send numbers through a staging as loading does; what the targets must hold then."""
    expected = []
    waiting = iter(targets)
    for number, parts in enumerate(pieces):
        raw, at = staging.buffer(), 0
        for count, dtype, wanted in parts:
            values = ((torch.arange(count) * 3 + number * 5 + at) % 16).to(dtype)
            staged = raw[at : at + values.nbytes].view(dtype)
            staged.copy_(values)
            staging.send(next(waiting), staged)
            expected.append(values.to(wanted))
            at += -(-values.nbytes // 8) * 8
        staging.sent()
    staging.finish()
    return expected


def arrives(
    runtime: LateRuntime, pieces: list[list[Part]], kind: type[StreamStaging] = StreamStaging, nbytes: int = NBYTES
) -> bool:
    """Everything is there when the staging has finished, and still there when the device has nothing left to do."""
    targets = [runtime.allocate(count, wanted, THERE) for parts in pieces for count, _, wanted in parts]
    expected = send(made(runtime, kind, nbytes), pieces, targets)
    found = [target.clone() for target in targets]
    runtime.settle()
    return all(
        torch.equal(held.double(), right.double())
        for now in (found, targets)
        for held, right in zip(now, expected, strict=True)
    )


@st.composite
def plans(draw: st.DrawFn) -> list[list[Part]]:
    """Pieces of one or several parts, as full as they like, that keep their dtype or are cast."""
    kinds = [(F32, F32), (F32, BF16), (BF16, F16), (F16, F32), (I64, I64), (U8, U8), (F8, BF16), (F32, F64), (F64, F32)]
    pieces = []
    for _ in range(draw(st.integers(0, 7))):
        parts: list[Part] = []
        left = NBYTES // 8
        for _ in range(draw(st.integers(1, 3))):
            dtype, wanted = draw(st.sampled_from(kinds))
            count = draw(st.integers(0, left * 8 // dtype.itemsize))
            left -= -(-count * dtype.itemsize // 8)
            parts.append((count, dtype, wanted))
        pieces.append(parts)
    return pieces


SAME = [[(64, F32, F32)]] * 5
CAST = [[(64, F32, BF16)], [(128, BF16, F32)], [(30, F16, F32), (30, F16, F32)], [(64, F32, F16)]]


# -- a runtime that is late --------------------------------------------------------------------------
@given(pieces=plans(), seed=st.none() | st.integers(0, 2**32))
def test_everything_arrives_however_late_the_runtime_is(pieces: list[list[Part]], seed: int | None) -> None:
    """Whatever is sent is on the device in its dtype when `finish` returns, and nothing is queued any more."""
    assert arrives(LateRuntime(seed), pieces)


@given(
    pieces=plans(), seed=st.none() | st.integers(0, 2**32), pinned=st.integers(0, 2), room=st.integers(0, 1),
    bfloat16=st.booleans(),
)  # fmt: skip
def test_everything_arrives_whatever_the_runtime_lacks(
    pieces: list[list[Part]], seed: int | None, pinned: int, room: int, bfloat16: bool
) -> None:
    """No pinned memory, a single pinned buffer, no room on the device for a cast, and no bfloat16 cost only time."""
    results = sum(len(parts) for parts in pieces)
    runtime = LateRuntime(seed, pinned=pinned, room=results + room, bfloat16=bfloat16)
    assert arrives(runtime, pieces)


class Unmarked(StreamStaging):
    """Writes into a buffer again before its copies have arrived, for it never says where they end."""

    def sent(self) -> None:
        pass


class OneBuffer(StreamStaging):
    """Writes into its only buffer again and again."""

    def buffer(self) -> Any:
        return self._slots[-1].memory if self._slots else super().buffer()


class Unfinished(StreamStaging):
    """Returns before everything has arrived."""

    def finish(self) -> None:
        pass


class Impatient(StreamStaging):
    """Writes into memory in which the stream that it was made in still works."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stream = self._runtime.Stream(self._device)


class ImpatientCast(StreamStaging):
    """The same, with the memory that it casts from."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._uncast = self._allocate(self.nbytes, U8, self._device)


@pytest.mark.parametrize(
    ("broken", "pieces"),
    [(Unmarked, SAME), (OneBuffer, SAME), (Unfinished, SAME), (Unfinished, CAST), (Impatient, SAME),
     (ImpatientCast, CAST)],
)  # fmt: skip
def test_a_staging_that_does_not_wait_is_found_out(broken: type[StreamStaging], pieces: list[list[Part]]) -> None:
    """Each wait that is left out gives wrong numbers here, so the tests above hold each of them."""
    moods = [None, *range(60)]
    assert all(arrives(LateRuntime(seed), pieces) for seed in moods)
    assert not all(arrives(LateRuntime(seed), pieces, broken) for seed in moods)


def test_a_copy_out_of_ordinary_memory_is_not_left_for_later() -> None:
    """Without pinned memory nothing is queued when `send` returns, for the buffer is written to again at once."""
    runtime = LateRuntime(pinned=0)
    staging = made(runtime)
    target = runtime.allocate(4, F32, THERE)
    raw = staging.buffer()
    for value in (1.0, 2.0):
        raw[:16].view(F32).fill_(value)
        staging.send(target, raw[:16].view(F32))
        assert target.tolist() == [value] * 4
    assert staging.buffer() is raw


# -- which device, which stream ------------------------------------------------------------------------
@pytest.mark.parametrize("pieces", [SAME, CAST, [[(8, F8, F16)]]])
@pytest.mark.parametrize("pinned", [0, 1, 2])
def test_no_other_device_gets_a_context(pieces: list[list[Part]], pinned: int) -> None:
    """In a thread whose current device is another one, which is every new thread, that one is left alone."""
    runtime = LateRuntime(pinned=pinned)
    staging = made(runtime)
    targets = [runtime.allocate(count, wanted, THERE) for parts in pieces for count, _, wanted in parts]
    elsewhere = threading.Thread(target=send, args=(staging, pieces, targets))
    elsewhere.start()
    elsewhere.join()
    assert runtime.contexts == {1}


def test_the_room_for_a_cast_is_made_once_and_not_in_the_side_stream() -> None:
    """What is freed there could be used by nobody else: it is made in the thread's stream, and given back."""
    runtime = LateRuntime()
    staging = made(runtime)
    targets = [runtime.allocate(count, wanted, THERE) for parts in CAST for count, _, wanted in parts]
    runtime.made_in.clear()
    send(staging, CAST, targets)
    assert runtime.made_in == [runtime.current_stream(THERE)]
    assert staging._uncast is None


# -- who casts -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "wanted", "bfloat16", "on_device"),
    [
        (F32, BF16, True, True),
        (BF16, F16, True, True),
        (F16, F32, False, True),
        (BF16, F16, False, False),  # Ascend's 910A, 310P
        (F32, BF16, False, False),
        (F64, F32, True, False),  # Ascend's, some of Intel's
        (F32, F64, True, False),
        (F8, BF16, True, False),
        (F32, F8, True, False),
    ],
)
def test_the_device_casts_what_every_such_device_can(
    dtype: torch.dtype, wanted: torch.dtype, bfloat16: bool, on_device: bool
) -> None:
    """float32, float16 and bfloat16 among each other, the last where the runtime says that it has it; the host else."""
    runtime = LateRuntime(bfloat16=bfloat16)
    assert arrives(runtime, [[(NBYTES // dtype.itemsize, dtype, wanted)]])
    assert runtime.casts == ({(dtype, wanted)} if on_device else set())


# -- memory --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pieces", "pinned", "most"),
    [
        ([], 2, (0, 0)),
        (SAME[:1], 2, (1, 0)),
        (SAME, 2, (2, 0)),
        (CAST, 2, (2, 0)),
        ([[(32, F64, F32)]] * 3, 2, (2, 1)),
        ([[(NBYTES, F8, F32)]] * 3, 2, (2, 1)),
        (SAME, 1, (1, 0)),
        (SAME, 0, (0, 1)),
        (CAST, 0, (0, 1)),
        ([[(NBYTES, F8, F32)]] * 3, 0, (0, 2)),
    ],
)
def test_the_host_gives_a_few_buffers_and_no_more(pieces: list[list[Part]], pinned: int, most: tuple[int, int]) -> None:
    """Two pinned buffers or an ordinary one, when they are needed, and one more where the host has to cast."""
    runtime = LateRuntime(pinned=pinned)
    assert arrives(runtime, pieces)
    assert (runtime.torch.pinned / NBYTES, runtime.torch.ordinary / NBYTES) == most


@pytest.mark.parametrize("kind", [Staging, StreamStaging])
@pytest.mark.parametrize("count", [ALONE - 1, ALONE, 3 * ALONE + 5])
def test_a_cast_on_the_host_goes_by_steps(kind: type[Staging], count: int) -> None:
    """What torch would cast in threads of its own is cast in steps, and so is what is wider than a buffer; no element
    is lost where they do not divide it.
    """
    runtime = LateRuntime()
    staging = made(runtime, nbytes=count) if kind is StreamStaging else Staging(torch, count)
    target = runtime.allocate(count, F32, THERE)
    (expected,) = send(staging, [[(count, F8, F32)]], [target])
    assert torch.equal(target, expected)


class Counting(Staging):
    """Knows how many threads copy at once."""

    now = most = 0

    def _copy(self, target: Any, source: Any) -> None:
        super()._copy(Watched(target), source)


class Watched:
    """A target that takes a while."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def copy_(self, source: Any) -> None:
        Counting.now += 1
        Counting.most = max(Counting.most, Counting.now)
        threading.Event().wait(0.005)
        self.target.copy_(source)
        Counting.now -= 1


def test_plain_copies_are_made_one_at_a_time() -> None:
    """Two threads in torch.mps at once end the process, so two stagings never copy at the same time."""
    targets = [[torch.empty(64) for _ in range(4)] for _ in range(4)]
    crew = [
        threading.Thread(target=send, args=(Counting(torch, NBYTES), [[(64, F32, F32)]] * 4, mine)) for mine in targets
    ]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert Counting.most == 1
    assert all(torch.equal(a, b) for mine in targets[1:] for a, b in zip(mine, targets[0], strict=True))


# -- with everything before it -------------------------------------------------------------------------
class Late(CudaLike):
    """A backend whose runtime is late."""

    name = "late"

    def __init__(self, runtime: LateRuntime) -> None:
        super().__init__(current())
        self._late = runtime

    @property
    def torch(self) -> Any:
        return self._late.torch

    @property
    def runtime(self) -> Any:
        return self._late

    def probe(self) -> Availability:
        return Availability.yes(count=2)

    def preferred_dtype(self, index: int = 0) -> Any:
        return torch.float32

    def allocate(self, count: int, dtype: Any, device: Any) -> Any:
        return self._late.allocate(count, dtype, device)


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["as it is", "cast"])
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("pinned", [0, 1000])
def test_a_checkpoint_is_loaded_by_several_threads(
    tmp_path: Path, dtype: torch.dtype | None, seed: int | None, pinned: int
) -> None:
    """Large, small and cast tensors of one file are right when the last of four threads has finished."""
    torch.manual_seed(3)
    stored = {f"small.{i}": torch.randn(i, 7) for i in range(20)}
    stored |= {"large": torch.randn(3 << 20), "half": torch.randn(1 << 20, 2).bfloat16(), "count": torch.arange(9)}
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(stored, path)
    runtime = LateRuntime(seed, pinned=pinned)
    loader = Loader(Late(runtime), THERE, dtype=dtype, copy=False, workers=4, progress=None)
    loaded = load(loader, path)
    found = {name: tensor.clone() for name, tensor in loaded.items()}
    runtime.settle()
    for name, tensor in stored.items():
        right = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert torch.equal(found[name], right), name
        assert torch.equal(loaded[name], right), name
    assert runtime.contexts == {1}
    assert runtime.torch.pinned // PIECE <= (2 * 4 if pinned else 0)
    assert runtime.torch.ordinary // PIECE <= (0 if pinned else 4)
