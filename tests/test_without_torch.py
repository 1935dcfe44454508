"""A host where torch is not installed: a real interpreter that cannot see it, not a fake that denies it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import devicekit

# What devicekit depends on, and NumPy.
PACKAGES = ("numpy", "psutil", "platformdirs", "rich", "markdown-it-py", "mdurl", "pygments")


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an interpreter that sees devicekit and its dependencies, and no site-packages."""
    folder = tmp_path_factory.mktemp("without-torch")
    for package in PACKAGES:
        for file in importlib.metadata.files(package) or ():
            top = file.parts[0]
            if not top.startswith("..") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 2])
    path = os.pathsep.join([str(folder), str(Path(devicekit.__file__).parents[1])])
    return {"PYTHONPATH": path, "HOME": str(folder), "PATH": os.environ.get("PATH", "")}


def _run(interpreter: dict[str, str], *args: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", *args], env=interpreter, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


def test_torch_is_really_not_there(interpreter: dict[str, str]) -> None:
    """The interpreter of these tests cannot import torch."""
    _run(interpreter, "-c", "import torch", expect=1)


def test_the_whole_facade_works(interpreter: dict[str, str]) -> None:
    """Resolving, moving, generators, random states, memory, housekeeping and the report, on NumPy alone."""
    _run(
        interpreter,
        "-c",
        "import numpy as np, devicekit as dk\n"
        "assert dk.resolve_device() == dk.resolve_device('cpu', strict=True) == 'cpu'\n"
        "assert dk.available_backends() == ('numpy',)\n"
        "dm = dk.DeviceManager()\n"
        "assert (dm.device, dm.backend, dm.index, dm.warning) == ('cpu', 'numpy', None, None)\n"
        "assert dm.dtype == np.float32\n"
        "moved = dm.to({'x': np.ones(3), 'n': [np.arange(2)]}, dm.dtype)\n"
        "assert moved['x'].dtype == np.float32 and moved['n'][0].dtype == np.int64\n"
        "draw = lambda: dm.create_generator(7).standard_normal(4)\n"
        "assert (draw() == draw()).all()\n"
        "state = dm.rng_state(); first = dm.randn((3,)); dm.set_rng_state(state)\n"
        "assert (first == dm.randn((3,))).all()\n"
        "stats = dm.memory_stats()\n"
        "assert 0 < stats.allocated <= stats.peak and 0 < stats.available <= stats.total\n"
        "dm.empty_cache(); dm.synchronize(); dm.reset_peak_memory()\n"
        "import json; json.dumps([dm.report(), dk.info(), dk.explain().to_dict()])\n"
        "import sys; assert 'torch' not in sys.modules\n",
    )


def test_a_gpu_is_refused_for_the_right_reason(interpreter: dict[str, str]) -> None:
    """Who asks for CUDA is told that torch is missing."""
    _run(
        interpreter,
        "-c",
        "import devicekit as dk\n"
        "try: dk.resolve_device('cuda', strict=True)\n"
        "except dk.DeviceUnavailableError as error: assert error.why == 'torch is not installed', error\n"
        "else: raise SystemExit('it was not refused')\n",
    )


def test_the_numbers_are_torchs(interpreter: dict[str, str]) -> None:
    """A seed gives here what torch gives elsewhere, to float32 rounding."""
    import torch

    printed = _run(interpreter, "-c", "import devicekit as dk; print(dk.DeviceManager().randn((20,), seed=3).tolist())")
    theirs = torch.randn((20,), generator=torch.Generator().manual_seed(3)).tolist()
    assert json.loads(printed) == pytest.approx(theirs, abs=2e-6)


def test_doctor_answers(interpreter: dict[str, str]) -> None:
    """The command line works without torch, and says that it is not installed."""
    told = json.loads(_run(interpreter, "-m", "devicekit", "doctor", "--json"))
    assert "torch is not installed" in json.dumps(told)
