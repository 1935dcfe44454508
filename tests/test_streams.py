"""Streams and events: the runtime's own where it has them, stand-ins where all work is done in one queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit.host import use
from devicekit.streams import OneQueue, PlainEvent, PlainStream
from devicekit.testing import FakeHost, fake_streams, simulated_machine
from tests.third_party import Entry, HostWithPlugins

TWO: dict[str, dict[str, Any]] = {kind: {kind: 2} for kind in ("cuda", "rocm", "xpu", "npu")}
"""Machines whose runtime has streams."""
PLAIN: dict[str, dict[str, Any]] = {"mps": {"mps": True}, "cpu": {}, "numpy": {"machine": "no-torch"}}
EVERY = {**TWO, **PLAIN}


@pytest.fixture(params=EVERY)
def dm(request: pytest.FixtureRequest) -> Iterator[dk.DeviceManager]:
    """A manager for the current device, on each kind of machine."""
    with simulated_machine(**EVERY[request.param]):
        yield dk.DeviceManager.current()


def runtime(host: FakeHost) -> Any:
    """torch.cuda, torch.xpu or torch.npu of a simulated machine."""
    kind = host.simulated.accelerator
    return getattr(host.torch(), "cuda" if kind == "rocm" else str(kind))


class Device:
    """Two devices with one queue each, which do their work when they are waited for."""

    def __init__(self) -> None:
        self.work = {0: 0.0, 1: 0.0}
        self.current = 0
        self.streams = OneQueue(self.synchronize, lambda: self.current)

    def synchronize(self, index: int) -> None:
        time.sleep(self.work[index])
        self.work[index] = 0.0


# -- every machine -----------------------------------------------------------------------------------
def test_code_with_two_streams_runs_everywhere(dm: dk.DeviceManager) -> None:
    """A side stream waits for the main one, works, and the main one waits for it; all is over afterwards."""
    side, main = dm.create_stream(), dm.current_stream()
    assert main == dm.default_stream() != side
    side.wait_stream(main)
    with dm.stream(side):
        assert dm.current_stream() == side
        marked = side.record_event()
    assert dm.current_stream() == main
    main.wait_event(marked)
    main.wait_stream(side)
    side.synchronize()
    assert (side.query(), marked.query(), main.query()) == (True, True, True)


def test_an_event_measures(dm: dk.DeviceManager) -> None:
    """Milliseconds from the first to the second, whichever of their streams they were recorded in."""
    start, end = dm.create_event(enable_timing=True), dm.create_event(True, False)
    start.record()
    time.sleep(0.02)
    end.record(dm.current_stream())
    end.wait(dm.create_stream(-1))
    end.synchronize()
    assert 20 <= start.elapsed_time(end) < 10_000
    assert end.elapsed_time(start) == -start.elapsed_time(end)


def test_an_event_without_a_time_says_so(dm: dk.DeviceManager) -> None:
    """Not recorded, or made without timing, on either side: torch's error and words."""
    timed, unrecorded, untimed = dm.create_event(True), dm.create_event(True), dm.create_event()
    timed.record()
    untimed.record()
    for start, end in ((timed, unrecorded), (unrecorded, timed)):
        with pytest.raises(ValueError, match="Both events must be recorded"):
            start.elapsed_time(end)
    for start, end in ((timed, untimed), (untimed, timed)):
        with pytest.raises(ValueError, match="created with argument 'enable_timing=True'"):
            start.elapsed_time(end)


def test_a_stream_that_was_set_stays(dm: dk.DeviceManager) -> None:
    """Until another one is set; None changes nothing, neither for good nor for a while; other threads keep theirs."""
    main, chosen = dm.default_stream(), dm.create_stream()
    dm.set_stream(chosen)
    dm.set_stream(None)
    with dm.stream(None):
        assert dm.current_stream() == chosen
    seen: list[Any] = []
    other = threading.Thread(target=lambda: seen.append(dm.current_stream()))
    other.start()
    other.join()
    assert (dm.default_stream(), seen) == (main, [main])
    dm.set_stream(main)
    assert dm.current_stream() == main


def test_after_an_error_the_former_stream_is_current(dm: dk.DeviceManager) -> None:
    """What is raised inside comes out, and the stream does not stay."""
    main, stream = dm.current_stream(), dm.create_stream()
    with pytest.raises(ZeroDivisionError), dm.stream(stream):
        raise ZeroDivisionError
    assert dm.current_stream() == main


# -- runtimes that have them -------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TWO)
def test_they_are_the_runtimes_own(kind: str) -> None:
    """Of the kind that its own functions make, and equal to what they tell."""
    with simulated_machine(**TWO[kind]) as host:
        dm = dk.DeviceManager.current()
        assert isinstance(dm.create_stream(), fake_streams.Stream)
        assert isinstance(dm.create_event(blocking=True), fake_streams.Event)
        stream = runtime(host).Stream()
        with runtime(host).stream(stream):
            assert dm.current_stream() is stream
        dm.set_stream(stream)
        assert runtime(host).current_stream() is stream


@pytest.mark.parametrize("kind", TWO)
def test_a_managers_streams_are_its_devices(kind: str) -> None:
    """Whichever device is current: those of a numbered manager are its own, those of the other follow."""
    with simulated_machine(**TWO[kind]):
        here, second = dk.DeviceManager.current(), dk.DeviceManager(f"{kind}:1")
        made = ("create_stream", "current_stream", "default_stream")
        assert [getattr(second, name)().device_index for name in made] == [1, 1, 1]
        assert [getattr(here, name)().device_index for name in made] == [0, 0, 0]
        here.set_device(1)
        assert [getattr(here, name)().device_index for name in made] == [1, 1, 1]
        first = dk.DeviceManager(f"{kind}:0")
        assert [getattr(first, name)().device_index for name in made] == [0, 0, 0]


@pytest.mark.parametrize("kind", TWO)
def test_a_stream_can_be_another_devices(kind: str) -> None:
    """By number, word, or ``torch.device``; a negative number is the current one, as in torch."""
    with simulated_machine(**TWO[kind]) as host:
        dm = dk.DeviceManager.current()
        for device in (1, "1", f"{kind}:1", runtime(host)._torch.device(runtime(host)._name, 1)):
            assert dm.create_stream(device=device).device_index == 1
        dm.set_device(1)
        assert dm.create_stream(-1, device=-1).device_index == 1


@pytest.mark.parametrize("kind", TWO)
def test_a_stream_needs_a_device_of_this_kind(kind: str) -> None:
    """The CPU is refused in words, and so is a number that does not exist."""
    with simulated_machine(**TWO[kind]):
        dm = dk.DeviceManager.current()
        with pytest.raises(dk.UnknownDeviceError, match="'cpu' cannot be given a stream") as caught:
            dm.create_stream(device="cpu")
        assert f"only {kind} devices can be" in str(caught.value)
        with pytest.raises(dk.DeviceUnavailableError, match="7"):
            dm.create_stream(device=7)


def test_the_default_stream_of_xpu_is_that_of_a_new_thread() -> None:
    """torch.xpu does not tell it, so it is found also where this thread has chosen another one, on the second GPU."""
    with simulated_machine(xpu=2) as host:
        dm = dk.DeviceManager.current()
        assert not hasattr(runtime(host), "default_stream")
        dm.set_device(1)
        main = dm.current_stream()
        with dm.stream(dm.create_stream()):
            assert dm.default_stream() == main != dm.current_stream()
        assert main.device_index == 1


# -- stand-ins ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", PLAIN)
def test_where_there_is_one_queue_they_are_stand_ins(kind: str) -> None:
    """Also of numbers, which are all the one device; every manager of a process tells of the same current stream."""
    with simulated_machine(**PLAIN[kind]):
        dm, other = dk.DeviceManager.current(), dk.DeviceManager()
        stream = dm.create_stream(device=3)
        assert (type(stream), type(dm.create_event())) == (PlainStream, PlainEvent)
        with dm.stream(stream):
            assert other.current_stream() is stream
        assert other.current_stream() is dm.default_stream()


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("what", ["stream", "set_stream"])
def test_what_is_no_stream_is_refused(kind: str, what: str) -> None:
    """A number, a stream of torch's own, and another device's stand-in are errors that say what would do."""
    strange = Device().streams.Stream()
    with simulated_machine(**PLAIN[kind]):
        dm = dk.DeviceManager.current()
        for wrong in (3, torch.cpu.Stream(), strange):
            with pytest.raises(dk.DeviceKitError, match=r"no stream of this device(?s:.*)create_stream"):
                getattr(dm, what)(wrong)


def test_the_cpu_of_this_machine() -> None:
    """Code for CUDA's streams gives the numbers that it gives without them."""
    dm = dk.DeviceManager("cpu")
    x, stream = torch.arange(4.0), dm.create_stream()
    with dm.stream(stream):
        y = x * 2
    dm.current_stream().wait_stream(stream)
    assert torch.equal(y, torch.tensor([0.0, 2, 4, 6]))


def test_a_stream_is_a_context_as_in_torch() -> None:
    """``with stream:`` makes it current; it can be entered again, also inside of itself; what was set inside ends."""
    dm = dk.DeviceManager("cpu")
    main, one, two = dm.default_stream(), dm.create_stream(), dm.create_stream()
    kept = dm.stream(one)
    for _ in range(2):
        with kept, two as inner, kept:
            assert inner is two
            assert dm.current_stream() is one
            dm.set_stream(two)
            assert dm.current_stream() is two
        assert dm.current_stream() is main


def test_a_context_that_is_kept_can_be_used_by_threads() -> None:
    """Two threads that enter and leave the same one in any order each have their own streams back."""
    dm = dk.DeviceManager("cpu")
    kept, outer = dm.stream(dm.create_stream()), dm.create_stream()
    entered, may_leave = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        with dm.stream(outer):
            with kept:
                entered.set()
                may_leave.wait(10)
            seen.append(dm.current_stream())

    other = threading.Thread(target=work)
    with kept:
        other.start()
        entered.wait(10)
    may_leave.set()
    other.join()
    assert (seen, dm.current_stream()) == ([outer], dm.default_stream())


def test_waiting_is_waiting_for_the_device() -> None:
    """Streams and events have the work done that was given before; an event that was not recorded waits for nothing."""
    device = Device()
    stream, event = device.streams.Stream(1), device.streams.Event()
    for wait in (stream.synchronize, stream.query, stream.record_event().synchronize, stream.record_event().query):
        device.work[1] = 0.001
        wait()
        assert device.work[1] == 0.0
    device.work[1] = 0.001
    event.query()
    event.record()
    event.synchronize()
    event.wait(stream)
    assert device.work[1] > 0  # the event is in the queue of device 0, which is current


def test_the_time_is_the_devices() -> None:
    """Work before the first mark does not count, work before the second does; only timed events wait to be recorded."""
    device = Device()
    start, end, untimed = (device.streams.Event(enable_timing=timed) for timed in (True, True, False))
    device.work[0] = 0.3
    untimed.record()
    assert device.work[0] == 0.3
    began = time.perf_counter()
    start.record()
    device.work[0] = 0.05
    device.streams.current_stream().record_event(end)
    in_all = (time.perf_counter() - began) * 1000
    assert 50 <= start.elapsed_time(end) <= in_all - 300


def test_two_devices_have_a_queue_each() -> None:
    """A stream of the second is not current on the first, and no device named is the current one."""
    device = Device()
    streams = device.streams
    chosen = streams.Stream(1)
    streams.set_stream(chosen)
    assert (streams.current_stream(1), streams.current_stream()) == (chosen, streams.default_stream(0))
    device.current = 1
    assert streams.current_stream() is chosen
    assert streams.default_stream() is streams.default_stream(1) is not chosen


def test_a_third_partys_device_needs_no_streams() -> None:
    """A backend that says nothing about streams has the stand-ins."""
    with use(HostWithPlugins(Entry("acme", "tests.third_party:Acme"))):
        dm = dk.DeviceManager("acme:1")
        assert dm.backend == "acme"
        assert (type(dm.create_stream()), dm.create_stream().index) == (PlainStream, 1)
