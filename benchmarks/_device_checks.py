"""What gpu_check.py asks of a real device: our words about it beside the runtime's own, a process for each check."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import devicekit as dk
from devicekit import host

MIB = 1 << 20


def line(check: str, good: bool | None, ours: Any, real: Any) -> dict[str, Any]:
    verdict = "SKIP" if good is None else "PASS" if good else "DIFF"
    return {"check": check, "verdict": verdict, "ours": str(ours), "real": str(real)}


def in_child(ask: Callable[..., Any], *arguments: Any, seconds: float = 120) -> Any:
    """The answer of a forked process; None where it died, hung or raised."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=lambda: there.send(ask(*arguments)))
    child.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else None
    except EOFError:
        return None
    finally:
        child.kill()
        child.join()


def _manager() -> tuple[dk.DeviceManager, Any, Any]:
    dm = dk.DeviceManager("gpu")
    torch = host.current().torch()
    return dm, torch, getattr(torch, dm.device.type)


def identity() -> list[dict[str, Any]]:
    """The probe, which starts nothing, against the runtime's properties."""
    dm, _, rt = _manager()
    probed = next(v for v in dk.explain("gpu").verdicts if v.backend == dm.backend).devices
    lines = [line("device_count", len(probed) == rt.device_count(), len(probed), rt.device_count())]
    native = getattr(rt, "is_bf16_supported", None)
    for info in probed if hasattr(rt, "get_device_properties") else ():
        props, at = rt.get_device_properties(info.index), f"device {info.index}: "
        sm = f"sm_{getattr(props, 'major', 0)}{getattr(props, 'minor', 0)}"
        chip = getattr(props, "gcnArchName", sm).split(":")[0] if dm.backend == "rocm" else sm
        told, true = info.architecture, None if dm.backend not in ("cuda", "rocm") else chip
        same = info.name == props.name if dm.backend == "cuda" else None  # the others' probes have no product name
        lines.append(line(at + "name", same, info.name, props.name))
        lines.append(line(at + "architecture", None if None in (told, true) else told == true, told, true))
        close = info.total_memory and math.isclose(info.total_memory, props.total_memory, rel_tol=0.05)
        lines.append(line(at + "total_memory", close and bool(close), info.total_memory, props.total_memory))
        real = getattr(props, "is_integrated", None)
        same = None if None in (info.integrated, real) else info.integrated == bool(real)
        lines.append(line(at + "integrated", same, info.integrated, real))
        if native is not None and info.index == (dm.index or 0):
            real = native(including_emulation=False)
            same = None if info.bfloat16 is None else info.bfloat16 == real
            lines.append(line(at + "bfloat16", same, info.bfloat16, real))
    return lines


def kernels() -> list[dict[str, Any]]:
    """The build's architectures as we read them, and whether a usable device really computes."""
    dm, _, rt = _manager()
    lines = []
    read = getattr(dm._backend, "_built_architectures", None)
    if read is not None:
        ours, real = set(read()), set(rt.get_arch_list())
        lines.append(line("architectures of the build", ours == real, sorted(ours), sorted(real)))
    try:
        dm._backend.verify(dm.index or 0)
        return [*lines, line("a matrix product", True, "usable", "right")]
    except Exception as exc:
        return [*lines, line("a matrix product", False, "usable", repr(exc))]


def fork() -> list[dict[str, Any]]:
    """After a decision a forked process can still use the device."""
    dm, torch, _ = _manager()
    got = in_child(lambda: float(dm.to(torch.ones(4)).sum()))
    return [line("a forked process computes after DeviceManager()", got == 4.0, 4.0, got)]


def counters() -> list[dict[str, Any]]:
    """Memory figures move by what was allocated, and the peak can be reset."""
    dm, torch, _ = _manager()
    dm._backend.verify(dm.index or 0)  # the context and the libraries' workspaces are not what is measured
    before = dm.memory_stats()
    kept = dm.to(torch.empty(256 * MIB, dtype=torch.uint8))
    full = dm.memory_stats()
    del kept
    dm.empty_cache()
    dm.reset_peak_memory()
    after = dm.memory_stats()
    pairs = {
        "allocated rises by 256 MiB": (256 * MIB, full.allocated, before.allocated),
        "available falls by 256 MiB": (256 * MIB, before.available, full.available),
        "allocated falls back": (0, after.allocated, before.allocated),
        "available comes back": (0, after.available, before.available),
        "peak is reset": (0, after.peak, after.allocated),
    }
    near = {k: None if None in (a, b) else abs(a - b - want) <= 8 * MIB for k, (want, a, b) in pairs.items()}
    return [line(k, near[k], want, f"{a} - {b}") for k, (want, a, b) in pairs.items()]


def generators() -> list[dict[str, Any]]:
    """A generator is one that the factories take; a seed repeats; randn is the CPU's on every backend."""
    dm, torch, _ = _manager()
    made = [dm.create_generator(seed) for seed in (1, 1, 2)]
    one, again, other = (torch.randn(64, device=dm.device, generator=g).cpu() for g in made)
    saved = dm.rng_state()
    first = torch.randn(64, device=dm.device).cpu()
    dm.set_rng_state(saved)
    second = torch.randn(64, device=dm.device).cpu()
    cpu = torch.randn((8, 8), generator=torch.Generator("cpu").manual_seed(3))
    return [
        line("a seed repeats", bool(one.equal(again)), True, bool(one.equal(again))),
        line("another seed differs", not one.equal(other), False, bool(one.equal(other))),
        line("rng_state comes back", bool(first.equal(second)), True, bool(first.equal(second))),
        line("randn is the CPU's", bool(dm.randn((8, 8), 3).cpu().equal(cpu)), True, dm.randn((2,), 3).device),
    ]


def dtypes() -> list[dict[str, Any]]:
    """The preferred dtype is not slower than another that the device has: 4096^3 products, by the clock."""
    dm, torch, _ = _manager()
    spent = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a = torch.ones(4096, 4096, device=dm.device, dtype=dtype)
        samples = []
        for _ in range(8):
            dm.synchronize()
            start = time.perf_counter()
            a @ a
            dm.synchronize()
            samples.append(time.perf_counter() - start)
        spent[str(dtype)] = min(samples[2:]) * 1e3
    ours = spent.get(str(dm.dtype), math.inf)
    return [line("dtype", ours <= 1.2 * min(spent.values()), dm.dtype, {k: f"{v:.3f} ms" for k, v in spent.items()})]


CHECKS = (identity, kernels, fork, counters)
NOT_SIMULATED = (generators, dtypes)
"""They make tensors on the device itself, and ask how fast it is: a simulated one leaves both to the CPU."""
