"""What only a real accelerator can show: that probing starts nothing, and that acting acts on it.

These tests are skipped where there is none. They run in child processes, because what they hold is the state of a
process that has asked devicekit and nothing else.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import devicekit as dk
from devicekit.resolve import resolver

pytestmark = pytest.mark.gpu


def _accelerators() -> list[str]:
    here = resolver()
    return [row.name for row in here.usable_rows() if here.backend(row).accelerator]


needs_one = pytest.mark.skipif(not _accelerators(), reason="needs a real accelerator")

START = """
import os, sys, warnings
import devicekit as dk
from devicekit.resolve import resolver
dm = dk.DeviceManager('gpu', strict=True)
"""


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@needs_one
def test_deciding_starts_no_runtime() -> None:
    """After a decision the runtime is not initialised, and a forked child can still use the device."""
    _run(
        "import torch; runtime = getattr(torch, str(dm.device).partition(':')[0])\n"
        "started = getattr(runtime, 'is_initialized', lambda: False)()\n"
        "assert not started\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(int(getattr(runtime, '_is_in_bad_fork', lambda: False)()))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
    )


@needs_one
def test_memory_moves_with_what_is_put_there() -> None:
    """Allocating counts, freeing and emptying the cache gives back, and the peak remembers until it is reset."""
    _run(
        "import torch\n"
        "x = dm.to(torch.zeros(64 << 18)); dm.synchronize(); stats = dm.memory_stats()\n"
        "assert stats.allocated >= 64 << 20, stats\n"
        "assert stats.total and stats.available is not None and stats.available < stats.total, stats\n"
        "del x; dm.empty_cache(); after = dm.memory_stats()\n"
        "assert after.allocated < 64 << 20, after\n"
        "assert after.peak is None or after.peak >= 64 << 20, after\n"
        "dm.reset_peak_memory(); assert dm.memory_stats().peak in (None, dm.memory_stats().allocated)\n"
    )


@needs_one
def test_generators_are_accepted_by_the_factories() -> None:
    """The device's factories take its generator, and repeat for a seed."""
    _run(
        "import torch\n"
        "a, b = (torch.rand(8, device=dm.device, generator=dm.create_generator(3)) for _ in range(2))\n"
        "assert torch.equal(a, b)\n"
        "state = dm.rng_state(); first = torch.rand(4, device=dm.device); dm.set_rng_state(state)\n"
        "assert torch.equal(first, torch.rand(4, device=dm.device))\n"
    )


@needs_one
def test_a_step_of_training_runs_in_the_preferred_dtype() -> None:
    """Forward, backward and an optimiser's step work with `dm.dtype`, and the loss falls."""
    _run(
        "import torch; torch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))\n"
        "dm.to(model, dm.dtype)\n"
        "x, y = dm.to((torch.randn(128, 32), torch.randn(128, 1)), dm.dtype)\n"
        "optimiser = torch.optim.SGD(model.parameters(), lr=0.05)\n"
        "losses = []\n"
        "for _ in range(20):\n"
        "    loss = (model(x) - y).float().square().mean(); optimiser.zero_grad(); loss.backward(); optimiser.step()\n"
        "    losses.append(float(loss))\n"
        "assert losses[-1] < losses[0], losses\n"
    )


@needs_one
def test_every_device_verifies() -> None:
    """A real kernel computes rightly on every usable device."""
    here = resolver()
    for row in here.usable_rows():
        for device in here.probe(row).devices:
            if device.usable:
                here.backend(row).verify(device.index)


@needs_one
def test_what_the_probe_said_is_what_the_runtime_says() -> None:
    """Architecture and bfloat16 agree between the quiet probe and the started runtime."""
    here = resolver()
    for row in here.usable_rows():
        for probed in here.probe(row).devices:
            described = here.backend(row).describe(probed.index)
            assert probed.architecture in (None, described.architecture)
            assert probed.bfloat16 in (None, described.bfloat16)


# -- weights -----------------------------------------------------------------------------------------
WEIGHTS = """
import tempfile, torch, safetensors.torch
from pathlib import Path
runtime = getattr(torch, dm.device.type)
path = Path(tempfile.mkdtemp()) / 'a.safetensors'
torch.manual_seed(1)
stored = {f'layers.{i}': torch.randn(64, i + 1) for i in range(40)}
stored |= {'large': torch.randn(40 << 20), 'bf16': torch.randn(3 << 20).bfloat16(), 'f16': torch.randn(7).half()}
stored |= {'f8': torch.randn(99).to(torch.float8_e4m3fn), 'count': torch.arange(9), 'none': torch.empty(0, 3)}
if dm.device.type == 'mps': del stored['f8']
def right(loaded, dtype=None):
    assert set(loaded) == set(stored)
    for name, tensor in stored.items():
        tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert loaded[name].device == dm.device or dm.index is None
        assert loaded[name].dtype is tensor.dtype, name
        found = loaded[name].cpu().reshape(-1).view(torch.uint8)
        assert torch.equal(found, tensor.reshape(-1).view(torch.uint8)), name
def save():
    safetensors.torch.save_file(stored, path)
"""


@needs_one
def test_weights_arrive_as_they_are_in_the_file_and_cast() -> None:
    """Every byte, by one thread and by several, as they are and in each dtype, as the CPU casts them."""
    _run(
        WEIGHTS + "save()\n"
        "for workers in (1, 4, None):\n"
        "    for dtype in (None, torch.bfloat16, torch.float16, torch.float32):\n"
        "        right(dm.load_safetensors(path, dtype=dtype, workers=workers), dtype)\n"
    )


@needs_one
def test_loading_takes_the_result_and_a_bounded_rest() -> None:
    """On the device the tensors and at most 64 MiB on the way, of which nothing stays in use; on the host 256 MiB."""
    _run(
        WEIGHTS + "import resource\n"
        "big = {f'w{i}': torch.randn(32 << 20) for i in range(8)}\n"
        "safetensors.torch.save_file(big, path); small = path.with_name('s.safetensors')\n"
        "safetensors.torch.save_file({'w': torch.randn(12 << 20)}, small)\n"
        "dm.load_safetensors(small, dtype=torch.float16); dm.empty_cache(); dm.reset_peak_memory()\n"
        "before, host = dm.memory_stats(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "loaded = dm.load_safetensors(path, dtype=torch.float16); after = dm.memory_stats()\n"
        "result = sum(t.nbytes for t in loaded.values())\n"
        "assert abs(after.allocated - before.allocated - result) <= 1 << 20, (before, after)\n"
        "assert after.peak is None or after.peak - before.allocated - result <= 64 << 20, (before, after)\n"
        "if dm.device.type != 'mps':\n"  # a Mac's device memory is the host's
        "    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host) << 10\n"
        "    assert grown <= 256 << 20, grown\n"
        "for _ in range(40): dm.load_safetensors(small, dtype=torch.float16)\n"
        "again = dm.memory_stats()\n"
        "assert again.reserved is None or again.reserved - after.reserved <= 128 << 20, (after, again)\n"
    )


@needs_one
def test_weights_arrive_while_the_device_is_busy() -> None:
    """Memory that the device still works in when it is given out again holds what was loaded, in the default stream, in
    one of the caller's, and after the work is done.
    """
    _run(
        WEIGHTS + "import contextlib; save()\n"
        "streams = [None] if not hasattr(runtime, 'Stream') else [None, runtime.Stream(dm.device)]\n"
        "for dtype in (None, torch.bfloat16):\n"
        "    for stream in streams * 4:\n"
        "        with contextlib.nullcontext() if stream is None else runtime.stream(stream):\n"
        "            a = torch.randn(4096, 4096, device=dm.device)\n"
        "            freed = torch.empty(40 << 20, device=dm.device)\n"
        "            for i in range(30): a = (a @ a).tanh(); freed.fill_(float(i)); freed[: 1 << 24] += a.view(-1)\n"
        "            del freed\n"
        "            loaded = dm.load_safetensors(path, dtype=dtype, workers=4)\n"
        "        right(loaded, dtype); dm.synchronize(); right(loaded, dtype)\n"
    )


@needs_one
def test_weights_go_into_modules() -> None:
    """From the CPU, from the meta device, and in place: all of it, in the same parameters, with the right numbers."""
    _run(
        WEIGHTS + "def make(): return torch.nn.Sequential(torch.nn.Linear(512, 4096), torch.nn.BatchNorm1d(4096))\n"
        "stored = {n: torch.rand(t.shape).to(t.dtype) for n, t in make().state_dict().items()}; save()\n"
        "with torch.device('meta'): bare = make()\n"
        "for model in (make(), bare, dm.to(make()), dm.to(make(), torch.float16)):\n"
        "    there = model[0].weight.device == dm.device; half = model[0].weight.dtype is torch.float16\n"
        "    kept = model[0].weight, model[0].weight.data_ptr() if there else None\n"
        "    told = dm.load_safetensors(path, into=model); right(model.state_dict(), torch.float16 if half else None)\n"
        "    assert not told.missing_keys and not told.meta_keys\n"
        "    assert kept[0].is_meta or model[0].weight is kept[0]\n"
        "    assert not there or model[0].weight.data_ptr() == kept[1]\n"
        "    assert model.eval()(torch.rand(2, 512, device=dm.device, dtype=model[0].weight.dtype)).isfinite().all()\n"
    )


@needs_one
def test_a_rank_leaves_the_first_card_alone() -> None:
    """A rank that loads onto another card makes no context on card 0, where every rank would pay for it."""
    _run(
        "import torch\n"
        "runtime = getattr(torch, dm.device.type)\n"
        "if dm.backend not in ('cuda', 'rocm') or runtime.device_count() < 2: sys.exit()\n"
        "os.environ['LOCAL_RANK'] = '1'; dm = dk.DeviceManager(dm.backend, strict=True)\n" + WEIGHTS + "save()\n"
        "assert dm.index == 1\n"
        "right(dm.load_safetensors(path, dtype=torch.bfloat16, workers=4), torch.bfloat16)\n"
        "dm.load_safetensors(path, into=torch.nn.Linear(512, 512), strict=False)\n"
        "assert runtime.memory_allocated(0) == 0\n"
        "assert not torch._C._cuda_hasPrimaryContext(0)\n"
    )


def test_without_an_accelerator_these_are_skipped_and_not_passed() -> None:
    """The explanation and the skip agree on whether there is an accelerator."""
    assert bool(_accelerators()) == any(v.usable and v.backend not in {"cpu", "numpy"} for v in dk.explain().verdicts)
