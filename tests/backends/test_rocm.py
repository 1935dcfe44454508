"""ROCm: gfx names, two masks on top of each other, the kernel's table, and a device string that is CUDA's."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import devicekit as dk
from devicekit.testing import Card, Machine, simulated_machine
from devicekit.testing.machines import ROCM_BUILD

SWITCH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


def _verdict(backend: str = "rocm") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


def _machine(*cards: Card, **changes: object) -> Machine:
    return Machine("an AMD machine", build=ROCM_BUILD, cards=cards, **changes)


FOUR = [Card(name, "16GiB", "gfx1100", uuid=f"GPU-{name * 16}") for name in "abcd"]


# -- the name ----------------------------------------------------------------------------------------
def test_the_device_string_is_cudas() -> None:
    """Asking for cuda on a ROCm torch gives the AMD GPU, and that is no fallback."""
    with simulated_machine("amd-workstation"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in ("cuda", "rocm", "hip:0", "gpu", 0, torch.device("cuda")):
            dm = dk.DeviceManager(asked, strict=True)
            assert (dm.backend, str(dm.device), dm.warning) == ("rocm", "cuda:0", None)


def test_rocm_on_a_cuda_torch_is_a_fallback() -> None:
    """Who says rocm means AMD: an NVIDIA GPU instead comes with a warning."""
    with simulated_machine("cuda-laptop"):
        with pytest.warns(dk.DeviceFallbackWarning, match=r"built for CUDA 13\.0, not ROCm\. cuda:0 is"):
            assert dk.DeviceManager("rocm").backend == "cuda"
        with pytest.raises(dk.DeviceUnavailableError, match=r"requirements-rocm\.txt"):
            dk.resolve_device("rocm", strict=True)


def test_without_torch_for_it_the_reason_is_the_build() -> None:
    """A CPU build says so."""
    with simulated_machine("cpu"):
        assert _verdict().reason == "torch 2.13.0+cpu is built without ROCm"


# -- chips ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("gfx", "dtype"),
    [
        ("gfx906", torch.float16),
        ("gfx908", torch.bfloat16),
        ("gfx90a", torch.bfloat16),
        ("gfx942", torch.bfloat16),
        ("gfx1030", torch.float16),
        ("gfx1100", torch.bfloat16),
        ("gfx1201", torch.bfloat16),
    ],
)
def test_the_chips_name_decides_and_not_its_capability(gfx: str, dtype: torch.dtype) -> None:
    """gfx1030 has "capability" (10, 3) and no bfloat16; torch calls it supported on every AMD GPU."""
    with simulated_machine(_machine(Card("An AMD GPU", "16GiB", gfx))) as host:
        assert dk.DeviceManager().dtype is dtype
        assert _verdict().devices[0].architecture == gfx
        assert _verdict().devices[0].bfloat16 is (dtype is torch.bfloat16)
        assert host.torch().cuda.is_bf16_supported(including_emulation=False)
        assert host.torch().cuda.get_device_capability() > (8, 6)


def test_the_name_loses_its_features() -> None:
    """gcnArchName carries switches behind a colon."""
    with simulated_machine(_machine(Card("Instinct MI210", "64GiB", "gfx90a"))) as host:
        assert host.torch().cuda.get_device_properties(0).gcnArchName == "gfx90a:sramecc+:xnack-"
        assert _verdict().devices[0].architecture == "gfx90a"


@pytest.mark.parametrize(("version", "gfx"), [("10.3.0", "gfx1030"), ("11.0.0", "gfx1100"), ("9.0.10", "gfx90a")])
def test_hsa_override_changes_what_the_chip_is_taken_for(version: str, gfx: str) -> None:
    """The override is what the runtime sees, before its start and after."""
    machine = _machine(Card("RX 6600", "8GiB", "gfx1032"))
    with simulated_machine(machine, env={"HSA_OVERRIDE_GFX_VERSION": version}) as host:
        assert _verdict().devices[0].architecture == gfx
        host.torch().cuda.init()
        assert dk.DeviceManager()._backend.describe(0).architecture == gfx


def test_a_chip_without_kernels_fails_at_the_first_one() -> None:
    """is_available() says yes there (pytorch/pytorch#147626); description and verification say what is wrong."""
    machine = _machine(Card("RX 6600", "8GiB", "gfx1032"))
    with simulated_machine(machine) as host:
        backend = dk.DeviceManager("rocm", strict=True)._backend
        assert host.torch().cuda.is_available()
        with pytest.raises(RuntimeError, match="HIP error: invalid device function"):
            backend.verify(0)
        described = backend.describe(0)
        assert "no kernels for gfx1032" in described.reason
        assert "HSA_OVERRIDE_GFX_VERSION" in described.fix
    with simulated_machine(machine, env={"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}):
        dk.DeviceManager("rocm", strict=True)._backend.verify(0)


# -- masks -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("masks", "visible"),
    [
        ({}, "abcd"),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, "cd"),
        ({"HIP_VISIBLE_DEVICES": "3,1"}, "db"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "b"),
        ({"ROCR_VISIBLE_DEVICES": "1,2,3", "HIP_VISIBLE_DEVICES": "2,0"}, "db"),  # HIP counts in what ROCR leaves
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, "c"),
        ({"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "3"}, ""),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "3"}, "a"),  # HIP's word before CUDA's
        ({"ROCR_VISIBLE_DEVICES": "GPU-bbbb"}, "b"),
        ({"ROCR_VISIBLE_DEVICES": "GPU-bbbb,GPU-dddd", "HIP_VISIBLE_DEVICES": "1"}, "d"),
        ({"HIP_VISIBLE_DEVICES": ""}, ""),
        ({"ROCR_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"ROCR_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "0"}, ""),
    ],
)
def test_the_masks_stack(masks: dict[str, str], visible: str) -> None:
    """ROCR_VISIBLE_DEVICES comes first, HIP_ or CUDA_VISIBLE_DEVICES chooses within it."""
    memory = {f"{n}GiB": name for n, name in zip((16, 17, 18, 19), "abcd", strict=True)}
    cards = [replace(card, memory=size) for card, size in zip(FOUR, memory, strict=True)]
    with simulated_machine(_machine(*cards), env=masks) as host:
        verdict = _verdict()
        assert "".join(memory[f"{d.total_memory >> 30}GiB"] for d in verdict.devices if d.total_memory) == visible
        assert host.torch().cuda.device_count() == len(visible)
    emptied = "-1" in masks.values() or "" in masks.values()
    assert visible or ("hides every GPU" if emptied else "matches none of the") in verdict.reason
    assert visible or "VISIBLE_DEVICES" in verdict.fix


def test_more_gpus_than_are_left_are_refused() -> None:
    """More entries in HIP_VISIBLE_DEVICES than ROCR_VISIBLE_DEVICES leaves: torch refuses that, so it is a no."""
    masks = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0,1"}
    with simulated_machine(_machine(*FOUR), env=masks):
        verdict = _verdict()
    assert verdict.reason == "HIP_VISIBLE_DEVICES names 2 GPUs, of which ROCR_VISIBLE_DEVICES leaves 1"
    assert "applied first" in verdict.fix


# -- the kernel's table ------------------------------------------------------------------------------
def test_the_gpu_with_the_most_free_memory_is_taken() -> None:
    """The display driver's files tell it without a runtime."""
    cards = [replace(card, free=free) for card, free in zip(FOUR, ("2GiB", "9GiB", "12GiB", "1GiB"), strict=True)]
    with simulated_machine(_machine(*cards)) as host:
        assert str(dk.resolve_device()) == "cuda:2"
        assert [d.free_memory for d in _verdict().devices] == [n << 30 for n in (2, 9, 12, 1)]
        assert not host.torch().cuda.is_initialized()
        assert host.torch().cuda._asked_in is None


def test_a_node_that_may_not_be_read_is_another_tenants() -> None:
    """It is left out, as HIP leaves it out; the others are counted on."""
    cards = [FOUR[0], replace(FOUR[1], hidden=True), FOUR[2]]
    with simulated_machine(_machine(*cards)) as host:
        assert len(_verdict().devices) == host.torch().cuda.device_count() == 2
    with simulated_machine(_machine(replace(FOUR[0], hidden=True))):
        assert "shows no compute node" in _verdict().reason


def test_memory_that_the_display_driver_does_not_tell_is_unknown() -> None:
    """In a container /sys/class/drm may be missing."""
    with simulated_machine("amd-workstation") as host:
        (host.root / "sys/class/drm/renderD128/device/mem_info_vram_used").unlink()
        (device,) = _verdict().devices
    assert (device.total_memory, device.free_memory, device.usable) == (None, None, True)


def test_no_gpu_in_the_table() -> None:
    """The fix says how to get one into a container."""
    with simulated_machine(rocm=0):
        verdict = _verdict()
    assert "the amdgpu kernel driver shows no compute node" in verdict.reason
    assert "--device=/dev/kfd" in verdict.fix


def test_windows_has_no_such_table() -> None:
    """There the runtime counts."""
    with simulated_machine("amd-workstation", platform="win32") as host:
        assert _verdict().reason == "1 device: AMD GPU"
        assert host.torch().cuda._asked_in is not None


# -- one device --------------------------------------------------------------------------------------
def test_memory_runs_out_in_hips_words() -> None:
    """torch.OutOfMemoryError, and the text says HIP."""
    with simulated_machine(rocm=1, memory="8MiB"):
        dm = dk.DeviceManager()
        with pytest.raises(torch.OutOfMemoryError, match=r"^HIP out of memory\. Tried to allocate 16\.00 MiB\."):
            dm.to(torch.zeros(4 << 20))
        assert dm.memory_stats().source == "hipMemGetInfo (the whole GPU)"


def test_a_process_that_was_forked_too_late_says_so() -> None:
    """As on CUDA."""
    with simulated_machine("amd-workstation", forked=True):
        assert "before this process was forked" in _verdict().reason


def test_after_the_start_the_runtime_tells() -> None:
    """A started runtime knows the names."""
    with simulated_machine("amd-workstation") as host:
        host.torch().cuda.init()
        assert _verdict().reason == "1 device: AMD Radeon RX 7900 XTX"


def test_the_versions_are_rocms() -> None:
    """HIP as torch was built for it, ROCm as it is installed."""
    with simulated_machine("amd-workstation"):
        versions = dk.DeviceManager().report()["versions"]
    assert (versions["hip"], versions["rocm"]) == ("7.1.25424", "7.1.0")


# -- what else there is to say ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("gfx", "env", "float8", "attention"),
    [
        ("gfx942", {}, "float8_e4m3fnuz, float8_e5m2fnuz", "yes"),
        ("gfx950", {}, "float8_e4m3fn, float8_e5m2", "yes"),
        ("gfx1201", {}, "float8_e4m3fn, float8_e5m2", "yes"),
        ("gfx1100", {}, "none", "yes"),
        ("gfx1101", {}, "none", f"it is experimental on gfx1101: {SWITCH}=1 before the start"),
        ("gfx1101", {SWITCH: "0"}, "none", f"it is experimental on gfx1101: {SWITCH}=1 before the start"),
        ("gfx1101", {SWITCH: "1"}, "none", "yes"),
        ("gfx1030", {SWITCH: "1"}, "none", "AOTriton has no attention for gfx1030"),
    ],
)
def test_float8_types_and_attention_are_told(gfx: str, env: dict[str, str], float8: str, attention: str) -> None:
    """Which float8 types the chip multiplies, and the switch that makes experimental attention work."""
    with simulated_machine(rocm=1, architecture=gfx, env=env, build=replace(ROCM_BUILD, architectures=())):
        told = dk.DeviceManager()._backend.traits()
    assert told["float8 types"] == float8
    assert told["flash and memory-efficient attention"] == attention
    assert "warning" not in told


def test_a_pretended_chip_is_warned_of() -> None:
    """The variable is named with its value and the chip that it stands for."""
    with simulated_machine(rocm=1, architecture="gfx1031", env={"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}):
        told = dk.DeviceManager()._backend.traits()["warning"]
    assert told.startswith("HSA_OVERRIDE_GFX_VERSION=10.3.0 ")
    assert "gfx1030" in told


@pytest.mark.parametrize(
    ("gfx", "value", "told"), [("gfx942", "", True), ("gfx942", "1", False), ("gfx1100", "", False)]
)
def test_the_switch_for_tf32_is_told_where_it_may_be_needed(gfx: str, value: str, told: bool) -> None:
    """Only MI300 has TF32, and some torch asks for a variable."""
    with simulated_machine(rocm=1, architecture=gfx, env={"HIPBLASLT_ALLOW_TF32": value}):
        assert ("HIPBLASLT_ALLOW_TF32=1" in dk.DeviceManager()._backend.traits().get("tf32", "")) is told
