"""XPU: a memory query that raises, emulation that is called support, and integrated GPUs."""

from __future__ import annotations

import pytest
import torch

import devicekit as dk
from devicekit.testing import Card, Machine, simulated_machine
from devicekit.testing.machines import XPU_BUILD

IGPU = Card("Intel(R) Iris(R) Xe Graphics", "14GiB", "xe-lp", integrated=True, lacks=("bfloat16", "float64"))
ARC = Card("Intel(R) Arc(TM) B580 Graphics", "12GiB", "xe2-hpg", lacks=("float64",))


def _verdict(backend: str = "xpu") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


def _machine(*cards: Card, **changes: object) -> Machine:
    return Machine("an Intel machine", build=XPU_BUILD, cards=cards, **changes)


def test_an_integrated_gpu_cannot_tell_its_free_memory() -> None:
    """Unknown, with the runtime's own words as the source; what can be told is told (pytorch/pytorch#159728)."""
    with simulated_machine("intel-igpu") as host:
        dm = dk.DeviceManager()
        tensor = dm.to(torch.zeros(1 << 20))
        stats = dm.memory_stats()
        with pytest.raises(RuntimeError, match="doesn't support querying the available free memory"):
            host.torch().xpu.mem_get_info(0)
    assert (stats.total, stats.available, stats.allocated, stats.unified) == (28 << 30, None, tensor.nbytes, True)
    assert "doesn't support querying the available free memory" in stats.source


def test_a_discrete_gpu_can() -> None:
    """As on CUDA."""
    with simulated_machine(_machine(ARC)):
        stats = dk.DeviceManager().memory_stats()
    assert (stats.total, stats.available, stats.unified) == (12 << 30, 12 << 30, False)
    assert stats.source == "Level Zero (the whole GPU)"


@pytest.mark.parametrize(
    ("lacks", "dtype"),
    [
        ((), torch.bfloat16),
        (("bfloat16",), torch.float16),
        (("bfloat16", "float16"), torch.float32),
    ],
)
def test_emulated_bfloat16_is_not_preferred(lacks: tuple[str, ...], dtype: torch.dtype) -> None:
    """torch.xpu.is_bf16_supported() is True for any GPU; the chip's own flag decides."""
    with simulated_machine(_machine(Card("An Intel GPU", "8GiB", "xe-hpg", lacks=lacks))) as host:
        assert host.torch().xpu.is_bf16_supported()
        assert dk.DeviceManager().dtype is dtype


def test_integrated_gpus_stand_back() -> None:
    """torch drops them where there is a discrete one, and so does the count."""
    with simulated_machine(_machine(IGPU, ARC)) as host:
        assert len(_verdict().devices) == 1
        host.torch().xpu.init()
        assert dk.DeviceManager()._backend.describe(0).name == ARC.name
    with simulated_machine(_machine(IGPU)):
        assert len(_verdict().devices) == 1


@pytest.mark.parametrize(
    ("mask", "count"), [("0", 1), ("0,1", 2), ("1,1", 1), ("0.0,0.1", 1), ("", 2), ("9", 0), ("-1", 0)]
)
def test_ze_affinity_mask_is_left_to_level_zero(mask: str, count: int) -> None:
    """An empty mask hides nothing there, a repeated entry neither, and ``0.1`` is a tile of card 0."""
    with simulated_machine(_machine(ARC, ARC), env={"ZE_AFFINITY_MASK": mask}):
        verdict = _verdict()
    assert (verdict.usable, len(verdict.devices)) == (count > 0, count)
    assert count or f"ZE_AFFINITY_MASK={mask!r}" in verdict.reason


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ("cpu", "torch 2.13.0+cpu is built without XPU"),
        (_machine(), "no Intel GPU is here: /dev/dri has no device of Intel's"),
        (_machine(Card("AMD", "8GiB", "gfx1100")), "no Intel GPU is here: /dev/dri has no device of Intel's"),
        (_machine(platform="win32"), "Level Zero shows no GPU to torch"),
        (_machine(ARC, forked=True), "the runtime was started before this process was forked"),
    ],
)
def test_each_no_has_its_reason(machine: str | Machine, reason: str) -> None:
    """Build, device files, runtime and fork are told apart, and each has a way out."""
    with simulated_machine(machine):
        verdict = _verdict()
    assert not verdict.usable
    assert verdict.reason.startswith(reason)
    assert verdict.fix


def test_memory_runs_out_in_intels_words() -> None:
    """torch.OutOfMemoryError, and the text says XPU."""
    with simulated_machine(xpu=1, memory="8MiB"):
        with pytest.raises(torch.OutOfMemoryError, match=r"^XPU out of memory\. Tried to allocate 16\.00 MiB\. GPU 0"):
            dk.DeviceManager().to(torch.zeros(4 << 20))


def test_after_the_start_the_devices_are_described() -> None:
    """Name, memory and bfloat16 come from the properties; before the start nothing is asked."""
    with simulated_machine(_machine(ARC)) as host:
        assert _verdict().reason == "1 device: Intel GPU"
        assert not host.torch().xpu.is_initialized()
    with simulated_machine(_machine(ARC)) as host:
        host.torch().xpu.init()
        (device,) = _verdict().devices
    assert (device.name, device.total_memory, device.bfloat16, device.integrated) == (ARC.name, 12 << 30, True, False)


def test_the_generator_is_the_gpus() -> None:
    """It says that it is on the GPU, and one seed is one state."""
    with simulated_machine("intel-igpu"):
        dm = dk.DeviceManager()
        assert str(dm.create_generator(1).device) == "xpu:0"
        assert torch.equal(dm.create_generator(1).get_state(), dm.create_generator(1).get_state())
        assert dm.report()["versions"]["xpu"] == "20250301"


def test_what_else_there_is_to_say() -> None:
    """Matrix units, and whose memory it is."""
    with simulated_machine(xpu=1):
        assert dk.DeviceManager()._backend.traits() == {"matrix units (XMX)": "yes"}
    with simulated_machine("intel-igpu"):
        told = {"matrix units (XMX)": "no", "memory": "shared with the host"}
        assert dk.DeviceManager()._backend.traits() == told


def test_a_torch_without_a_kernel_has_no_such_format() -> None:
    """Which kernels there are is asked of the dispatcher, for they came one by one."""
    with simulated_machine(xpu=1) as host:
        fake, dm = host.torch(), dk.DeviceManager()
        fake._C._dispatch_has_kernel_for_dispatch_key = lambda operation, key: False
        assert [dm.supports(form) for form in ("float8", "int8", "int4")] == ["no"] * 3
