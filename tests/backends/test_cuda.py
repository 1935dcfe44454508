"""CUDA: kernels, drivers, masks, MIG, forks and memory, on machines made from data."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import devicekit as dk
from devicekit.backends import _visible
from devicekit.host import use
from devicekit.testing import MACHINES, Build, Card, FakeHost, Machine, simulated_machine
from devicekit.testing.machines import CUDA_BUILD, WITH_NVML

# Torch 2.9 and later know which code runs on which card; the fakes show what the newest torch has.
of_a_newer_torch = pytest.mark.skipif(
    not hasattr(torch.cuda, "_code_compatible_with_device"), reason="this torch is older than what is compared"
)


def _verdict(backend: str = "cuda") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


def _machine(*cards: Card, architectures: tuple[str, ...] = CUDA_BUILD.architectures, **changes: object) -> Machine:
    build = changes.pop("build", replace(CUDA_BUILD, architectures=architectures))
    known = {"driver": "13.0", "modules": WITH_NVML, "build": build, **changes}
    return Machine("a CUDA machine", cards=cards, **known)


# -- kernels ---------------------------------------------------------------------------------------
@of_a_newer_torch
@pytest.mark.parametrize(
    ("card", "architectures", "runs"),
    [
        ("sm_86", ("sm_80",), True),  # the same major, an older minor
        ("sm_80", ("sm_86",), False),
        ("sm_89", ("sm_86",), True),
        ("sm_87", ("sm_80", "sm_86"), False),  # torch's exception: Orin runs neither
        ("sm_90", ("sm_80", "sm_86"), False),
        ("sm_120", ("sm_90", "compute_90"), True),  # PTX is compiled on the spot for anything as new
        ("sm_90", ("compute_90",), True),
        ("sm_86", ("compute_90",), False),
        (
            "sm_89",
            ("sm_88",),
            True,
        ),  # a code that torch's table does not know warns there, and is read by the same rule
        ("sm_121", ("sm_120",), True),
        ("sm_103", ("sm_100",), True),
        ("sm_101", ("sm_100",), False),
        ("sm_90", ("sm_90a",), True),
        ("sm_75", ("sm_70",), True),
        ("sm_61", (), True),  # nothing is known of the build, so nothing is refused
    ],
)
def test_a_gpu_is_usable_if_the_build_has_kernels_for_it(card: str, architectures: tuple[str, ...], runs: bool) -> None:
    """torch's own table decides, PTX included."""
    with simulated_machine(_machine(Card("A GPU", "8GiB", card), architectures=architectures)):
        verdict = _verdict()
    assert verdict.usable is runs
    assert runs or f"no kernels for A GPU ({card}); it has {', '.join(architectures)}" in verdict.reason


@of_a_newer_torch
def test_the_fix_names_a_build_that_has_kernels() -> None:
    """For a GTX 1080 torch's release table has one CUDA version, and that one is named."""
    with simulated_machine("cuda-old-gpu"):
        verdict = _verdict()
        with pytest.warns(dk.DeviceFallbackWarning, match="no kernels for NVIDIA GeForce GTX 1080"):
            assert str(dk.resolve_device("cuda")) == "cpu"
    assert verdict.fix == "install the same torch from the index cu126"
    assert torch.cuda._code_compatible_with_device(61, 60)
    assert 60 in torch.cuda.PYTORCH_RELEASES_CODE_CC["12.6"]["x86_64"]


@of_a_newer_torch
def test_the_fix_depends_on_the_processor() -> None:
    """For Thor (sm_110) only builds for aarch64 have kernels."""
    card = Card("Thor", "120GiB", "sm_110")
    with simulated_machine(_machine(card, architectures=("sm_80",), processor="aarch64")):
        assert _verdict().fix == "install the same torch from the index cu130 or cu132"
    with simulated_machine(_machine(card, architectures=("sm_80",))):
        assert "a newer torch" in _verdict().fix


@pytest.mark.parametrize(
    ("card", "runs", "other"),
    [
        ("sm_61", True, ""),
        ("sm_60", True, ""),
        ("sm_89", True, ""),
        ("sm_120", False, "a newer"),
        ("sm_37", False, "an"),
    ],
)
def test_torch_before_2_9_has_no_table(card: str, runs: bool, other: str) -> None:
    """There the rule is the same major and no older minor, and the way out is the right direction in time."""
    architectures = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
    build = Build("2.6.0+cu124", cuda="12.4", architectures=architectures)
    with simulated_machine(_machine(Card("A GPU", "8GiB", card), build=build)) as host:
        assert not hasattr(host.torch().cuda, "_code_compatible_with_device")
        verdict = _verdict()
    assert verdict.usable is runs
    assert verdict.fix.startswith(other)


def test_one_of_two_gpus_has_kernels() -> None:
    """The usable one is taken; who asks for the other by its number is told why not."""
    cards = Card("Old", "24GiB", "sm_61"), Card("New", "8GiB", "sm_86")
    with simulated_machine(_machine(*cards), env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}):
        assert str(dk.resolve_device()) == "cuda:1"
        with pytest.warns(dk.DeviceFallbackWarning, match="no kernels for Old"):
            assert str(dk.resolve_device("cuda:0")) == "cuda:1"
        with pytest.raises(dk.DeviceUnavailableError, match="no kernels for Old"):
            dk.resolve_device("cuda:0", strict=True)


def test_a_gpu_that_the_probe_calls_usable_can_still_have_no_kernels() -> None:
    """A real kernel says so: that is what --verify is for."""
    with simulated_machine("cuda-laptop", faults="no_kernels") as host:
        decision = dk.DeviceManager("cuda", strict=True)
        with pytest.raises(RuntimeError, match="CUDA error: no kernel image is available for execution on the device"):
            decision._backend.verify(0)
        assert host.torch().cuda.is_initialized()


# -- drivers ---------------------------------------------------------------------------------------
def test_a_driver_that_is_too_old_says_both_versions() -> None:
    """The CUDA that the driver supports, the CUDA that torch was built for, and both ways out."""
    with simulated_machine("cuda-old-driver"):
        verdict = _verdict()
    assert verdict.reason == (
        "the NVIDIA driver is too old: it supports CUDA 12.4, and torch 2.13.0+cu130 is built for CUDA 13.0"
    )
    assert verdict.fix == "update the driver, or install a torch built for CUDA 12"


def test_a_driver_with_an_older_minor_is_new_enough() -> None:
    """Within one major of CUDA any driver will do."""
    with simulated_machine("cuda-old-driver", driver="13.0", build=replace(CUDA_BUILD, cuda="13.2")):
        assert _verdict().usable


@pytest.mark.parametrize("nvml", [True, False])
def test_a_driver_that_is_too_old_is_told_without_pynvml(nvml: bool) -> None:
    """libcuda knows its own version before it is started; torch's count of GPUs would not notice."""
    with simulated_machine("cuda-old-driver", nvml=nvml, modules=("numpy",)) as host:
        assert "it supports CUDA 12.4" in _verdict().reason
        assert host.torch().cuda._asked_in is None


class _HostOfASilentDriver(FakeHost):
    """A libcuda that does not tell its version."""

    def library_number(self, library: str, function: str) -> int | None:
        return None


def test_without_nvml_the_runtimes_own_words_are_the_reason() -> None:
    """A driver that is too old and tells nothing warns when it is counted; nobody is interrupted by the warning."""
    machine = replace(MACHINES["cuda-old-driver"], nvml=False, modules=("numpy",))
    with use(_HostOfASilentDriver(machine)), warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = _verdict()
    assert verdict.reason.startswith("The NVIDIA driver on your system is too old (found version 12040).")
    assert "Triggered internally" not in verdict.reason


@pytest.mark.parametrize("modules", [WITH_NVML, ("numpy",)])
def test_no_driver(modules: tuple[str, ...]) -> None:
    """Neither NVML nor libcuda: the fix says how to get a driver, in a container, too."""
    with simulated_machine("cuda-no-driver", modules=modules):
        verdict = _verdict()
    assert verdict.reason == "no NVIDIA driver is here: libcuda cannot be loaded"
    assert "--gpus all" in verdict.fix


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_driver_without_nvml_is_asked_through_the_runtime(platform: str) -> None:
    """A Jetson has libcuda and no NVML: the runtime counts, at the price of a later fork."""
    with simulated_machine("jetson", platform=platform) as host:
        assert _verdict().reason == "1 GPU(s), kernels not checked: pip install nvidia-ml-py"
        assert host.torch().cuda._asked_in == os.getpid()
        assert not host.torch().cuda.is_initialized()


def test_without_pynvml_torch_asks_nvml() -> None:
    """torch's own count through libnvidia-ml does not mark the process."""
    with simulated_machine("two-gpus", modules=("numpy",)) as host:
        assert _verdict().reason == "2 GPU(s), kernels not checked: pip install nvidia-ml-py"
        assert host.torch().cuda._asked_in is None


def test_an_nvml_that_is_installed_but_finds_no_driver_is_no_answer() -> None:
    """pynvml without the library falls through to libcuda, and back to what the runtime counts."""
    with simulated_machine("two-gpus", nvml=False) as host:
        assert _verdict().reason.startswith("2 GPU(s)")
        assert host.imports.count("pynvml") >= 1


def test_an_nvml_that_fails_on_a_card_is_no_answer() -> None:
    """A card that has fallen off the bus: torch may know more, and NVML is closed again."""
    with simulated_machine("two-gpus") as host:

        def lost(index: int) -> object:
            raise host.nvml.NVMLError("GPU is lost")

        host.nvml.nvmlDeviceGetHandleByIndex = lost  # type: ignore[attr-defined]
        assert _verdict().reason == "2 GPU(s), kernels not checked: pip install nvidia-ml-py"
        assert host.nvml.sessions == 0


def test_a_driver_without_a_gpu() -> None:
    """The driver is there, and shows nothing."""
    with simulated_machine(cuda=0):
        assert _verdict().reason == "no NVIDIA GPU is here"
    with simulated_machine(cuda=0, modules=("numpy",)) as host:
        assert _verdict().reason == "the NVIDIA driver shows no GPU"
        assert host.torch().cuda._asked_in is None


# -- builds ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ("cpu", "torch 2.13.0+cpu is built without CUDA"),
        ("amd-workstation", "torch 2.13.0+rocm7.1 is built for ROCm 7.1.25424, not CUDA"),
        ("intel-igpu", "torch 2.13.0+xpu is built for XPU 20250301, not CUDA"),
    ],
)
def test_a_torch_without_cuda_says_what_it_is_built_for(machine: str, reason: str) -> None:
    """Not compiled in is another reason than no GPU."""
    with simulated_machine(machine):
        verdict = _verdict()
    assert verdict.reason == reason
    assert "requirements-cuda.txt" in verdict.fix


def test_a_shim_is_not_cuda() -> None:
    """transfer_to_npu makes torch.cuda.is_available() True on a CPU build; devicekit is not taken in."""
    with simulated_machine("cpu", faults="shim") as host:
        assert host.torch().cuda.is_available()
        verdict = _verdict()
        assert "a shim makes torch.cuda answer for another device" in verdict.reason
        assert str(dk.resolve_device()) == "cpu"


# -- masks -----------------------------------------------------------------------------------------
UUIDS = [f"GPU-{c * 8}-0000-1111-2222-333333333333" for c in "abc"]


@pytest.mark.parametrize(
    ("mask", "visible"),
    [
        ("0,1,2", "abc"),
        ("2,0", "ca"),
        (" 1 , 2 ", "bc"),
        ("1gpu,2x", "bc"),  # strtoul: what follows the digits is ignored
        ("+1", "b"),
        ("0,-1,2", "a"),  # a negative entry ends the list
        ("0,junk,2", "a"),
        ("0,7,2", "a"),  # so does one that does not exist
        (UUIDS[1], "b"),
        ("GPU-c", "c"),
        ("GPU-c,GPU-aaaa", "ca"),
        (f"GPU-b,{UUIDS[1][:12]}", ""),  # one device, spelled twice
        ("GPU-b,1", "b"),
        ("1,1", ""),
        ("GPU-", ""),  # ambiguous
        ("GPU-d", ""),
        ("-1", ""),
        ("", ""),
        ("none", ""),
        ("7", ""),
    ],
)
def test_cuda_visible_devices(mask: str, visible: str) -> None:
    """Numbers, UUIDs, shortened UUIDs, repeated, negative and garbage entries are read as CUDA reads them."""
    cards = [Card(letter, "8GiB", "sm_86", uuid=uuid) for letter, uuid in zip("abc", UUIDS, strict=True)]
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": mask}
    with simulated_machine(_machine(*cards), env=env):
        verdict = _verdict()
    assert "".join(d.name for d in verdict.devices) == visible
    told = "hides every GPU" if mask in ("", "-1", "none", "1,1") else "matches none of the 3 GPUs here"
    assert visible or verdict.reason == f"CUDA_VISIBLE_DEVICES={mask!r} {told}"


@contextlib.contextmanager
def _really_set(name: str, value: str) -> Iterator[None]:
    """torch's own parser reads os.environ."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)


ENTRIES = ["0", "1", "2", "10", "-1", "+1", " 1", "1gpu", "gpu", "", "GPU-a", "GPU-ab", "GPU-b", "MIG-a", "MIG-b"]


@given(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=4).map(",".join))
def test_masks_are_read_as_torch_reads_them(mask: str) -> None:
    """devicekit's parser and torch's own give the same list for any mask made of such entries."""
    with _really_set("CUDA_VISIBLE_DEVICES", mask):
        assert _visible.parse(mask) == torch.cuda._parse_visible_devices()


@given(st.lists(st.sampled_from(["GPU-a", "GPU-ab", "GPU-b", "GPU-", "GPU-d"]), min_size=1, max_size=3))
def test_shortened_uuids_are_found_as_torch_finds_them(entries: list[str]) -> None:
    """devicekit and torch agree which device a shortened UUID means."""
    uuids = ["GPU-aa", "GPU-ab", "GPU-bc"]
    ordinals = torch.cuda._transform_uuid_to_ordinals(list(dict.fromkeys(entries)), uuids)
    expected = ordinals if len(set(entries)) == len(entries) else []
    assert _visible.select(",".join(entries), uuids) == expected


# -- MIG -------------------------------------------------------------------------------------------
SLICED = Card(
    "NVIDIA A100-SXM4-80GB",
    "80GiB",
    "sm_80",
    slices=(Card("1g.10gb", "9.5GiB", "sm_80"), Card("3g.40gb", "39.25GiB", "sm_80", free="30GiB")),
)


def test_a_mask_can_name_a_mig_slice() -> None:
    """Its UUID is one device with the slice's own memory, whatever else the mask names."""
    machine = _machine(SLICED)
    first, second = machine.cards[0].slices
    with simulated_machine(machine, env={"CUDA_VISIBLE_DEVICES": f"{second.uuid},{first.uuid}"}):
        (device,) = _verdict().devices
        stats = dk.DeviceManager().memory_stats()
    assert device.name == "NVIDIA A100-SXM4-80GB (MIG slice)"
    assert (device.total_memory, device.free_memory) == (second.total, second.left)
    assert stats.total == second.total


def test_a_mask_can_name_a_mig_slice_that_is_gone() -> None:
    """Slices are made and deleted; one that is gone says so."""
    with simulated_machine(_machine(SLICED), env={"CUDA_VISIBLE_DEVICES": "MIG-gone"}):
        verdict = _verdict()
    assert "names no MIG slice here: Not Found" in verdict.reason
    assert "nvidia-smi -L" in verdict.fix


def test_a_sliced_card_tells_no_memory() -> None:
    """Without a mask CUDA shows a slice, so the card's own memory would be wrong."""
    with simulated_machine(_machine(SLICED)):
        (device,) = _verdict().devices
        assert (device.total_memory, device.free_memory) == (None, None)
        assert dk.DeviceManager().memory_stats().total == SLICED.slices[0].total


# -- which of several --------------------------------------------------------------------------------
def test_the_gpu_with_the_most_free_memory_is_taken() -> None:
    """Not the first one, where NVML can tell without a context."""
    cards = [Card("A GPU", "24GiB", "sm_86", free=free) for free in ("3GiB", "20GiB", "11GiB")]
    with simulated_machine(_machine(*cards)) as host:
        assert str(dk.resolve_device()) == "cuda:1"
        assert str(dk.resolve_device("cuda:2")) == "cuda:2"
        assert not host.torch().cuda.is_initialized()


def test_mixed_cards_are_not_told_apart_without_an_order() -> None:
    """CUDA counts by speed and NVML by bus: until the order is known nothing is said of an index."""
    cards = Card("Slow", "8GiB", "sm_75"), Card("Fast", "24GiB", "sm_90")
    with simulated_machine(_machine(*cards)) as host:
        devices = _verdict().devices
        assert len(devices) == 2
        assert all("CUDA_DEVICE_ORDER=PCI_BUS_ID" in d.name and d.free_memory is None for d in devices)
        assert host.torch().cuda.get_device_name(0) == "Fast"
    with simulated_machine(_machine(*cards), env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) as host:
        assert [d.name for d in _verdict().devices] == ["Slow", "Fast"]
        assert host.torch().cuda.get_device_name(0) == "Slow"


def test_a_uuid_in_the_mask_leaves_no_doubt() -> None:
    """Mixed cards that are named by UUID are told apart."""
    machine = _machine(Card("Slow", "8GiB", "sm_75"), Card("Fast", "24GiB", "sm_90"))
    with simulated_machine(machine, env={"CUDA_VISIBLE_DEVICES": machine.cards[0].uuid}):
        assert [d.name for d in _verdict().devices] == ["Slow"]


def test_an_integrated_gpu_comes_last() -> None:
    """However much memory it has; that it is integrated is known once the runtime has started."""
    cards = Card("Integrated", "60GiB", "sm_87", integrated=True), Card("Discrete", "8GiB", "sm_86")
    with simulated_machine(_machine(*cards, architectures=("sm_86", "sm_87"))) as host:
        host.torch().cuda.init()
        assert [d.integrated for d in _verdict().devices] == [True, False]
        assert str(dk.resolve_device()) == "cuda:1"


def test_the_current_device_is_kept() -> None:
    """Who has called set_device(1) gets cuda:1, though cuda:0 has as much memory."""
    with simulated_machine("two-gpus") as host:
        host.torch().cuda.set_device(1)
        assert str(dk.resolve_device()) == "cuda:1"


# -- no side effect ----------------------------------------------------------------------------------
def test_the_probe_starts_nothing() -> None:
    """No runtime, no context, no marked process, NVML closed again, the environment as it was."""
    with simulated_machine("two-gpus", env={"CUDA_VISIBLE_DEVICES": "1,0"}) as host:
        before = dict(host.env)
        assert _verdict().usable
        cuda = host.torch().cuda
        assert (cuda.is_initialized(), cuda._contexts, cuda._asked_in, host.nvml.sessions) == (False, set(), None, 0)
        assert dict(host.env) == before


def test_emptying_the_cache_before_the_start_makes_no_context() -> None:
    """Nor do waiting and resetting the peak, which torch.cuda refuses there."""
    with simulated_machine("two-gpus") as host:
        dm = dk.DeviceManager("cuda:1")
        dm.empty_cache()
        dm.synchronize()
        dm.reset_peak_memory()
        assert not host.torch().cuda.is_initialized()
        with pytest.raises(RuntimeError, match="invalid argument to reset_peak_memory_stats"):
            host.torch().cuda.reset_peak_memory_stats()


def test_a_process_on_one_gpu_makes_no_context_on_another() -> None:
    """Emptying the cache of cuda:1 leaves cuda:0 alone (pytorch/pytorch#25752), and the current device as it was."""
    with simulated_machine("two-gpus") as host:
        dm = dk.DeviceManager("cuda:1")
        tensor = dm.to(torch.ones(10))
        for ask in (dm.empty_cache, dm.synchronize, dm.memory_stats):
            host.torch().cuda._contexts.clear()
            ask()
            assert host.torch().cuda._contexts == {1}
        assert host.torch().cuda._current == 0
        del tensor


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("started", "modules", "usable"), [(False, WITH_NVML, True), (False, (), True), (True, WITH_NVML, False)]
)
def test_a_forked_child(started: bool, modules: tuple[str, ...], usable: bool) -> None:
    """Probing leaves CUDA usable in a child; a runtime that was started does not, and the child is told so."""
    with simulated_machine("two-gpus", modules=modules) as host:
        assert _verdict().usable
        if started:
            host.torch().cuda.init()
        answer = _in_a_fork(host)
    assert answer == ("usable" if usable else "the runtime was started before this process was forked")


def _in_a_fork(host: FakeHost) -> str:
    """What a child says of CUDA in one breath; it ends without pytest's and torch's farewells."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: this process has threads
        child = os.fork()
    if not child:
        from devicekit.backends.cuda import CudaBackend

        answer = CudaBackend(host).probe()
        os.write(write, ("usable" if answer.usable else answer.reason.partition(",")[0]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        answer = told.read()
    os.waitpid(child, 0)
    return answer


def test_a_process_that_was_forked_too_late_says_so() -> None:
    """The reason is the fork, and the fix is spawn."""
    with simulated_machine("cuda-laptop", forked=True) as host:
        verdict = _verdict()
        with pytest.raises(RuntimeError, match="Cannot re-initialize CUDA in forked subprocess"):
            host.torch().cuda.init()
    assert "before this process was forked" in verdict.reason
    assert "spawn" in verdict.fix


# -- one device --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "architecture", "dtype"),
    [
        ("NVIDIA GeForce GTX 1080", "sm_61", torch.float32),
        ("Tesla V100-SXM2-16GB", "sm_70", torch.float16),
        ("NVIDIA GeForce GTX 1660 SUPER", "sm_75", torch.float32),
        ("NVIDIA GeForce RTX 2080 Ti", "sm_75", torch.float16),
        ("NVIDIA A100-SXM4-80GB", "sm_80", torch.bfloat16),
        ("NVIDIA GeForce RTX 5090", "sm_120", torch.bfloat16),
    ],
)
def test_the_dtype_is_native_and_safe(name: str, architecture: str, dtype: torch.dtype) -> None:
    """bfloat16 only from Ampere on, though torch calls emulation support; no half precision on the GTX 16xx."""
    build = Build("2.13.0+cu126", cuda="12.6", architectures=("sm_60", "sm_70", "sm_75", "sm_80", "sm_90", "sm_120"))
    with simulated_machine(_machine(Card(name, "8GiB", architecture), build=build)) as host:
        assert dk.DeviceManager("cuda", strict=True).dtype is dtype
        assert host.torch().cuda.is_bf16_supported() is True
        (before,) = _verdict().devices
        started = dk.DeviceManager("cuda")._backend.describe(0)
    assert before.bfloat16 is started.bfloat16 is (dtype is torch.bfloat16)
    assert before.total_memory == started.total_memory == 8 << 30


def test_memory_is_counted_and_runs_out() -> None:
    """Figures follow the tensors, the peak stays until it is reset, and the limit raises torch's own error."""
    with simulated_machine(cuda=1, memory="64MiB"):
        dm = dk.DeviceManager()
        first = dm.to(torch.zeros(4 << 20))
        stats = dm.memory_stats()
        assert (stats.total, stats.allocated, stats.reserved, stats.peak) == (64 << 20, *[16 << 20] * 3)
        assert stats.available == 48 << 20
        assert stats.source == "cudaMemGetInfo (the whole GPU)"
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 60.00 MiB. GPU 0 has"):
            dm.to(torch.zeros(15 << 20))
        del first
        assert (dm.memory_stats().allocated, dm.memory_stats().peak) == (0, 16 << 20)
        dm.reset_peak_memory()
        dm.empty_cache()
        assert (dm.memory_stats().peak, dm.memory_stats().reserved) == (0, 0)


def test_the_generator_and_the_random_state_are_the_devices() -> None:
    """A generator says where it is; the state of the chosen GPU's own generator is taken and brought back."""
    with simulated_machine("two-gpus") as host:
        dm = dk.DeviceManager("cuda:1")
        assert (str(dm.create_generator(3).device), dm.create_generator(3).initial_seed()) == ("cuda:1", 3)
        host.torch().cuda.manual_seed_all(1)
        before = dm.rng_state()
        host.torch().cuda.manual_seed_all(2)
        dm.set_rng_state(before)
        assert torch.equal(host.torch().cuda.get_rng_state(1), before.device)
        assert not torch.equal(host.torch().cuda.get_rng_state(0), before.device)


def test_unified_memory_that_nvml_does_not_know() -> None:
    """A GB10 answers "not supported" to NVML: unknown, not zero, and still usable."""
    card = Card("NVIDIA GB10", "120GiB", "sm_121", free="40GiB", integrated=True)
    with simulated_machine(_machine(card), host_memory="128GiB", host_free="125GiB"):
        assert dk.DeviceManager().memory_stats().available == 120 << 30
    with simulated_machine(_machine(card), host_memory="128GiB", host_free="90GiB"):
        (device,) = _verdict().devices
        stats = dk.DeviceManager().memory_stats()
    assert (device.total_memory, device.free_memory, device.usable) == (None, None, True)
    assert (stats.unified, stats.available) == (True, 90 << 30)
    assert stats.source.endswith("available memory: psutil (the host)")


def test_a_driver_that_cannot_tell_its_memory() -> None:
    """Free memory is None with the reason as its source; the total comes from the device's properties."""
    with simulated_machine("cuda-laptop", faults="no_memory_query"):
        stats = dk.DeviceManager().memory_stats()
    assert (stats.total, stats.available) == (6 << 30, None)
    assert "free memory unknown: CUDA error: operation not supported" in stats.source


def test_the_versions_name_the_driver() -> None:
    """The CUDA of torch, and the driver where NVML tells it."""
    with simulated_machine("cuda-laptop"):
        assert (
            dk.DeviceManager().report()["versions"] | {"cuda": "13.0", "driver": "580.65.06"}
            == (dk.DeviceManager().report()["versions"])
        )
    with simulated_machine("jetson"):
        assert "driver" not in dk.DeviceManager().report()["versions"]


def test_every_cuda_machine_is_explained_on_every_platform() -> None:
    """No preset makes a probe raise, on Windows neither."""
    for name, machine in MACHINES.items():
        for platform in ("linux", "win32"):
            if machine.build is not None and machine.build.cuda:
                with simulated_machine(machine, platform=platform):
                    assert "its probe raised" not in _verdict().reason, (name, platform, sys.platform)


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ("cuda-laptop", {"compute capability": "8.6"}),
        ("jetson", {"compute capability": "8.7", "memory": "shared with the host"}),
    ],
)
def test_what_else_there_is_to_say(machine: str, told: dict[str, str]) -> None:
    """The compute capability, and whose memory it is."""
    with simulated_machine(machine):
        assert dk.DeviceManager()._backend.traits() == told


def test_the_cards_that_compute_nan_are_warned_of() -> None:
    """float16 is native on a GTX 16xx, and still no good idea."""
    card = Card("NVIDIA GeForce GTX 1660 SUPER", "6GiB", "sm_75")
    with simulated_machine(replace(MACHINES["cuda-laptop"], cards=(card,))):
        dm = dk.DeviceManager()
        assert (dm.supports("float16"), dm.dtype) == ("native", torch.float32)
        assert "NaN" in dm._backend.traits()["warning"]
