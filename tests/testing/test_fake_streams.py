"""Streams of the simulated runtimes: whose they are, what becomes current, and which card they give a context."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit.testing import simulated_machine


@pytest.fixture(params=["cuda", "rocm", "xpu", "npu"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The runtime of a machine with two cards."""
    with simulated_machine(**{request.param: 2}) as host:
        place = dk.DeviceManager(request.param).device.type
        yield getattr(host.torch(), place)


def there(runtime: Any, index: int = 1) -> Any:
    """A card's name."""
    return runtime._torch.device(runtime._name, index)


def test_a_stream_is_its_cards(runtime: Any) -> None:
    """It gives its own card a context and no other, says where it is, and is itself alone."""
    stream = runtime.Stream(there(runtime))
    assert (stream.device, stream.device_index) == (there(runtime), 1)
    assert runtime._contexts == {1}
    assert runtime.current_device() == 0
    assert stream == stream  # it has an __eq__ of its own
    assert stream not in (runtime.Stream(there(runtime)), runtime.current_stream(there(runtime)), None)
    assert runtime.Stream().device == there(runtime, 0)


def test_the_default_stream_is_one(runtime: Any) -> None:
    """Every question gives another object for it, which is the same stream, and asking makes no context."""
    first, second = (runtime.current_stream(there(runtime)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != runtime.current_stream(there(runtime, 0))
    assert runtime._contexts == set()


def test_a_stream_is_current_inside(runtime: Any) -> None:
    """With its card, in this thread, and afterwards neither."""
    stream = runtime.Stream(there(runtime))
    seen: list[Any] = []
    with runtime.stream(stream):
        assert runtime.current_stream() is stream
        assert runtime.current_device() == 1
        thread = threading.Thread(target=lambda: seen.append(runtime.current_stream(there(runtime))))
        thread.start()
        thread.join()
        with runtime.stream(None):
            assert runtime.current_stream() is stream
    assert seen != [stream]
    assert runtime.current_stream(there(runtime)) != stream
    assert runtime.current_device() == 0


def test_the_end_of_a_stream_gives_the_card_before_a_context(runtime: Any) -> None:
    """As torch's does, where the card is not made current around it."""
    stream = runtime.Stream(there(runtime))
    with runtime.device(1), runtime.stream(stream):
        pass
    assert runtime._contexts == {1}
    with runtime.stream(stream):
        pass
    assert runtime._contexts == {0, 1}


def test_a_stream_that_is_set_stays(runtime: Any) -> None:
    """Until another one is; None changes nothing."""
    stream = runtime.Stream(there(runtime))
    runtime.set_stream(stream)
    runtime.set_stream(None)
    assert runtime.current_stream() is stream
    assert runtime.current_device() == 1


def test_all_is_done_when_it_is_asked(runtime: Any) -> None:
    """Nothing is asynchronous, so every wait is over at once."""
    stream, other = runtime.Stream(), runtime.Stream()
    other.wait_stream(stream)
    event = runtime.Event()
    assert stream.record_event(event) is event
    other.wait_event(stream.record_event())
    event.wait(other)
    event.synchronize()
    stream.synchronize()
    assert stream.query()
    assert event.query()


def test_pinned_memory_is_ordinary_memory(runtime: Any) -> None:
    """A staging takes it for pinned, and this process's own accelerator is not started for it."""
    dm = dk.DeviceManager("gpu")
    staging = dm._backend.staging(dm.device, 32)
    raw = staging.buffer()
    assert (raw.nbytes, raw.device.type, raw.is_pinned()) == (32, "cpu", False)
    assert staging.torch.float32 is torch.float32
    staging.finish()
