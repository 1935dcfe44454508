"""What a call of the facade costs, beside the nearest call of a peer: model code asks in its inner loops.

All in one process. Ours and the peer's take turns, and which of them goes first changes every round, so that a slow
minute of the machine hits both; medians are shown, and the ratio is the figure that travels between machines. The clock
is the process's CPU time, which other jobs on the machine do not advance: no call here waits for anything.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
import time
import timeit
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _table import Sheet, machine_line, median, save, show, verdict

import devicekit as dk

SAMPLE_SECONDS = 0.02
"""How long one sample takes, roughly: long beside the clock's grain, short beside a scheduler's whim."""


@dataclass
class Pair:
    """Our statement and, where there is one, a peer's that answers the same question."""

    ours: str
    peer: str = ""
    target: float | None = None
    """Nanoseconds for ours."""
    pins: dict[str, str] = field(default_factory=dict)
    """Set while both are timed."""
    ns: list[float] = field(default_factory=list)
    peer_ns: list[float] = field(default_factory=list)
    problem: str = ""


PIN = {"DEVICEKIT_DEVICE": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
ASKING = [
    Pair("dm.device", "state.device"),
    Pair("resolve_device('cpu')", "torch.device('cpu')", 200),
    Pair("resolve_device()", "PartialState().device"),
    Pair("resolve_device()", "PartialState().device", pins=PIN),
    Pair("resolve_device()", "diffusers_get_device()"),
    Pair("resolve_device()", "get_accelerator().current_device_name()"),
    Pair("resolve_device(here)", "torch.device(here)"),
    Pair("DeviceManager('cpu')", "PartialState()"),
    Pair("dm.dtype"),
    Pair("available_backends()"),
    Pair("explain()"),
]
ACTING = [
    Pair("dm.memory_stats()", "psutil.virtual_memory()", 60_000),
    Pair("dm.memory_stats()", "get_max_memory()", 60_000),
    Pair("dm.to(tensor)", "tensor.to(here)"),
    Pair("dm.to(tensor)", "send_to_device(tensor, here)"),
    Pair("dm.to(batch)", "send_to_device(batch, here)"),
    Pair("dm.create_generator(0)", "torch.Generator('cpu').manual_seed(0)"),
    Pair("dm.randn((4, 64, 64), 0)", "randn_tensor((4, 64, 64), torch.Generator('cpu').manual_seed(0), here)"),
    Pair("dm.synchronize()"),
    Pair("dm.empty_cache()", "clear_device_cache()"),
    Pair("dm.empty_cache()", "clear_device_cache(garbage_collection=True)"),
]
SIMULATED = [
    Pair("resolve_device('cuda:0')", "torch.device('cuda:0')", 200),
    Pair("resolve_device('cuda')", "torch.device('cuda')"),
    Pair("resolve_device()", "PartialState().device"),
]
PEERS = {
    "PartialState": "accelerate",
    "send_to_device": "accelerate.utils",
    "get_max_memory": "accelerate.utils",
    "clear_device_cache": "accelerate.utils.memory",
    "diffusers_get_device": "diffusers.utils.torch_utils:get_device",
    "randn_tensor": "diffusers.utils.torch_utils",
    "get_accelerator": "deepspeed.accelerator",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples for each statement (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # DeepSpeed talks
    names = _names()
    groups = {"Asking, ns a call": ASKING, "Acting on the CPU, ns a call": ACTING}
    for pairs in groups.values():
        _measure(pairs, names, options.rounds)
    with _simulated_cuda() as there:
        if there:
            groups["Asking on a simulated machine with two CUDA devices, ns a call"] = SIMULATED
            _measure(SIMULATED, names, options.rounds)
    print(machine_line(), file=sys.stderr)
    show([_sheet(title, pairs) for title, pairs in groups.items()], markdown=options.markdown)
    save(options.json, calls={title: [vars(pair) for pair in pairs] for title, pairs in groups.items()})
    return 0


def _names() -> dict[str, Any]:
    """What the statements speak of; a peer that is not installed is left out."""
    import psutil
    import torch

    names: dict[str, Any] = {"torch": torch, "psutil": psutil, "here": torch.device("cpu")}
    names.update({name: getattr(dk, name) for name in dk.__all__})
    names["dm"] = dk.DeviceManager("cpu")
    names["tensor"] = torch.zeros(16)
    names["batch"] = {"input_ids": torch.zeros(8, 16), "mask": torch.zeros(8, 16), "labels": [torch.zeros(8), 3]}
    for name, home in PEERS.items():
        module, _, attribute = home.partition(":")
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(sys.stderr):
            names[name] = getattr(importlib.import_module(module), attribute or name)
    if "PartialState" in names:
        names["state"] = names["PartialState"]()
    return names


@contextlib.contextmanager
def _simulated_cuda() -> Iterator[bool]:
    """A machine with two CUDA devices, where devicekit can make one up."""
    with contextlib.ExitStack() as stack:
        simulated = None
        with contextlib.suppress(ImportError, AttributeError):
            simulated = importlib.import_module("devicekit.testing").simulated_machine
        if simulated is not None:
            stack.enter_context(simulated(cuda=2))
        yield simulated is not None


def _measure(pairs: list[Pair], names: dict[str, Any], rounds: int) -> None:
    plans = []
    for pair in pairs:
        with _pinned(pair.pins):
            plans.append((pair, _timer(pair, pair.ours, names), _timer(pair, pair.peer, names)))
    for number in range(rounds):
        for pair, ours, peer in plans:
            both = [(ours, pair.ns), (peer, pair.peer_ns)]
            with _pinned(pair.pins):
                for plan, samples in both if number % 2 else reversed(both):
                    if plan is not None:
                        timer, count = plan
                        samples.append(timer.timeit(count) / count * 1e9)


def _timer(pair: Pair, statement: str, names: dict[str, Any]) -> tuple[timeit.Timer, int] | None:
    """The statement with a count that fills one sample; None where it cannot run."""
    if not statement:
        return None
    timer = timeit.Timer(statement, timer=time.process_time, globals=names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            timer.timeit(1)
            single = min(timer.repeat(3, 1))
            if single < SAMPLE_SECONDS / 100:
                single = min(timer.repeat(3, 100)) / 100
    except Exception as exc:
        pair.problem = f"{statement}: {exc if isinstance(exc, NameError) else type(exc).__name__}"
        return None
    return timer, max(1, round(SAMPLE_SECONDS / single))


@contextlib.contextmanager
def _pinned(pins: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in pins}
    os.environ.update(pins)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _cells(samples: list[float], problem: str) -> tuple[str, str]:
    return (f"{median(samples):,.0f}", f"{min(samples):,.0f}") if samples else (f"skipped: {problem}", "")


def _sheet(title: str, pairs: list[Pair]) -> Sheet:
    columns = ("ours", "median", "min", "peer", "median", "min", "ours / peer", "target", "met")
    sheet = Sheet(title, columns)
    for pair in pairs:
        ours, peer = median(pair.ns), median(pair.peer_ns)
        pinned = " (pinned)" if pair.pins else ""
        sheet.rows.append(
            (
                pair.ours + pinned,
                *_cells(pair.ns, pair.problem),
                pair.peer or "none",
                *(_cells(pair.peer_ns, pair.problem) if pair.peer else ("", "")),
                f"{ours / peer:.2f}" if pair.ns and pair.peer_ns else "",
                "" if pair.target is None else f"< {pair.target:,.0f}",
                verdict(ours, pair.target) if pair.ns else "",
            )
        )
    return sheet


if __name__ == "__main__":
    sys.exit(main())
