"""Hold what devicekit and its fakes say about an accelerator against a real one: a fake that lies is worse than none.

Needs a machine with an accelerator. One JSON object a line on stdout, each with a verdict: PASS, DIFF, or SKIP where
this runtime has nothing to compare. Exit code 0 without a DIFF, 1 with one or without an accelerator.

Every question is asked in a process of its own, forked before anything was asked, so that none sees what another
started. The first half runs the same statement here and on devicekit's simulated machine and compares what it started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from _device_checks import CHECKS, NOT_SIMULATED, in_child, line
from _table import machine

import devicekit as dk
from devicekit import host
from devicekit.resolve import resolver

HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)
"""A file of safetensors."""
CONTEXT = 64 << 20
"""A card that lost this much to one statement was given a context, whatever NVML's list of processes says."""
STATEMENTS = (
    "None", "dk.explain()", "dk.resolve_device()", "dk.DeviceManager()", "dk.DeviceManager().dtype",
    "dk.DeviceManager().memory_stats()", "dk.DeviceManager().empty_cache()", "dk.DeviceManager().synchronize()",
    "dk.DeviceManager().reset_peak_memory()", "dk.DeviceManager().create_generator(0)",
    "dk.DeviceManager().rng_state()", "torch.device(place, 0)", "torch.Generator(device=place)",
    "rt.is_available()", "rt.device_count()", "rt.is_initialized()", "rt.is_bf16_supported()",
    "rt.get_arch_list()", "rt.get_device_properties(0)", "rt.get_device_name(0)", "rt.current_device()",
    "rt.set_device(0)", "rt.mem_get_info(0)", "rt.memory_stats(0)", "rt.memory_allocated(0)",
    "rt.memory_reserved(0)", "rt.max_memory_allocated(0)", "rt.reset_peak_memory_stats(0)", "rt.empty_cache()",
    "rt.synchronize(0)", "rt.manual_seed(0)", "rt.get_rng_state(0)", "rt.Event(enable_timing=True)",
    "(rt.set_device(last), dk.DeviceManager(f'{place}:{last}').empty_cache())",
    "rt.Stream(torch.device(place, last))", "rt.current_stream(torch.device(place, last))",
    "dk.DeviceManager(f'{place}:{last}').load_safetensors(weights)",
    "dk.DeviceManager(f'{place}:{last}').load_safetensors(weights, dtype=torch.float16)",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulated", metavar="KIND", help="try this script itself, without hardware: cuda, rocm, xpu")
    options = parser.parse_args()
    with _simulated(options.simulated, 2) if options.simulated else contextlib.nullcontext():
        with contextlib.suppress(dk.DeviceKitError):
            host.current().torch()  # once, for all the forked processes; importing it starts nothing
        name, count = in_child(_accelerator) or (None, 0)
        if name is None:
            print("no accelerator is usable on this machine, so there is nothing to compare: devicekit doctor says why")
            return 1
        told = [line("machine", None, f"{count} x {name}", machine())]
        print(json.dumps(told[0]), flush=True)
        for statement in STATEMENTS:
            told.append(_compare(statement, name, count))
            print(json.dumps(told[-1]), flush=True)
        for check in CHECKS if options.simulated else CHECKS + NOT_SIMULATED:
            lines = in_child(check) or [line(check.__name__, False, "the check", "died")]
            told += lines
            print("\n".join(json.dumps(each) for each in lines), flush=True)
    different = sum(each["verdict"] == "DIFF" for each in told)
    print(f"{name}: {different} of {len(told)} lines are DIFF", file=sys.stderr)
    return 1 if different else 0


def _accelerator() -> tuple[str, int] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decision = resolver().decide("gpu")
    row = next(row for row in resolver().rows if row.name == decision.name)
    return (decision.name, len(resolver().probe(row).devices)) if decision.backend.accelerator else None


@contextlib.contextmanager
def _simulated(kind: str, count: int) -> Iterator[None]:
    from devicekit.testing import simulated_machine

    with simulated_machine(**{kind: count}):
        yield


# -- the same statement, here and on the fake ------------------------------------------------------
def _compare(statement: str, name: str, count: int) -> dict[str, Any]:
    ours, real = in_child(_on_the_fake, statement, name, count), in_child(_observe, statement, name, count)
    if ours is None or real is None:
        return line(statement, None if real else False, ours or "the fake has no answer", real or "the process died")
    told = [key for key in real if None not in (ours[key], real[key])]
    return line(statement, all(ours[key] == real[key] for key in told), ours, real)


def _on_the_fake(statement: str, name: str, count: int) -> dict[str, Any]:
    with _simulated(name, count):
        return _observe(statement, name, count)


def _observe(statement: str, name: str, count: int) -> dict[str, Any]:
    """What kind of answer a statement gives, and what it starts."""
    torch = host.current().torch()
    place = next(resolver().backend(row).device_type for row in resolver().rows if row.name == name)
    rt = getattr(torch, place)
    before = _on_card_0(rt)
    try:
        names = {"dk": dk, "torch": torch, "rt": rt, "place": place, "last": count - 1, "weights": WEIGHTS}
        outcome = _kind(eval(statement, names))
    except Exception as exc:
        outcome = type(exc).__name__
    after = _on_card_0(rt)
    started = getattr(rt, "is_initialized", lambda: None)()
    new = None
    if before is not None and after is not None:
        new = bool(after[0] - before[0]) or after[1] - before[1] > CONTEXT
    return {"answer": outcome, "started": started, "context on 0": new, "fork poisoned": _poisons(rt)}


def _kind(answer: Any) -> str:
    """An answer without what differs between machines."""
    if isinstance(answer, (bool, type(None))):
        return str(answer)
    for kind in (int, str, dict, list, tuple):
        if isinstance(answer, kind):
            return f"{kind.__name__}, {'something' if answer else 'nothing'}"
    return "an object"


def _on_card_0(rt: Any) -> tuple[set[int], int] | None:
    """The processes and the used bytes on card 0: the fake's own list, or NVML's."""
    if hasattr(rt, "_contexts"):
        return rt._contexts & {0}, 0
    nvml = host.current().module("pynvml")
    try:
        nvml.nvmlInit()
        card = nvml.nvmlDeviceGetHandleByIndex(0)
        running = {int(p.pid) for p in nvml.nvmlDeviceGetComputeRunningProcesses(card)}
        return running, int(nvml.nvmlDeviceGetMemoryInfo(card).used)
    except Exception:  # no NVML: AMD, Intel, a Mac
        return None


def _poisons(rt: Any) -> bool | None:
    asked = getattr(rt, "_is_in_bad_fork", None)
    return None if asked is None else in_child(lambda: bool(asked()))


if __name__ == "__main__":
    os.environ.pop("LOCAL_RANK", None)
    sys.exit(main())
