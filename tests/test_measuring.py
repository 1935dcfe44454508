"""Measured blocks: the device's work counts, the peak is the block's own, and an error in the block is the one told."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit.measuring import Measurement
from devicekit.testing import simulated_machine
from devicekit.values import MemoryStats

MIB = 1 << 20


class Lazy:
    """A device that does its work when it is waited for, and counts the bytes that its owner tells it of."""

    def __init__(self) -> None:
        self.waiting = 0.0
        self.allocated = self.highest = 0
        self.broken: Exception | None = None

    def synchronize(self, index: int) -> None:
        time.sleep(self.waiting)
        self.waiting = 0.0
        if self.broken is not None:
            raise self.broken

    def allocate(self, nbytes: int) -> None:
        self.allocated += nbytes
        self.highest = max(self.highest, self.allocated)

    def reset_peak_memory(self, index: int) -> None:
        self.highest = self.allocated

    def memory_stats(self, index: int) -> MemoryStats:
        return MemoryStats(peak=self.highest)


def measured(device: Any, name: str | None = None) -> Measurement:
    """On card 0."""
    return Measurement(device, 0, name)


def test_the_devices_work_is_the_blocks() -> None:
    """What was queued before does not count, what the block queued does, and there is no figure until it is over."""
    device = Lazy()
    device.waiting = 0.2
    with measured(device) as block:
        assert block.seconds is None
        device.waiting = 0.05
    assert block.seconds is not None
    assert 0.05 <= block.seconds < 0.2


def test_each_block_has_its_own_peak() -> None:
    """Blocks inside, before and after do not count, but an inner one's peak is also the outer one's."""
    device = Lazy()
    device.allocate(500)
    device.allocate(-450)
    with measured(device) as outer:
        device.allocate(30)
        device.allocate(-30)
        with measured(device) as inner:
            device.allocate(10)
        with measured(device) as second:
            device.allocate(100)
            device.allocate(-100)
    with measured(device) as after:
        pass
    assert [each.peak_memory for each in (outer, inner, second, after)] == [160, 60, 160, 60]


def test_other_devices_do_not_count() -> None:
    """A block on one card learns nothing of another's peak."""
    one, other = Lazy(), Lazy()
    with measured(one) as block, measured(other):
        other.allocate(1000)
    assert block.peak_memory == 0


def test_what_went_wrong_in_the_block_comes_out() -> None:
    """Its own error hides the device's; a device's error alone is the block's; the seconds are there in both cases."""
    device = Lazy()

    def breaks(raised: Exception | None) -> None:
        device.broken = RuntimeError("illegal memory access")
        if raised is not None:
            raise raised

    for raised, expected in ((KeyError("mine"), KeyError), (None, RuntimeError)):
        block = measured(device)
        with pytest.raises(expected), block:
            breaks(raised)
        device.broken = None
        assert block.seconds is not None
    with measured(device) as block:
        pass
    assert block.peak_memory == 0


def test_a_runtime_without_figures_is_timed_all_the_same() -> None:
    """No peak, or an error in its place, is None."""
    device = Lazy()
    device.memory_stats = lambda index: MemoryStats()  # type: ignore[method-assign]
    with measured(device) as without:
        pass
    device.memory_stats = device.reset_peak_memory = lambda index: 1 / 0  # type: ignore[method-assign,assign,return-value]
    with measured(device) as failing:
        pass
    assert without.peak_memory is failing.peak_memory is None
    assert failing.seconds is not None


def test_it_reads_as_a_line() -> None:
    """The name, the seconds, and the memory where there is any."""
    device = Lazy()
    block = measured(device, "step")
    assert str(block) == "step: not over"
    with block:
        device.allocate(3 * MIB)
    assert str(block).startswith("step: ")
    assert str(block).endswith(" s, 3 MiB at most")


@pytest.mark.parametrize("machine", [{"cuda": 2}, {"rocm": 1}, {"xpu": 1}, {"npu": 1}, {"mps": True}])
def test_every_backend_measures(machine: dict[str, Any]) -> None:
    """The facade gives seconds on all of them, and the bytes of a tensor where the runtime keeps a peak."""
    with simulated_machine(**machine):
        dm = dk.DeviceManager()
        dm.to(torch.ones(4))  # a runtime that has not started keeps no peak
        with dm.measure("load") as block:
            dm.to(torch.ones(MIB))
        assert block.seconds is not None
        assert block.peak_memory is None if dm.backend == "mps" else (block.peak_memory or 0) >= 4 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux starts the peak of the resident set anew")
def test_the_cpus_peak_is_the_blocks() -> None:
    """A large tensor of before is not in it, one of the block is."""
    dm = dk.DeviceManager("cpu")
    torch.ones(128 * MIB, dtype=torch.uint8)
    with dm.measure() as small:
        torch.ones(MIB, dtype=torch.uint8)
    with dm.measure() as large:
        torch.ones(64 * MIB, dtype=torch.uint8)
    assert small.peak_memory is not None
    assert large.peak_memory is not None
    assert 48 * MIB < large.peak_memory - small.peak_memory < 96 * MIB
