"""FakeTorch against the facts: what starts the runtime, what raises before it, and what is the real torch's."""

from __future__ import annotations

import inspect
import os
import pickle
import platform
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

import devicekit as dk
from devicekit.formats import attempt
from devicekit.testing import MACHINES, Build, Card, FakeTorch, Machine, simulated_machine
from devicekit.testing.fake_cuda import FakeCuda
from devicekit.testing.fake_mps import FakeMps, FakeMpsBackend
from devicekit.testing.fake_runtime import FakeRuntime
from devicekit.testing.fake_xpu import FakeXpu
from devicekit.testing.machines import CUDA_BUILD, accelerated

# Torch 2.9 and later know which code runs on which card; the fakes show what the newest torch has.
of_a_newer_torch = pytest.mark.skipif(
    not hasattr(torch.cuda, "_code_compatible_with_device"), reason="this torch is older than what is compared"
)


def _fake(machine: str | Machine, **changes: Any) -> FakeTorch:
    return FakeTorch(replace(MACHINES[machine] if isinstance(machine, str) else machine, **changes), torch)


def _npu(machine: str | Machine = "ascend") -> FakeTorch:
    fake = _fake(machine)
    fake._register_npu()
    return fake


# -- no drift --------------------------------------------------------------------------------------
@of_a_newer_torch
@pytest.mark.parametrize(
    ("fake", "real"),
    [(FakeCuda, torch.cuda), (FakeXpu, torch.xpu), (FakeMps, torch.mps), (FakeMpsBackend, torch.backends.mps)],
)
def test_the_fakes_have_no_name_that_torch_has_not(fake: type, real: Any) -> None:
    """A test on the fake must not pass by a name that no torch has; the parameters are torch's, too."""
    for name, method in inspect.getmembers(fake):
        if name.startswith("_"):
            continue
        assert hasattr(real, name), name
        if inspect.isfunction(method) and inspect.isfunction(getattr(real, name)):
            ours = [p for p in inspect.signature(method).parameters if p != "self"]
            assert set(ours) <= set(inspect.signature(getattr(real, name)).parameters), name


@of_a_newer_torch
def test_the_rest_is_the_real_torch() -> None:
    """dtypes, tensors, modules and torch's own tables fall through."""
    fake = _fake("two-gpus")
    assert fake.float16 is torch.float16
    assert fake.Tensor is torch.Tensor
    assert fake.nn is torch.nn
    assert fake.cuda.PYTORCH_RELEASES_CODE_CC is torch.cuda.PYTORCH_RELEASES_CODE_CC
    assert fake.cuda._code_compatible_with_device(86, 80)
    with pytest.raises(AttributeError):
        fake.no_such_name  # noqa: B018


@of_a_newer_torch
@pytest.mark.parametrize("path", ["cuda._code_compatible_with_device", "cpu.get_capabilities", "backends.mps.get_name"])
def test_an_older_torch_lacks_what_came_later(path: str) -> None:
    """Code for older releases is run on a torch that looks older."""
    old, new = (_fake("mac", build=Build(version, mps=True)) for version in ("2.6.0", "2.13.0"))
    for fake, there in ((old, False), (new, True)):
        thing: Any = fake
        *modules, name = path.split(".")
        for module in modules:
            thing = getattr(thing, module)
        assert hasattr(thing, name) is there


# -- the build -------------------------------------------------------------------------------------
def test_the_configuration_has_gencode_flags() -> None:
    """As in the CUDA wheel's own text; PTX has compute_ on both sides."""
    text = _fake("two-gpus", build=replace(CUDA_BUILD, architectures=("sm_80", "compute_90"))).__config__.show()
    assert "-gencode;arch=compute_80,code=sm_80;-gencode;arch=compute_90,code=compute_90" in text
    assert "gencode" not in _fake("cpu").__config__.show()


def test_the_versions_are_the_builds() -> None:
    """The rest of torch.version is the real one's."""
    fake = _fake("amd-workstation")
    assert (fake.__version__, fake.version.cuda, fake.version.hip) == ("2.13.0+rocm7.1", None, "7.1.25424")
    assert fake.version.git_version == torch.version.git_version
    assert repr(fake) == "<torch 2.13.0+rocm7.1 of a simulated machine: amd-workstation>"


# -- starting --------------------------------------------------------------------------------------
QUIET: dict[str, Callable[[Any], object]] = {
    "is_initialized": lambda r: r.is_initialized(),
    "is_available": lambda r: r.is_available(),
    "device_count": lambda r: r.device_count(),
    "memory_allocated": lambda r: r.memory_allocated(),
    "max_memory_allocated": lambda r: r.max_memory_allocated(),
    "memory_reserved": lambda r: r.memory_reserved(),
    "memory_stats": lambda r: r.memory_stats(),
    "empty_cache": lambda r: r.empty_cache(),
    "manual_seed_all": lambda r: r.manual_seed_all(1),
}
STARTING: dict[str, Callable[[Any], object]] = {
    "init": lambda r: r.init(),
    "current_device": lambda r: r.current_device(),
    "set_device": lambda r: r.set_device(0),
    "get_device_properties": lambda r: r.get_device_properties(0),
    "get_device_name": lambda r: r.get_device_name(0),
    "mem_get_info": lambda r: r.mem_get_info(0),
    "synchronize": lambda r: r.synchronize(),
    "get_rng_state": lambda r: r.get_rng_state(),
    "device": lambda r: r.device(0).__enter__(),
    "set_per_process_memory_fraction": lambda r: r.set_per_process_memory_fraction(1.0),
}


def _runtimes() -> list[FakeRuntime]:
    xpu = accelerated("xpu", 1)
    return [_fake("two-gpus").cuda, _fake("amd-workstation").cuda, _fake(xpu).xpu, _npu().npu]


@pytest.mark.parametrize("question", QUIET)
def test_what_does_not_start_the_runtime(question: str) -> None:
    """Counts are asked of the driver, memory figures are 0 or empty, and nothing is initialised."""
    for runtime in _runtimes():
        answer = QUIET[question](runtime)
        assert not runtime.is_initialized()
        assert not answer or question in ("is_available", "device_count")


@pytest.mark.parametrize("question", STARTING)
def test_what_starts_the_runtime(question: str) -> None:
    """As in torch's Python files: each of these calls _lazy_init, or a C function that does."""
    for runtime in _runtimes():
        STARTING[question](runtime)
        assert runtime.is_initialized()


def test_resetting_the_peak_raises_before_the_start() -> None:
    """Unlike its neighbours."""
    for runtime in _runtimes():
        with pytest.raises(RuntimeError, match="invalid argument to reset_peak_memory_stats"):
            runtime.reset_peak_memory_stats()
        runtime.init()
        runtime.reset_peak_memory_stats()


@pytest.mark.parametrize(
    ("machine", "error", "words"),
    [
        ("cpu", AssertionError, "Torch not compiled with CUDA enabled"),
        ("cuda-no-driver", RuntimeError, "Found no NVIDIA driver on your system"),
        (accelerated("cuda", 0), RuntimeError, "No CUDA GPUs are available"),
        (replace(MACHINES["two-gpus"], forked=True), RuntimeError, "Cannot re-initialize CUDA in forked subprocess"),
    ],
)
def test_starting_what_is_not_there_raises_as_torch_does(machine: Any, error: type[Exception], words: str) -> None:
    """Four reasons, four texts."""
    fake = _fake(machine)
    with pytest.raises(error, match=words):
        fake.cuda.init()
    assert not fake.cuda.is_available() or fake._machine.forked


def test_a_driver_that_is_too_old_warns_once() -> None:
    """From C++, when the runtime counts."""
    fake = _fake("cuda-old-driver")
    with pytest.warns(UserWarning, match=r"CUDA initialization: The NVIDIA driver .* \(found version 12040\)"):
        assert not fake.cuda.is_available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fake.cuda.is_available()
    assert fake.cuda.device_count() == 1  # NVML does not know better


@of_a_newer_torch
def test_starting_on_a_gpu_without_kernels_only_warns() -> None:
    """is_available() stays True, and the first kernel raises."""
    fake = _fake("cuda-old-gpu")
    with pytest.warns(UserWarning, match=r"Found GPU0 NVIDIA GeForce GTX 1080 .* \(CC\) 6\.1\."):
        fake.cuda.init()
    assert fake.cuda.is_available()
    with pytest.raises(torch.AcceleratorError, match="no kernel image is available"):
        fake._launch(fake.device("cuda:0"))


def test_who_marks_the_process() -> None:
    """is_available and get_arch_list do, a count through NVML does not, and the variable for it is honoured."""
    for ask, marked in ((lambda c: c.is_available(), True), (lambda c: c.get_arch_list(), True)):
        cuda = _fake("two-gpus").cuda
        ask(cuda)
        assert (cuda._asked_in == os.getpid()) is marked
    cuda = _fake("two-gpus").cuda
    assert cuda.device_count() == 2
    assert cuda._asked_in is None
    cuda = _fake("two-gpus", env={"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}).cuda
    assert cuda.is_available()
    assert cuda._asked_in is None
    assert _fake("cpu").cuda.get_arch_list() == []


def test_the_count_is_kept_once_the_runtime_has_started() -> None:
    """A mask that is set later changes nothing then."""
    env: dict[str, str] = {}
    fake = FakeTorch(MACHINES["two-gpus"], torch, env=env)
    env["CUDA_VISIBLE_DEVICES"] = "1"
    assert fake.cuda.device_count() == 1
    del env["CUDA_VISIBLE_DEVICES"]
    fake.cuda.init()
    env["CUDA_VISIBLE_DEVICES"] = ""
    assert fake.cuda.device_count() == 2


def test_every_thread_has_a_current_device() -> None:
    """It starts with the first one, whatever another thread has set; a block gives back what was."""
    cuda = _fake("two-gpus").cuda
    cuda.set_device(1)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(cuda.current_device()))
    thread.start()
    thread.join()
    with cuda.device(0):
        seen.append(cuda.current_device())
    assert [*seen, cuda.current_device()] == [0, 0, 1]


def test_a_device_that_does_not_exist() -> None:
    """The driver's text for choosing it, torch's for asking about it."""
    cuda = _fake("two-gpus").cuda
    with pytest.raises(RuntimeError, match="CUDA error: invalid device ordinal"):
        cuda.set_device(2)
    with pytest.raises(AssertionError, match="Invalid device id"):
        cuda.get_device_properties(2)


# -- what chips say ------------------------------------------------------------------------------------
def test_capabilities_mean_three_things() -> None:
    """A tuple on CUDA, the gfx major on ROCm, a dict on XPU."""
    assert _fake("two-gpus").cuda.get_device_capability(1) == (8, 6)
    assert _fake("amd-workstation").cuda.get_device_capability() == (11, 0)
    assert _fake("intel-igpu").xpu.get_device_capability()["has_fp64"] is False


def test_bfloat16_is_called_supported_where_it_is_emulated() -> None:
    """The default counts emulation; on ROCm it is True whatever one asks."""
    turing = _fake(accelerated("cuda", 1, architecture="sm_75")).cuda
    assert turing.is_bf16_supported()
    assert not turing.is_bf16_supported(including_emulation=False)
    assert _fake(accelerated("rocm", 0)).cuda.is_bf16_supported(including_emulation=False)
    assert not _fake("cpu").cuda.is_bf16_supported()
    xpu = _fake(accelerated("xpu", 1), cards=(Card("Gen9", "1GiB", "xe-gen9", lacks=("bfloat16",)),)).xpu
    assert (xpu.is_bf16_supported(), xpu.is_bf16_supported(including_emulation=False)) == (True, False)


# -- memory ----------------------------------------------------------------------------------------
def test_memory_is_counted_by_storage() -> None:
    """Views cost nothing, blocks are 512 bytes, segments 2 MiB, and freeing is seen at once."""
    fake = _fake("two-gpus")
    memory = fake._start(fake.device("cuda", 1))
    assert memory is not None
    kept = memory.copy(torch.zeros(100), torch.float32)
    view = kept[10:]
    assert memory.copy(view, torch.float32) is view
    assert (fake.cuda.memory_allocated(1), fake.cuda.memory_allocated(0)) == (512, 0)
    assert fake.cuda.memory_reserved(1) == 2 << 20
    assert fake.cuda.mem_get_info(1) == ((24 << 30) - (2 << 20), 24 << 30)
    del kept
    assert fake.cuda.memory_allocated(1) == 512
    del view
    assert (fake.cuda.memory_allocated(1), fake.cuda.max_memory_allocated(1)) == (0, 512)


def test_a_part_of_the_card_can_be_the_limit() -> None:
    """set_per_process_memory_fraction, 0 to 1."""
    fake = _fake(accelerated("cuda", 1, "8MiB"))
    fake.cuda.set_per_process_memory_fraction(0.5)
    memory = fake._start(fake.device("cuda"))
    assert memory is not None
    with pytest.raises(torch.OutOfMemoryError):
        memory.copy(torch.zeros(5 << 18), torch.float32)
    with pytest.raises(ValueError, match="Allowed range: 0~1"):
        fake.cuda.set_per_process_memory_fraction(1.5)


def test_other_processes_take_their_part() -> None:
    """What they hold cannot be allocated, and is not free."""
    fake = _fake(accelerated("cuda", 1), cards=(Card("A GPU", "8MiB", free="3MiB"),))
    memory = fake._start(fake.device("cuda"))
    assert memory is not None
    assert fake.cuda.mem_get_info() == (3 << 20, 8 << 20)
    with pytest.raises(torch.OutOfMemoryError, match=r"total capacity of 8\.00 MiB of which 3\.00 MiB is free"):
        memory.copy(torch.zeros(1 << 20), torch.float32)


def test_meta_tensors_have_no_data_to_move() -> None:
    """As on every real device."""
    fake = _fake("two-gpus")
    memory = fake._start(fake.device("cuda"))
    assert memory is not None
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        memory.copy(torch.zeros(2, device="meta"), torch.float32)


# -- devices and generators --------------------------------------------------------------------------
def test_npu_is_a_word_once_its_plugin_is_there() -> None:
    """torch refuses it before; the stand-in can be compared, hashed, pickled and told by its class's name."""
    with pytest.raises(RuntimeError, match="Expected one of cpu"):
        _fake("ascend").device("npu:0")
    assert not hasattr(_fake("ascend"), "npu")
    fake = _npu()
    device = fake.device("npu:0")
    assert (str(device), repr(device)) == ("npu:0", "device(type='npu', index=0)")
    assert (device.type, device.index, str(fake.device("npu"))) == ("npu", 0, "npu")
    assert device == fake.device("npu", 0) == fake.device(device)
    assert len({device, fake.device("npu", 0)}) == 1
    assert pickle.loads(pickle.dumps(device)) == device
    assert isinstance(device, fake.device)
    assert (type(device).__module__, type(device).__name__) == ("torch", "device")


def test_other_devices_are_real() -> None:
    """A legal word makes a real torch.device."""
    fake = _fake("cpu")
    assert type(fake.device("cuda", 1)) is torch.device
    assert isinstance(torch.device("cpu"), fake.device)


@pytest.mark.parametrize(
    ("machine", "asked", "device"),
    [
        ("two-gpus", "cuda", "cuda:0"),
        ("two-gpus", "cuda:1", "cuda:1"),
        ("intel-igpu", "xpu", "xpu:0"),
        ("mac", "mps", "mps:0"),
    ],
)
def test_generators_say_where_they_are(machine: str, asked: str, device: str) -> None:
    """They are real generators, seeded like any, and survive pickling and cloning."""
    generator = _fake(machine).Generator(device=asked)
    assert isinstance(generator, torch.Generator)
    assert str(generator.device) == device
    generator.manual_seed(5)
    for twin in (generator.clone_state(), pickle.loads(pickle.dumps(generator))):
        assert str(twin.device) == device
        assert torch.equal(twin.get_state(), generator.get_state())
    assert generator.initial_seed() == 5


def test_a_generator_needs_its_device() -> None:
    """On a machine without one it is an error, as in torch; the CPU's is always there."""
    fake = _fake("cpu")
    for name in ("cuda", "xpu", "mps"):
        with pytest.raises(RuntimeError, match="generator"):
            fake.Generator(name)
    assert fake.Generator().device == fake.Generator(None).device == torch.device("cpu")


def test_seeding_before_the_start_counts_after_it() -> None:
    """torch queues such calls; torch.manual_seed seeds every accelerator."""
    fake = _fake("two-gpus")
    fake.manual_seed(7)
    assert not fake.cuda.is_initialized()
    assert [g.initial_seed() for g in _started(fake).default_generators] == [7, 7]
    state = fake.cuda.get_rng_state(0)
    fake.cuda.manual_seed(8)
    assert [g.initial_seed() for g in fake.cuda.default_generators] == [8, 7]
    fake.cuda.set_rng_state(state, 0)
    assert torch.equal(fake.cuda.get_rng_state(0), state)


def _started(fake: FakeTorch) -> FakeCuda:
    fake.cuda.init()
    return fake.cuda


def test_events_measure_the_hosts_time() -> None:
    """Milliseconds between two marks."""
    for fake, runtime in ((_fake("two-gpus"), "cuda"), (_fake("mac"), "mps")):
        module = getattr(fake, runtime)
        first, second = module.Event(enable_timing=True), module.Event(enable_timing=True)
        first.record()
        second.record()
        second.synchronize()
        assert second.query()
        assert first.elapsed_time(second) >= 0


# -- the CPU ---------------------------------------------------------------------------------------
@of_a_newer_torch
def test_the_processors_flags_are_the_machines() -> None:
    """Every flag of its kind is there, True or False, with the architecture; this machine's own do not show."""
    told = _fake("cpu", cpu=("avx2", "amx_bf16")).cpu.get_capabilities()
    assert (told["avx2"], told["amx_bf16"], told["avx512_bf16"], told["architecture"]) == (True, True, False, "x86_64")
    assert "neon" not in told
    assert set(told) <= set(torch.cpu.get_capabilities()) or platform.machine() not in ("x86_64", "AMD64")
    assert "avx2" not in _fake("ascend").cpu.get_capabilities()


def test_mps_raises_where_it_is_not_built() -> None:
    """What torch.mps says on other platforms."""
    mps = _fake("cpu").mps
    for ask in (mps.current_allocated_memory, mps.recommended_max_memory, mps.empty_cache, mps.get_rng_state):
        with pytest.raises(RuntimeError, match="without MPS backend"):
            ask()
    mps.manual_seed(1)
    assert mps.device_count() == 0


def test_metals_limit_can_be_changed() -> None:
    """0 to 2 times the recommended working set."""
    fake = _fake("mac")
    fake.mps.set_per_process_memory_fraction(0.5)
    assert fake.mps._memory().total == 27 << 29
    with pytest.raises(ValueError, match="0~2"):
        fake.mps.set_per_process_memory_fraction(3.0)
    with pytest.raises(TypeError, match="must be `float`"):
        fake.mps.set_per_process_memory_fraction(1)  # type: ignore[arg-type]


def test_tensors_are_real() -> None:
    """NumPy's, too."""
    assert _fake("two-gpus").from_numpy(numpy.ones(2)).sum() == 2


# -- kernels ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("operation", "key", "there"),
    [
        ("_scaled_mm", "XPU", True),
        ("_scaled_mm", "MPS", False),
        ("_int_mm", "CUDA", True),
        ("_weight_int4pack_mm", "MPS", True),
        ("_weight_int4pack_mm", "XPU", False),
        ("mm", "CPU", True),
        ("mm", "MTIA", False),
    ],
)
def test_the_dispatcher_knows_what_a_build_for_the_device_has(operation: str, key: str, there: bool) -> None:
    """Accelerators' kernels for formats are those of torch's own list; all others are this process's."""
    assert _fake("cpu")._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operation}", key) is there


def test_a_kernel_that_is_empty_computes_wrongly_in_silence() -> None:
    """The product of 4-bit weights on a card before sm_80 raises nothing, as on a real one, and is no product."""
    with simulated_machine(cuda=1, architecture="sm_75"):
        backend = dk.DeviceManager()._backend
        trial = attempt(backend, 0, "int4", timed=False)
    assert not trial.ran
    assert trial.reason.startswith("it computes wrong numbers")
