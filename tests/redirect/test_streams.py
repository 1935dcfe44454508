"""Streams and events of torch.cuda under a redirect."""

from __future__ import annotations

import time
from typing import Any

import pytest

from devicekit.errors import DeviceKitError, DeviceUnavailableError
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")


def test_a_stream_is_current_inside() -> None:
    stream = torch.cuda.Stream()
    outside = torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() is stream
        with torch.cuda.stream(None):
            assert torch.cuda.current_stream() is stream
    assert torch.cuda.current_stream() is outside


def test_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), torch.cuda.stream(torch.cuda.Stream()):
        1 / 0  # noqa: B018
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_context_can_be_entered_again() -> None:
    stream = torch.cuda.Stream()
    context = torch.cuda.StreamContext(stream)
    for _ in range(2):
        with context, context:
            assert torch.cuda.current_stream() is stream
    assert torch.cuda.current_stream() is not stream


def test_set_stream() -> None:
    stream = torch.cuda.Stream(device="cuda:0", priority=-1)
    try:
        torch.cuda.set_stream(stream)
        assert torch.cuda.current_stream() is stream
        torch.cuda.set_stream(None)
        assert torch.cuda.current_stream() is stream
    finally:
        torch.cuda.set_stream(torch.cuda.default_stream())


def test_its_device_is_current_as_well() -> None:
    """On CUDA a stream brings its device along."""
    with Redirect(DecidedTarget(resolver().decide("cpu"), 2)):
        stream = torch.cuda.Stream(1)
        for context in (torch.cuda.stream(stream), stream):
            with context:
                assert torch.cuda.current_device() == 1
                assert torch.cuda.current_stream() is stream
            assert torch.cuda.current_device() == 0
        torch.cuda.set_stream(stream)
        assert torch.cuda.current_device() == 1


def test_the_usual_overlap() -> None:
    """A copy on a side stream, the main stream waits for it, and the memory is kept for both."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x = torch.ones(3).cuda(non_blocking=True)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.current_stream().wait_event(side.record_event())
    x.record_stream(torch.cuda.current_stream())
    side.synchronize()
    assert side.query()
    assert x.tolist() == [1, 1, 1]


def test_what_programs_read() -> None:
    stream = torch.cuda.Stream(0, priority=-1)
    assert isinstance(stream, torch.cuda.Stream)
    assert isinstance(torch.cuda.current_stream(), torch.cuda.Stream)
    assert not isinstance(1, torch.cuda.Stream)
    assert (stream.device, stream.device_index, stream.priority) == (torch.device("cpu"), 0, -1)
    assert torch.cuda.default_stream().cuda_stream == 0 != stream.cuda_stream
    assert "torch.cuda.Stream" in repr(stream)


def test_events_measure_milliseconds() -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.02)
    end.record(torch.cuda.current_stream())
    end.synchronize()
    torch.cuda.current_stream().wait_event(end)
    end.wait()
    assert end.query()
    assert 19 < start.elapsed_time(end) < 10_000
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(torch.cuda.Stream().record_event(), torch.cuda.Event)
    assert start.device == torch.device("cpu")


def test_an_event_without_timing_measures_nothing() -> None:
    start, end = torch.cuda.Event(), torch.cuda.Event(True, blocking=True, interprocess=False)
    start.record()
    end.record()
    with pytest.raises(ValueError, match="enable_timing=True"):
        start.elapsed_time(end)


def test_events_stay_in_the_process() -> None:
    with pytest.raises(DeviceUnavailableError, match="ipc_handle"):
        torch.cuda.Event(interprocess=True).ipc_handle()


def test_programs_build_on_them() -> None:
    class Named(torch.cuda.Stream):
        def __init__(self, name: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.name = name

    class Timer(torch.cuda.Event):
        pass

    stream = Named("copy", priority=-1)
    assert (stream.name, stream.priority) == ("copy", -1)
    assert isinstance(stream, torch.cuda.Stream)
    assert not isinstance(torch.cuda.Stream(), Named)
    with torch.cuda.stream(stream):
        timer = Timer(enable_timing=True)
        timer.record()
    assert timer.elapsed_time(timer) == 0


def test_the_facades_stream_is_another_one() -> None:
    other = resolver().decide("cpu").backend.streams().Stream()
    with pytest.raises(DeviceKitError, match="is no stream of this device"), torch.cuda.stream(other):
        pass


def test_what_was_kept_is_torchs_own_again() -> None:
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        kind = torch.cuda.Stream
    assert isinstance(kind(), torch.cuda.Stream)
