"""MPS: no double precision, no class for "out of memory", virtual machines that lie, memory that is the Mac's."""

from __future__ import annotations

import warnings

import pytest
import torch

import devicekit as dk
from devicekit.testing import Build, simulated_machine


def _verdict(backend: str = "mps") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


def test_a_mac_is_one_device_without_a_number() -> None:
    """mps, with or without an index, is the same device."""
    with simulated_machine("mac"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in ("mps", "mps:0", "auto", 0, torch.device("mps")):
            dm = dk.DeviceManager(asked, strict=True)
            assert (str(dm.device), dm.index) == ("mps", None)


def test_there_is_no_double_precision() -> None:
    """float64 becomes float32 and complex128 complex64, with one warning for each."""
    with simulated_machine("mac"):
        dm = dk.DeviceManager()
        wide = [torch.ones(2, dtype=dtype) for dtype in (torch.float64, torch.complex128)] * 2
        with pytest.warns(UserWarning, match="mps has no torch") as told:
            moved = dm.to(wide)
        assert [str(w.message).partition(":")[0] for w in told] == [
            "mps has no torch.float64",
            "mps has no torch.complex128",
        ]
    assert [t.dtype for t in moved] == [torch.float32, torch.complex64] * 2


def test_a_module_in_double_precision_is_narrowed_before_the_move() -> None:
    """Its integer buffers stay; its own ``to`` never sees float64."""
    module = torch.nn.BatchNorm1d(3).double()
    with simulated_machine("mac"), pytest.warns(UserWarning, match=r"mps has no torch\.float64"):
        moved = dk.DeviceManager().to(module)
    assert moved is module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module.num_batches_tracked.dtype is torch.int64


def test_a_virtual_machine_is_not_taken() -> None:
    """Metal says yes there, and the first 256 bytes fail (actions/runner-images#9918)."""
    with simulated_machine("mac-in-a-vm") as host:
        assert host.torch().backends.mps.is_available()
        assert "this Mac is a virtual machine" in _verdict().reason
        assert str(dk.resolve_device()) == "cpu"
        memory = host.torch().mps._memory()
        with pytest.raises(RuntimeError, match=r"MPS backend out of memory \(MPS allocated: 0 bytes"):
            memory.require(256)


@pytest.mark.parametrize(("macos", "dtype"), [("13.6", torch.float16), ("14.0", torch.bfloat16)])
def test_bfloat16_needs_macos_14(macos: str, dtype: torch.dtype) -> None:
    """torch 2.8 still runs on macOS 13, where Metal has no bfloat16."""
    with simulated_machine("mac", build=Build("2.8.0", mps=True), macos=macos):
        assert dk.DeviceManager("mps", strict=True).dtype is dtype
        assert _verdict().devices[0].bfloat16 is (dtype is torch.bfloat16)


def test_torch_needs_macos_14_itself_by_now() -> None:
    """Then Metal shows no GPU, and the reason says why."""
    with simulated_machine("mac", macos="13.6"):
        verdict = _verdict()
    assert "macOS 14 or later" in verdict.reason
    assert verdict.fix.startswith("update macOS")


@pytest.mark.parametrize(("macos", "name"), [("2.8.0", "Apple GPU"), ("2.13.0", "Apple M3 Pro")])
def test_the_chips_name_is_told_where_torch_can(macos: str, name: str) -> None:
    """torch.backends.mps.get_name came with 2.9."""
    with simulated_machine("mac", build=Build(macos, mps=True)):
        described = dk.DeviceManager()._backend.describe()
        assert (described.name, described.integrated, described.total_memory) == (name, True, 27 << 30)
        assert _verdict().devices[0].integrated


def test_a_build_without_mps() -> None:
    """The questions that raise on such a build are not asked."""
    with simulated_machine("cpu") as host:
        assert _verdict().reason == "torch 2.13.0+cpu is built without MPS"
        with pytest.raises(RuntimeError, match="without MPS backend"):
            host.torch().backends.mps.is_macos_or_newer(14, 0)
        assert not hasattr(host.torch().backends.mps, "get_name")


def test_memory_is_shared_with_the_mac() -> None:
    """The total is Metal's limit; available is what is left of it or of the Mac, whichever is less; no peak is kept."""
    with simulated_machine("mac", host_free="5GiB"):
        dm = dk.DeviceManager()
        kept = dm.to(torch.zeros(1 << 20))
        stats = dm.memory_stats()
        assert (stats.total, stats.available, stats.allocated) == (27 << 30, 5 << 30, kept.nbytes)
        assert (stats.peak, stats.unified, stats.reserved) == (None, True, 4 << 20)
    with simulated_machine(mps=True, memory="10MiB"):
        dm = dk.DeviceManager()
        kept = dm.to(torch.zeros(1 << 20))
        assert dm.memory_stats().available == 6 << 20
        del kept
        dm.empty_cache()
        assert (dm.memory_stats().reserved, dm.memory_stats().available) == (0, 10 << 20)


def test_running_out_of_memory_has_no_class_of_its_own() -> None:
    """A plain RuntimeError, above Metal's recommendation by the watermark's ratio."""
    with simulated_machine(mps=True, memory="8MiB"):
        dm = dk.DeviceManager()
        kept = dm.to(torch.zeros(3 << 20))  # 12 MiB: more than 8, less than 1.7 times 8
        with pytest.raises(RuntimeError, match=r"^MPS backend out of memory \(MPS allocated: 12\.00 MiB") as caught:
            dm.to(torch.zeros(1 << 20))
        assert type(caught.value) is RuntimeError
        del kept
    with simulated_machine(mps=True, memory="8MiB", env={"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.0"}):
        dk.DeviceManager().to(torch.zeros(5 << 20))


def test_a_gpu_that_cannot_tell_its_memory_is_no_error() -> None:
    """A figure for a page is no reason to fall; the source says what happened."""
    with simulated_machine("mac", faults="no_memory_query"):
        stats = dk.DeviceManager().memory_stats()
    assert stats.total is None
    assert stats.source.startswith("unknown: RuntimeError")


def test_random_numbers_and_waiting() -> None:
    """The generator says mps, the state comes back, and waiting takes no device."""
    with simulated_machine("mac") as host:
        dm = dk.DeviceManager()
        assert dm.create_generator(5).device.type == "mps"
        host.torch().mps.manual_seed(1)
        before = dm.rng_state()
        host.torch().mps.manual_seed(2)
        dm.set_rng_state(before)
        assert torch.equal(host.torch().mps.get_rng_state(), before.device)
        dm.synchronize()
        dm.reset_peak_memory()
        dm._backend.verify()


def test_wrong_numbers_are_found_out() -> None:
    """macos-26 runners compute wrong numbers: verification compares (actions/runner-images#14380)."""
    with simulated_machine("mac", faults="wrong_numbers"):
        dm = dk.DeviceManager()
        with pytest.raises(dk.DeviceKitError, match="mps computes wrong numbers"):
            dm._backend.verify()


@pytest.mark.parametrize(("value", "warned"), [(None, False), ("0", False), ("1", True)])
def test_operations_that_run_elsewhere_are_warned_of(value: str | None, warned: bool) -> None:
    """With the fallback switched on an operation may run on the CPU, and slowly."""
    with simulated_machine("mac", env={} if value is None else {"PYTORCH_ENABLE_MPS_FALLBACK": value}):
        told = dk.DeviceManager()._backend.traits()
    assert told["memory"] == "shared with the host"
    assert ("warning" in told) is warned
