"""Ascend: a plugin that is looked at from outside first, chips by number, CANN that is not there."""

from __future__ import annotations

import warnings

import pytest
import torch

import devicekit as dk
from devicekit.host import AUTOLOAD
from devicekit.testing import Card, simulated_machine
from devicekit.testing.fake_npu import ProcessAborted
from devicekit.testing.machines import CUDA_BUILD, ROCM_BUILD, XPU_BUILD, Build


def _verdict(backend: str = "npu") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


# -- the plugin --------------------------------------------------------------------------------------
def test_not_installed() -> None:
    """Without torch_npu nothing is imported to find out."""
    with simulated_machine("cpu") as host:
        assert _verdict().reason == "torch_npu is not installed"
        assert "torch_npu" not in host.imports


@pytest.mark.parametrize("autoload", ["1", "0"])
def test_cann_is_missing(autoload: str) -> None:
    """The library that is missing and the way to get it are named, whoever imports the plugin first."""
    with simulated_machine("ascend-no-cann", env={AUTOLOAD: autoload}) as host:
        verdict = _verdict()
        assert str(dk.resolve_device()) == "cpu"
        assert host.imports.count("torch_npu") == 1
    assert verdict.reason.startswith("torch_npu is installed, but libhccl.so is missing: CANN is not installed")
    assert "source /usr/local/Ascend" in verdict.fix


@pytest.mark.parametrize("before", [None, "1", "0", "true"])
@pytest.mark.parametrize("declared", [True, False])
def test_the_switch_is_as_it_was_after_a_failing_import(before: str | None, declared: bool) -> None:
    """torch_npu leaves TORCH_DEVICE_BACKEND_AUTOLOAD at "0" when it fails, and every child would inherit that.

    It is restored by whoever imports it: the host, as torch would, or the backend, where no entry point declares it.
    """
    env = {} if before is None else {AUTOLOAD: before}
    points = {} if declared else {"torch.backends": {}}
    with simulated_machine("ascend-no-cann", env=env, entry_points=points) as host:
        assert not _verdict().usable
        assert host.env.get(AUTOLOAD) == before
        assert host.imports.count("torch_npu") == 1


@pytest.mark.parametrize("build", [CUDA_BUILD, ROCM_BUILD, XPU_BUILD])
@pytest.mark.parametrize("autoload", ["1", "0"])
def test_beside_another_accelerator_it_is_never_imported(build: Build, autoload: str) -> None:
    """There the import would kill the process, and no except could catch it."""
    with simulated_machine("ascend-beside-cuda", build=build, env={AUTOLOAD: autoload}) as host:
        verdict = _verdict()
        assert str(dk.resolve_device()) == "cpu"
        assert "torch_npu" not in host.imports
        with pytest.raises(ProcessAborted):
            host.import_module("torch_npu")
    assert "aborts the process" in verdict.reason
    assert "install the CPU build of torch" in verdict.fix


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("libascend_hal.so: cannot open shared object file: No such file", "libascend_hal.so is missing"),
        ("ASCEND_OPP_PATH environment variable is not set", "CANN's environment is incomplete"),
        ("No module named 'yaml'", "cannot be loaded: ImportError: No module named 'yaml'"),
    ],
)
def test_what_else_can_be_missing(failure: str, reason: str) -> None:
    """Another library, CANN's variables, or a Python package: each is told in its own words."""
    with simulated_machine("ascend", plugin_failure=failure):
        verdict = _verdict()
    assert reason in verdict.reason
    assert "source /usr/local/Ascend" in verdict.fix


@pytest.mark.parametrize("autoload", ["1", "0"])
def test_the_plugin_registers_the_device(autoload: str, capfd: pytest.CaptureFixture[str]) -> None:
    """torch refuses the word npu before; the plugin's talk on stdout is kept quiet."""
    with simulated_machine("ascend", env={AUTOLOAD: autoload}) as host:
        with pytest.raises(RuntimeError, match="Expected one of cpu, cuda"):
            torch.device("npu")
        assert str(dk.resolve_device()) == "npu:0"
        assert dk.resolve_device() == host.torch().device("npu", 0)
        assert str(dk.resolve_device(host.torch().device("npu:0"))) == "npu:0"
        assert dk.DeviceManager().report()["versions"]["torch_npu"] == "2.13.0"
    assert capfd.readouterr() == ("", "")


# -- what it shows -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mask", "count"),
    [("0,1", 2), ("1", 1), ("0,2", 2), ("", 0), ("1,0", 0), ("0,0", 0), ("7", 0), ("0;1", 1), ("x", 0)],
)
def test_ascend_rt_visible_devices(mask: str, count: int) -> None:
    """Numbers must exist and ascend; what follows anything but digits and commas is ignored; empty means none."""
    with simulated_machine(npu=3, env={"ASCEND_RT_VISIBLE_DEVICES": mask}):
        verdict = _verdict()
    assert (verdict.usable, len(verdict.devices)) == (count > 0, count)
    assert count or f"ASCEND_RT_VISIBLE_DEVICES={mask!r}" in verdict.reason


def test_cann_without_a_device() -> None:
    """The software is complete, and shows nothing."""
    with simulated_machine(npu=0):
        verdict = _verdict()
    assert verdict.reason == "CANN shows no NPU"
    assert "/dev/davinci0" in verdict.fix


def test_a_process_that_was_forked_too_late_says_so() -> None:
    """As on CUDA."""
    with simulated_machine("ascend", forked=True):
        assert "before this process was forked" in _verdict().reason


# -- one device --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("chip", "number", "dtype"),
    [
        ("Ascend910A", 102, torch.float16),
        ("Ascend910B", 104, torch.float16),
        ("Ascend310P3", 202, torch.float16),
        ("Ascend910B1", 220, torch.bfloat16),
        ("Ascend910B4", 224, torch.bfloat16),
        ("Ascend910_9391", 250, torch.bfloat16),
    ],
)
def test_the_chips_number_decides(chip: str, number: int, dtype: torch.dtype) -> None:
    """Ascend910B with number 104 is the old 910 without bfloat16; what everyone calls 910B starts at 220."""
    with simulated_machine(npu=1, architecture=chip) as host:
        assert dk.DeviceManager().dtype is dtype
        assert host.torch().npu.get_soc_version() == number


def test_double_precision_is_kept_as_single() -> None:
    """One warning, whatever is moved how often; the values survive, other dtypes stay."""
    with simulated_machine("ascend"):
        dm = dk.DeviceManager()
        things = [*(torch.arange(3, dtype=torch.float64) for _ in range(3)), torch.nn.Linear(2, 2).double()]
        with pytest.warns(UserWarning, match=r"npu has no torch\.float64: torch\.float32 is used instead") as told:
            *moved, module = dm.to(things)
        assert len(told) == 1
        assert {t.dtype for t in (*moved, *module.parameters())} == {torch.float32}
        assert moved[0].tolist() == [0, 1, 2]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert dm.to(torch.arange(3)).dtype is torch.int64


def test_memory_is_counted_and_runs_out() -> None:
    """Figures follow the tensors; the limit raises torch_npu's words; unified memory cannot be told."""
    with simulated_machine(npu=2, memory="8MiB"):
        dm = dk.DeviceManager("npu:1")
        kept = dm.to(torch.zeros(1 << 20))
        stats = dm.memory_stats()
        assert (stats.allocated, stats.available, stats.unified) == (kept.nbytes, 4 << 20, None)
        with pytest.raises(torch.OutOfMemoryError, match=r"^NPU out of memory\. Tried to allocate 8\.00 MiB \(NPU 1; "):
            dm.to(torch.zeros(2 << 20))
        assert dk.DeviceManager("npu:0").memory_stats().allocated == 0


def test_the_generator_is_the_npus() -> None:
    """It says npu:0, which only a registered plugin can."""
    with simulated_machine("ascend"):
        generator = dk.DeviceManager().create_generator(3)
        assert (str(generator.device), generator.initial_seed()) == ("npu:0", 3)


def test_after_the_start_the_chip_is_described() -> None:
    """Name, memory and bfloat16 come from CANN."""
    card = Card("Ascend910B3", "64GiB", "Ascend910B3")
    with simulated_machine("ascend", cards=(card,)) as host:
        host.torch().npu.init()
        (device,) = _verdict().devices
    assert (device.name, device.total_memory, device.bfloat16) == ("Ascend910B3", 64 << 30, True)


@pytest.mark.parametrize(
    ("chip", "name", "words"), [("Ascend910B3", "float32", "HF32"), ("Ascend310P3", "warning", "computed in float16")]
)
def test_how_float32_is_really_computed_is_told(chip: str, name: str, words: str) -> None:
    """The chip's number, and the format that stands in for float32; on old chips that is a warning."""
    with simulated_machine(npu=1, architecture=chip):
        told = dk.DeviceManager()._backend.traits()
    assert set(told) == {"SoC", name}
    assert words in told[name]
