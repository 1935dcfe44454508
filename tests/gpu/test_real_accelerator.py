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


def test_without_an_accelerator_these_are_skipped_and_not_passed() -> None:
    """The explanation and the skip agree on whether there is an accelerator."""
    assert bool(_accelerators()) == any(v.usable and v.backend not in {"cpu", "numpy"} for v in dk.explain().verdicts)
