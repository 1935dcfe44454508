"""Streams and events."""

from __future__ import annotations

import time
from typing import Any

import torch

from tests.redirect.battery.checking import Raises, check, group

group("streams")


@check("torch.cuda.Stream, with torch.cuda.stream(s)", [2.0, 2.0])
def _() -> Any:
    x, s = torch.ones(2, device="cuda"), torch.cuda.Stream()
    s.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(s):
        y = x * 2
    torch.cuda.current_stream().wait_stream(s)
    y.record_stream(torch.cuda.current_stream())
    return y.tolist()


@check("torch.cuda.current_stream() inside and outside", [True, False])
def _() -> Any:
    s = torch.cuda.Stream()
    with torch.cuda.stream(s):
        inside = torch.cuda.current_stream() == s
    return [inside, torch.cuda.current_stream() == s]


@check("torch.cuda.default_stream() is the current one")
def _() -> Any:
    return torch.cuda.default_stream() == torch.cuda.current_stream()


@check("torch.cuda.set_stream, and back", [True, True])
def _() -> Any:
    before, s = torch.cuda.current_stream(), torch.cuda.Stream()
    torch.cuda.set_stream(s)
    found = torch.cuda.current_stream() == s
    torch.cuda.set_stream(before)
    return [found, torch.cuda.current_stream() == before]


@check("torch.cuda.Stream(device='cuda:0', priority=-1)", -1)
def _() -> Any:
    return torch.cuda.Stream(device="cuda:0", priority=-1).priority


@check("stream.synchronize(), query(), record_event(), wait_event()", [None, True, None])
def _() -> Any:
    s = torch.cuda.Stream()
    event = s.record_event()
    found = [s.synchronize(), s.query()]
    return [*found, s.wait_event(event)]


@check("with torch.cuda.stream(None)", 2.0)
def _() -> Any:
    with torch.cuda.stream(None):
        return torch.ones(2, device="cuda").sum().item()


@check("stream.cuda_stream is a number, stream.device a device", [True, True])
def _() -> Any:
    s = torch.cuda.current_stream()
    return [isinstance(s.cuda_stream, int), isinstance(s.device, torch.device)]


@check("isinstance(s, torch.cuda.Stream), isinstance(e, torch.cuda.Event)", [True, True, False])
def _() -> Any:
    s, e = torch.cuda.Stream(), torch.cuda.Event()
    return [isinstance(s, torch.cuda.Stream), isinstance(e, torch.cuda.Event), isinstance(3, torch.cuda.Stream)]


@check("x.record_stream(s)", None)
def _() -> Any:
    return torch.ones(2, device="cuda").record_stream(torch.cuda.Stream())


@check("torch.cuda.Event timing")
def _() -> Any:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    time.sleep(0.02)
    torch.ones(2, device="cuda").add_(1)
    end.record()
    torch.cuda.synchronize()
    return 5 < start.elapsed_time(end) < 5000


@check("event.synchronize(), query(), wait()", [None, True, None])
def _() -> Any:
    event = torch.cuda.Event()
    event.record()
    return [event.synchronize(), event.query(), event.wait()]


@check("event.record(stream), event.wait(stream)", [None, None])
def _() -> Any:
    s, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
    return [event.record(s), event.wait(torch.cuda.current_stream())]


@check(
    "event.elapsed_time without timing",
    Raises((RuntimeError, ValueError), "enable_timing|recorded"),
    text_unverified=True,
)
def _() -> Any:
    one, other = torch.cuda.Event(), torch.cuda.Event()
    one.record()
    other.record()
    return one.elapsed_time(other)


@check(
    "event.elapsed_time that was not recorded",
    Raises((RuntimeError, ValueError), "Both events must be recorded before calculating elapsed time"),
)
def _() -> Any:
    one, other = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    return one.elapsed_time(other)


@check("a prefetcher with its own stream", [1.0, 2.0])
def _() -> Any:
    stream, got = torch.cuda.Stream(), []
    for value in (1.0, 2.0):
        with torch.cuda.stream(stream):
            batch = torch.tensor(value).cuda(non_blocking=True)
        torch.cuda.current_stream().wait_stream(stream)
        batch.record_stream(torch.cuda.current_stream())
        got.append(batch.item())
    return got


@check("torch.Stream('cuda'), torch.Event('cuda')", [None, None])
def _() -> Any:
    return [torch.Stream("cuda").synchronize(), torch.Event("cuda").record()]


@check("torch.profiler with ProfilerActivity.CUDA", True, warns="CUDA is not available|CUPTI|Profiler")
def _() -> Any:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        torch.ones(2, device="cuda").add_(1)
    return len(found.key_averages()) > 0
