"""The one door into a simulation: what is seen inside, what is left afterwards, and what the faults do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import devicekit as dk
from devicekit import host as _host
from devicekit.resolve import Resolver
from devicekit.testing import MACHINES, Card, FakeHost, Machine, simulated_machine


# -- in and out ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "device"),
    [
        ({"machine": "mac"}, "mps"),
        ({"machine": MACHINES["two-gpus"]}, "cuda:0"),
        ({"cuda": 2, "memory": "24GiB", "architecture": "sm_86"}, "cuda:0"),
        ({"rocm": 1}, "cuda:0"),
        ({"xpu": 1}, "xpu:0"),
        ({"npu": 1}, "npu:0"),
        ({"mps": True}, "mps"),
        ({"mps": False}, "cpu"),
        ({"cuda": 0}, "cpu"),
        ({"cuda": 1, "env": {"CUDA_VISIBLE_DEVICES": ""}}, "cpu"),
        ({}, "cpu"),
    ],
)
def test_auto_sees_that_machine(arguments: dict[str, Any], device: str) -> None:
    """A preset, a machine, a number of cards, or a CPU."""
    with simulated_machine(**arguments):
        assert str(dk.resolve_device("auto")) == device


def test_afterwards_all_is_as_it_was() -> None:
    """The host is the one before, the folder is gone, the process's environment was never touched."""
    before, environment = _host.current(), dict(os.environ)
    with simulated_machine("mac", env={"KRONOS_DEVICE": "cpu"}) as host:
        assert _host.current() is host
        assert host.root.is_dir()
        assert str(dk.resolve_device()) == "cpu"
    assert _host.current() is before
    assert not host.root.exists()
    assert dict(os.environ) == environment


def test_after_an_exception_too() -> None:
    """What is raised inside comes through."""
    before = _host.current()
    with pytest.raises(KeyError, match="inside"), simulated_machine("mac") as host:
        raise KeyError("inside")
    assert _host.current() is before
    assert not host.root.exists()


def test_machines_nest() -> None:
    """The inner one counts until it ends, and neither knows of the other."""
    with simulated_machine("two-gpus"):
        outer = dk.DeviceManager()
        with simulated_machine("mac"):
            assert dk.DeviceManager().backend == "mps"
            assert outer.memory_stats().total == 24 << 30
        assert dk.DeviceManager().backend == "cuda"


def test_every_thread_sees_it() -> None:
    """Also one that was started before."""
    entered, done, seen = threading.Event(), threading.Event(), []

    def ask() -> None:
        entered.wait(10)
        seen.append(str(dk.resolve_device()))
        done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    with simulated_machine("ascend"):
        entered.set()
        assert done.wait(10)
    thread.join()
    assert seen == ["npu:0"]


def test_nothing_of_this_process_leaks_in() -> None:
    """Neither its pins nor its modules; what is not simulated is the real thing."""
    with simulated_machine("no-torch", modules=()) as host:
        assert dict(host.env) == {}
        assert [host.loaded(name) for name in ("torch", "numpy")] == [None, None]
        assert [host.installed(name) for name in ("torch", "numpy", "psutil")] == [False] * 3
        assert host.module("psutil") is None
        assert host.module("json") is not None
        assert host.installed("json")
        assert not host.library("libc.so.6")
        assert host.entry_points("devicekit.backends") == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"machine": "two-gpu"}, "did you mean 'two-gpus'"),
        ({"machine": "mac", "cuda": 1}, "one kind of accelerator at a time"),
        ({"cuda": 1, "rocm": 1}, "one kind of accelerator at a time"),
        ({"cuda": 1, "memory": "lots"}, "lots"),
        ({"cuda": 1, "architecture": "gfx1100"}, "no architecture of cuda"),
        ({"cuda": 1, "faults": "no_kernel"}, "did you mean 'no_kernels'"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: dict[str, Any], message: str) -> None:
    """A ValueError before anything has changed."""
    before = _host.current()
    with pytest.raises(ValueError, match=message), simulated_machine(**arguments):
        pass
    assert _host.current() is before


def test_what_each_card_has_can_be_changed_on_a_preset() -> None:
    """Memory and architecture of every card; any other field by its name."""
    with simulated_machine("two-gpus", memory="1GiB", architecture="sm_90", host_memory="3GiB") as host:
        assert {(c.total, c.architecture) for c in host.simulated.cards} == {(1 << 30, "sm_90")}
        assert dk.DeviceManager("cpu").memory_stats().total == 3 << 30


def test_plugins_come_as_data() -> None:
    """An entry point is loaded like an installed one, and its backend keeps its own moves."""
    points = {"devicekit.backends": {"acme": "tests.third_party:Acme"}}
    with simulated_machine("cpu", entry_points=points):
        dm = dk.DeviceManager()
        assert dm.backend == "acme"
        assert type(dm._backend).__mro__[1].__name__ != "SimulatedMoves"
        assert next(v for v in dk.explain().verdicts if v.backend == "acme").origin == "tests"


def test_another_process_can_stand_on_the_same_machine() -> None:
    """to_json carries the environment as it is now."""
    with simulated_machine("two-gpus") as host:
        host.env["CUDA_VISIBLE_DEVICES"] = "1"
        told = host.to_json()
    code = (
        "import sys, devicekit as dk\n"
        "from devicekit import host\n"
        "from devicekit.testing import FakeHost\n"
        "with host.use(FakeHost.from_json(sys.argv[1])): print(dk.explain().verdicts[0].reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, told], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1 device: NVIDIA GeForce RTX 3090", done.stderr


def _without_torch(code: str) -> str:
    """What a process says that cannot import torch."""
    lines = f"import sys; sys.modules['torch'] = None\nfrom devicekit.testing import simulated_machine\n{code}"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_machine_with_torch_needs_one() -> None:
    """The error says so; a machine without torch can be simulated without it."""
    told = _without_torch("try:\n  simulated_machine('mac').__enter__()\nexcept RuntimeError as e: print(e)")
    assert told.splitlines()[0] == "the machine 'mac' cannot be simulated."
    assert "why: its tensors are real ones, and torch is not installed here" in told
    code = "import devicekit\nwith simulated_machine('no-torch'): print(devicekit.DeviceManager().randn(2, seed=0))"
    assert _without_torch(code).startswith("[ 1.54")


def test_importing_costs_nothing() -> None:
    """Neither torch nor pytest nor NumPy."""
    code = (
        "import sys, devicekit.testing as t; from devicekit.testing import MACHINES, simulated_machine\n"
        "assert t.__all__ == sorted(t.__all__) and set(t.__all__) <= set(dir(t))\n"
        "print(sorted({'torch', 'pytest', 'numpy', 'psutil'} & set(sys.modules)))\n"
        "try: t.simulated_machines\nexcept AttributeError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "module 'devicekit.testing' has no attribute 'simulated_machines'"]


# -- moving ----------------------------------------------------------------------------------------
USABLE = ["two-gpus", "amd-workstation", "intel-igpu", "ascend", "mac"]


@pytest.mark.parametrize("machine", USABLE)
def test_a_tensor_is_copied_to_the_device_once(machine: str) -> None:
    """It is another tensor there, and moving it again gives it back; the dtype is cast on the way."""
    with simulated_machine(machine):
        dm = dk.DeviceManager(strict=True)
        here = torch.ones(3)
        there = dm.to(here)
        there += 1
        assert here.tolist() == [1, 1, 1]
        assert dm.to(there) is there
        assert dm.to(there, torch.float16).dtype is torch.float16
        assert dm.memory_stats().allocated == 512


@pytest.mark.parametrize("machine", USABLE)
def test_a_module_is_moved_in_place(machine: str) -> None:
    """Its parameters stay the same objects, tied ones are counted once, and grow no history."""
    module = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    module[1].weight = module[0].weight
    with simulated_machine(machine):
        dm = dk.DeviceManager(strict=True)
        before = list(module.parameters())
        assert dm.to(module, torch.float16) is module
        assert [id(p) for p in module.parameters()] == [id(p) for p in before]
        assert {p.dtype for p in module.parameters()} == {torch.float16}
        assert all(p.is_leaf and p.requires_grad for p in module.parameters())
        assert dm.memory_stats().allocated == 64 * 64 * 2
        assert dm.to(module) is module
        assert dm.memory_stats().allocated == 64 * 64 * 2


class _Pipeline:
    """A pipeline as in diffusers: parts, and a ``to`` of its own."""

    def __init__(self) -> None:
        self.components = {"unet": torch.nn.Linear(8, 8), "tokenizer": "words"}
        self.moved_to: list[str] = []

    def to(self, device: Any = None, dtype: Any = None) -> _Pipeline:
        self.moved_to.append(str(device))
        self.components["unet"].to(device, dtype)  # type: ignore[attr-defined]
        return self


@pytest.mark.parametrize("machine", USABLE)
def test_a_pipeline_moves_itself_and_is_counted(machine: str) -> None:
    """Its own ``to`` runs, and what it asks of tensors is answered by the simulation."""
    pipeline = _Pipeline()
    with simulated_machine(machine):
        dm = dk.DeviceManager(strict=True)
        assert dm.to(pipeline, torch.bfloat16) is pipeline
        assert pipeline.components["unet"].weight.dtype is torch.bfloat16  # type: ignore[attr-defined]
        assert dm.memory_stats().allocated == 2 * 512
    assert len(pipeline.moved_to) == 1


def test_things_with_a_to_of_their_own() -> None:
    """A packed sequence moves; sparse tensors keep their layout."""
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    with simulated_machine("two-gpus"):
        dm = dk.DeviceManager()
        moved = dm.to(packed)
        assert type(moved) is type(packed)
        assert dm.memory_stats().allocated == 512
        assert dm.to(torch.eye(2).to_sparse()).layout is torch.sparse_coo


def test_gradients_flow_through_the_move() -> None:
    """Moving is an operation like any."""
    with simulated_machine("two-gpus"):
        here = torch.ones(2, requires_grad=True)
        dk.DeviceManager().to(here).sum().backward()
    assert here.grad is not None
    assert here.grad.tolist() == [1, 1]


def test_each_card_counts_for_itself() -> None:
    """A tensor on one card is copied to the other."""
    with simulated_machine("two-gpus"):
        first, second = dk.DeviceManager("cuda:0"), dk.DeviceManager("cuda:1")
        tensor = first.to(torch.ones(1000))
        twin = second.to(tensor)
        assert twin is not tensor
        assert (first.memory_stats().allocated, second.memory_stats().allocated) == (4096, 4096)
        del tensor
        assert (first.memory_stats().allocated, second.memory_stats().allocated) == (0, 4096)


def test_many_threads_are_counted_right() -> None:
    """Moves from eight threads add up, and all is free when they are done."""
    with simulated_machine("two-gpus"):
        dm = dk.DeviceManager("cuda:0")
        kept: list[Any] = []

        def work() -> None:
            kept.append([dm.to(torch.ones(128)) for _ in range(50)])

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dm.memory_stats().allocated == 8 * 50 * 512
        kept.clear()
        assert dm.memory_stats().allocated == 0


# -- faults ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("machine", USABLE)
def test_out_of_memory_at_a_size(machine: str) -> None:
    """One allocation of that size fails with the backend's own words, however much is free; smaller ones do not."""
    words = {"mac": "MPS backend", "amd-workstation": "HIP", "intel-igpu": "XPU", "ascend": "NPU"}.get(machine, "CUDA")
    with simulated_machine(machine, faults={"oom_at": "1MiB"}):
        dm = dk.DeviceManager(strict=True)
        kept = [dm.to(torch.zeros(1000)) for _ in range(300)]
        with pytest.raises(RuntimeError, match=f"^{words} out of memory") as caught:
            dm.to(torch.zeros(1 << 18))
        assert isinstance(caught.value, torch.OutOfMemoryError) is (machine != "mac")
        assert len(kept) == 300


@pytest.mark.parametrize("machine", USABLE)
def test_no_kernels(machine: str) -> None:
    """The probe says yes, and a real kernel raises."""
    with simulated_machine(machine, faults="no_kernels"):
        dm = dk.DeviceManager(strict=True)
        with pytest.raises(RuntimeError, match=r"no kernel image|invalid device function"):
            dm._backend.verify(dm.index or 0)
    with simulated_machine(machine):
        dk.DeviceManager(strict=True)._backend.verify()


@pytest.mark.parametrize("machine", USABLE)
def test_wrong_numbers(machine: str) -> None:
    """Nothing raises by itself; a comparison finds it."""
    with simulated_machine(machine, faults="wrong_numbers"):
        dm = dk.DeviceManager(strict=True)
        with pytest.raises(dk.DeviceKitError, match="computes wrong numbers"):
            dm._backend.verify()


@pytest.mark.parametrize("machine", USABLE)
def test_no_memory_query(machine: str) -> None:
    """What is free is not known; nothing raises."""
    with simulated_machine(machine, faults="no_memory_query"):
        stats = dk.DeviceManager(strict=True).memory_stats()
    assert stats.available is None
    assert "unknown" in stats.source


@pytest.mark.parametrize("machine", USABLE)
def test_a_driver_that_hangs_is_left_behind(machine: str) -> None:
    """Its backend gets a verdict in time, the CPU is taken, and the end of the simulation ends the hanging."""
    start = time.monotonic()
    with simulated_machine(machine, faults="hang") as host:
        asked = Resolver(host, probe_seconds=0.2)
        answers = {row.name: asked.probe(row) for row in asked.rows}
    hanging = MACHINES[machine].accelerator
    assert hanging is not None
    assert "did not answer within 0.2 s" in answers[hanging].reason
    assert answers["cpu"].usable
    for thread in threading.enumerate():
        if thread.name.startswith("probe-"):
            thread.join(10)
    assert time.monotonic() - start < 10


def test_a_hanging_driver_that_answers_late_is_waited_for() -> None:
    """A first start can take seconds."""
    with simulated_machine("two-gpus", faults={"hang": 0.05}):
        assert str(dk.resolve_device()) == "cuda:0"


@pytest.mark.skipif(os.name != "posix", reason="needs SIGABRT")
def test_a_probe_that_aborts_takes_only_its_process() -> None:
    """The fault is for child processes: there the signal can be seen."""
    code = (
        "import sys, devicekit as dk\n"
        "from devicekit import host\n"
        "from devicekit.testing import FakeHost\n"
        "with host.use(FakeHost.from_json(sys.argv[1])): dk.resolve_device()\n"
    )
    with simulated_machine("two-gpus", faults="abort") as host:
        told = host.to_json()
    done = subprocess.run([sys.executable, "-c", code, told], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGABRT


# -- the host --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MACHINES)
def test_every_preset_answers_everything(name: str) -> None:
    """No machine makes a question raise or warn that is asked of the chosen device."""
    with simulated_machine(name), warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = dk.DeviceManager()
        assert dm.report()["backend"] == dm.backend
        assert dk.info()["machine"]["architecture"] == MACHINES[name].processor
        assert all(v.reason for v in dk.explain().verdicts)
        assert str(dm.create_generator(1))
        dm.set_rng_state(dm.rng_state())


def test_importing_the_plugin_imports_torch() -> None:
    """As the real one does; torch may load the plugin itself on the way, and it is there once."""
    for autoload in ("1", "0"):
        with simulated_machine("ascend", env={"TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}) as host:
            assert host.loaded("torch") is host.loaded("torch_npu") is None
            plugin = host.import_module("torch_npu")
            assert plugin is host.import_module("torch_npu") is host.loaded("torch_npu")
            assert plugin.npu is host.torch().npu
            assert host.loaded("torch") is host.import_module("torch")


def test_files_are_the_machines() -> None:
    """The kernel's tables, /proc/cpuinfo and the cgroup are read from a folder; macOS and Windows have none."""
    with simulated_machine("amd-workstation", container="2GiB", cpu=("avx2", "avx512_f")) as host:
        assert host.cgroup().memory_limit() is not None
        assert "avx512f" in (host.read_text("/proc/cpuinfo") or "")
        assert host.read_text("/sys/class/drm/renderD128/device/vendor") == "0x1002"
        assert len(host.glob("/sys/class/kfd/kfd/topology/nodes/*/properties")) == 2
    with simulated_machine("mac") as host:
        assert host.read_text("/proc/cpuinfo") is None
        assert host.sysctl("kern.hv_vmm_present") == 0
        assert host.sysctl("hw.memsize") == 36 << 30
        assert host.sysctl("no.such.name") is None
    with simulated_machine("cpu") as host:
        assert host.sysctl("kern.hv_vmm_present") is None


def test_psutil_tells_the_machines_memory_and_this_process() -> None:
    """Total and available are data; the resident set is real."""
    with simulated_machine("cpu", host_memory="8GiB", host_free="3GiB") as host:
        psutil = host.module("psutil")
        assert psutil is not None
        assert (psutil.virtual_memory().total, psutil.virtual_memory().available) == (8 << 30, 3 << 30)
        assert psutil.Process().memory_info().rss > 1 << 20


def _nvml_of(host: FakeHost) -> Any:
    nvml = host.import_module("pynvml")
    nvml.nvmlInit()
    return nvml


def test_nvml_knows_what_this_process_has_allocated() -> None:
    """Free memory goes down with the tensors, as on a real card."""
    with simulated_machine("two-gpus") as host:
        kept = dk.DeviceManager("cuda:1").to(torch.zeros(1 << 20))
        nvml = _nvml_of(host)
        free = [nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(i)).free for i in range(2)]
        assert free == [24 << 30, (24 << 30) - kept.nbytes]


@pytest.mark.parametrize(
    "ask",
    [
        lambda n: n.nvmlDeviceGetCount(),
        lambda n: n.nvmlShutdown(),
        lambda n: n.nvmlSystemGetDriverVersion(),
        lambda n: (n.nvmlInit(), n.nvmlDeviceGetHandleByUUID("GPU-none")),
        lambda n: (n.nvmlInit(), n.nvmlDeviceGetMigMode(Card(architecture="sm_75"))),
    ],
)
def test_nvml_refuses_what_it_cannot_answer(ask: Callable[[Any], object]) -> None:
    """Questions before nvmlInit, unknown names, MIG on cards without it."""
    with simulated_machine("two-gpus") as host:
        nvml = host.import_module("pynvml")
        with pytest.raises(nvml.NVMLError):
            ask(nvml)


def test_a_host_without_a_block_cleans_up_after_itself() -> None:
    """Its folder goes with it."""
    host = FakeHost(Machine("mine"))
    root = host.root
    assert root.is_dir()
    host.close()
    host.close()
    assert not root.exists()
