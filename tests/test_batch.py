"""The largest batch that fits is found exactly, by running it, and nothing of a failed attempt stays."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import devicekit as dk
from devicekit.batch import search
from devicekit.testing import simulated_machine

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"
dm = dk.DeviceManager("cpu")


def _fits_up_to(largest: int, ran: list[int] | None = None) -> Callable[[int], None]:
    def step(size: int) -> None:
        if ran is not None:
            ran.append(size)
        if size > largest:
            raise torch.OutOfMemoryError(FULL)

    return step


LIMITS = [1, 2, 3, 5, 7, 8, 9, 16, 19, 20, 21, 31, 33, 64, 65, 100, 127, 128, 200, 255, 511, 1000, 1023]


@pytest.mark.parametrize("start", [1, 16, 64])
@pytest.mark.parametrize("largest", LIMITS)
def test_the_largest_that_fits_is_found(largest: int, start: int) -> None:
    """Not one less, not one more; it ran, and nothing ran twice."""
    ran: list[int] = []
    assert search(lambda size: ran.append(size) or size <= largest, start, 1024) == largest  # type: ignore[func-returns-value]
    assert largest in ran
    assert len(ran) == len(set(ran))
    assert len(ran) <= 2 * math.log2(1024) + 1


@given(largest=st.integers(0, 5000), start=st.integers(1, 5000), limit=st.integers(1, 5000))
def test_it_is_exact_for_any_limits(largest: int, start: int, limit: int) -> None:
    """The smaller of what fits and the limit, whatever the start, in about 2 log2(limit) attempts, none beyond it."""
    ran: list[int] = []
    found = search(lambda size: ran.append(size) or size <= largest, min(start, limit), limit)  # type: ignore[func-returns-value]
    assert found == min(largest, limit)
    assert len(ran) <= 2 * math.log2(limit) + 2
    assert max(ran) <= limit


@pytest.mark.parametrize(("largest", "start"), [(20, 64), (1, 1)])
def test_out_of_memory_decides(largest: int, start: int) -> None:
    """A size fits when its step does not run out of memory."""
    ran: list[int] = []
    assert dm.find_batch_size(_fits_up_to(largest, ran), start=start, limit=100) == largest
    assert largest in ran


def test_what_always_fits_gives_the_limit() -> None:
    """The limit is tried itself, and nothing beyond it."""
    ran: list[int] = []
    assert dm.find_batch_size(_fits_up_to(10**9, ran), limit=100) == 100
    assert max(ran) == 100


def test_without_a_limit_it_ends_at_a_million() -> None:
    """A step that ignores its size does not search for ever."""
    ran: list[int] = []
    assert dm.find_batch_size(ran.append) == 1 << 20
    assert len(ran) <= 42


def test_nothing_fits_is_an_error_with_the_reason() -> None:
    """The runtime's own words, what is free, and the error that it came from."""
    with pytest.raises(dk.BatchSizeError, match=r"Not even a batch of 1 fits on cpu.*\n.*Tried to allocate") as error:
        dm.find_batch_size(_fits_up_to(0), start=64)
    assert isinstance(error.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_pass_through_untouched() -> None:
    """The very same exception, at once."""
    ran: list[int] = []
    bug = ValueError("shapes differ")

    def step(size: int) -> None:
        ran.append(size)
        raise bug

    with pytest.raises(ValueError, match="shapes differ") as error:
        dm.find_batch_size(step)
    assert error.value is bug
    assert ran == [1]


def test_a_failed_attempt_s_tensors_are_gone_before_the_cache_is_emptied() -> None:
    """Also those that a frame of the traceback, a circle, or the cause of the error held."""
    left: list[Any] = []
    alive: list[int] = []

    class Watching(type(dm._backend)):  # type: ignore[misc]
        def empty_cache(self, index: int = 0) -> None:
            alive.append(sum(ref() is not None for ref in left))

    watching = dk.DeviceManager("cpu")
    watching._backend = Watching(dm._backend.host)

    def inner(size: int) -> None:
        held = torch.ones(10)
        circle: list[Any] = [torch.ones(10)]
        circle.append(circle)
        left.extend([weakref.ref(held), weakref.ref(circle[0])])
        raise torch.OutOfMemoryError(FULL)

    def step(size: int) -> None:
        if size > 5:
            try:
                inner(size)
            except torch.OutOfMemoryError as exc:
                raise RuntimeError("the trainer failed") from exc

    assert watching.find_batch_size(step, limit=64) == 5
    assert len(left) >= 2
    assert set(alive) == {0}


def test_a_decorated_function_gets_the_size() -> None:
    """The first call finds it and gives the result of a run with it; later calls do not search."""
    ran: list[int] = []

    @dm.find_batch_size(limit=64)
    def train(size: int, rate: float, *, name: str) -> tuple[int, float, str]:
        """Train."""
        _fits_up_to(20, ran)(size)
        return size, rate, name

    assert train(0.1, name="a") == (20, 0.1, "a")
    assert train.batch_size == 20  # type: ignore[attr-defined]
    searched = len(ran)
    assert train(0.2, name="b") == (20, 0.2, "b")
    assert len(ran) == searched + 1
    assert train.__doc__ == "Train."


def test_attempts_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """To a function each with its outcome, to a person as lines, to nobody nothing."""
    told: list[tuple[int, bool]] = []
    dm.find_batch_size(_fits_up_to(3), limit=4, progress=lambda size, fitted: told.append((size, fitted)))
    assert told == [(1, True), (2, True), (4, False), (3, True)]
    assert capsys.readouterr().err == ""
    dm.find_batch_size(_fits_up_to(1), limit=2, progress=True)
    assert capsys.readouterr().err == "batch size 1: fits\nbatch size 2: out of memory\n"


@pytest.mark.parametrize("wrong", [{"start": 0}, {"start": 1.5}, {"limit": 0}, {"limit": True},
                                   {"start": 9, "limit": 8}, {"headroom": 1}, {"headroom": -0.1},
                                   {"headroom": "10%"}])  # fmt: skip
def test_arguments_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything runs."""
    with pytest.raises(dk.DeviceKitError, match="try:"):
        dm.find_batch_size(lambda size: pytest.fail("ran"), **wrong)


@pytest.mark.parametrize(("headroom", "expected"), [(0.0, 15), (0.5, 7)])
def test_a_card_s_memory_decides_and_headroom_stays_free(headroom: float, expected: int) -> None:
    """On a card of 1 GiB with a model of 64 MiB, batches of 64 MiB each fit in what is left."""
    with simulated_machine(cuda=1, memory="1GiB"):
        there = dk.DeviceManager("cuda")
        model = there.to(torch.empty(64 << 20, dtype=torch.uint8))
        found = there.find_batch_size(
            lambda size: [there.to(torch.empty(64 << 20, dtype=torch.uint8)) for _ in range(size)],
            headroom=headroom,
            limit=32,
        )
        assert found == expected
        assert there.memory_stats().allocated == model.nbytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the process's limit for data does not count mappings")
def test_on_the_cpu_it_stops_before_the_container_s_limit() -> None:
    """An attempt that would go over is out of memory instead of killed, and the limit is as before afterwards."""
    code = (
        "import resource, torch, devicekit as dk\n"
        "from devicekit.testing import simulated_machine\n"
        "torch.ones(64, 64) @ torch.ones(64, 64)\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "with simulated_machine('cpu', container='1GiB'):\n"
        "    dm = dk.DeviceManager('cpu'); free = dm.memory_stats().available\n"
        "    block = lambda: torch.empty(32 << 20, dtype=torch.uint8)\n"
        "    found = dm.find_batch_size(lambda n: [block() for _ in range(n)], limit=4096)\n"
        "    assert 0 < found * (32 << 20) <= free, (found, free)\n"
        "    assert (found + 4) * (32 << 20) > free - 0.05 * 2**30, (found, free)\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
