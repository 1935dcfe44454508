"""Children that really abort, hang, print noise and die at import: each gets a verdict, and the rest goes on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import devicekit
from devicekit.errors import DeviceKitError
from devicekit.formats import FORMATS
from devicekit.host import Host
from devicekit.isolation.examination import examine
from devicekit.isolation.facts import BackendFacts, Findings
from devicekit.isolation.process import LostChildError, converse
from devicekit.isolation.steps import MARK, Wanted
from devicekit.testing import MACHINES, FakeHost, Faults, Machine

pytestmark = pytest.mark.slow

SRC = Path(devicekit.__file__).parents[1]
LAPTOP = MACHINES["cuda-laptop"]
QUICK = Wanted(describe=False, seconds=20)


def examined(machine: Machine, wanted: Wanted = QUICK) -> Findings:
    host = FakeHost(machine)
    try:
        return examine(host, wanted)
    finally:
        host.close()


def backend(found: Findings, name: str) -> BackendFacts:
    return next(b for b in found.backends if b.name == name)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[object]:
    """Writes a module that this process and its children can import; it is gone afterwards."""
    sys.path.insert(0, str(tmp_path))

    def write(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))

    yield write
    sys.path.remove(str(tmp_path))


# -- backends that take the process down -----------------------------------------------------------
def test_a_backend_that_aborts_gets_a_verdict_and_the_rest_goes_on() -> None:
    """SIGABRT in one probe is named as that backend's, and every other backend is still asked."""
    found = examined(replace(LAPTOP, faults=Faults(abort=True)))
    cuda = backend(found, "cuda")
    assert not cuda.usable
    assert "killed by signal SIGABRT while it was asked" in cuda.reason
    assert cuda.lost
    assert not cuda.hung
    assert backend(found, "cpu").usable
    assert backend(found, "numpy").usable
    assert found.torch.usable
    assert found.asked.label == "cpu"


def test_a_backend_that_hangs_is_ended() -> None:
    """A probe that does not answer in time is named, and its child is gone."""
    start = time.monotonic()
    found = examined(replace(LAPTOP, faults=Faults(hang=3600)), replace(QUICK, seconds=8))
    cuda = backend(found, "cuda")
    assert cuda.reason == "no answer within 8 s while it was asked"
    assert cuda.hung
    assert "reboot" in cuda.fix
    assert backend(found, "cpu").usable
    assert time.monotonic() - start < 60


ACME = Machine("acme", entry_points={"devicekit.backends": {"acme": "acme_device:Acme"}})

GOOD_BACKEND = """
    import os, signal, subprocess, sys, time
    from devicekit.backend import Backend
    from devicekit.values import Availability, DeviceInfo, MemoryStats

    class Acme(Backend):
        name = "acme"
        needs_torch = False

        def probe(self): return Availability.yes([DeviceInfo(0, "Acme 1"), DeviceInfo(1, "Acme 2")])
        def device(self, index=None): return f"acme:{index}"
        def preferred_dtype(self, index=0): return "float32"
        def create_generator(self, seed=None, index=0): raise NotImplementedError
        def memory_stats(self, index=0): return MemoryStats(total=8, available=index, source="acme")
        def empty_cache(self, index=0): pass
        def verify(self, index=0): pass
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os._exit(3)", "the process ended with exit status 3 while it was asked"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process was killed by signal SIGSEGV while it was asked"),
        (
            "sys.stderr.write('terminate called\\n  what():  no licence\\n'); sys.stderr.flush(); os.abort()",
            "killed by signal SIGABRT while it was asked: terminate called / what():  no licence",
        ),
    ],
)
def test_a_plugin_that_kills_the_process_at_import(module, code: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    """A third party's backend that dies while it is loaded is named with how it died and its last words."""
    module("acme_device", f"import os, signal, sys\n{code}\n")
    found = examined(ACME)
    assert reason in backend(found, "acme").reason
    assert backend(found, "acme").origin == "acme_device"
    assert backend(found, "cpu").usable


def test_noise_on_stdout_is_not_taken_for_an_answer(module) -> None:  # type: ignore[no-untyped-def]
    """A backend that prints, in Python and past it, even in our own form, changes nothing."""
    noise = f"""
        print("hello", end="", flush=True)
        os.write(1, b"no line's end, and bytes \\xff\\x00 that are no text")
        print({MARK!r} + '{{"done": "probe 0", "answer": {{}}}}', flush=True)
    """
    module("acme_device", textwrap.dedent(GOOD_BACKEND) + textwrap.dedent(noise))
    found = examined(ACME, Wanted(seconds=20))
    assert backend(found, "acme").usable
    assert [device.label for device in backend(found, "acme").devices] == ["acme:0", "acme:1"]
    assert "built without CUDA" in backend(found, "cuda").reason


def test_last_words_are_those_of_the_step(module) -> None:  # type: ignore[no-untyped-def]
    """What a backend wrote to stderr is not told as the reason of the next one's death."""
    machine = replace(ACME, entry_points={"devicekit.backends": {"a": "loud:Acme", "b": "silent:Acme"}})
    module("loud", textwrap.dedent(GOOD_BACKEND) + "sys.stderr.write('careful now\\n')\n")
    module("silent", "import os\nos.abort()\n")
    reason = backend(examined(machine), "b").reason
    assert "SIGABRT" in reason
    assert "careful now" not in reason


@pytest.mark.parametrize(
    ("method", "doing"), [("describe", "while its properties were read"), ("verify", "while a kernel ran on it")]
)
def test_one_device_that_aborts_leaves_the_others(module, method: str, doing: str) -> None:  # type: ignore[no-untyped-def]
    """A device that dies when it is described or runs a kernel is not usable; its neighbour is."""
    broken = f"""
        def {method}(self, index=0):
            if index == 0:
                os.abort()
            return DeviceInfo(index, "Acme 2", architecture="a2")
    """
    module("acme_device", textwrap.dedent(GOOD_BACKEND) + textwrap.indent(textwrap.dedent(broken), "    "))
    found = examined(ACME, Wanted(verify=True, seconds=20))
    acme = backend(found, "acme")
    first, second = acme.devices
    assert acme.usable
    assert not first.info.usable
    assert first.broke
    assert f"SIGABRT {doing}" in first.info.reason
    assert second.info.usable
    assert second.verified
    assert second.info.free_memory == 1
    assert second.memory_source == "acme"


def test_what_raises_is_told_and_costs_no_child(module) -> None:  # type: ignore[no-untyped-def]
    """A kernel that raises makes its device unusable, with the exception as the reason."""
    raising = "    def verify(self, index=0): raise RuntimeError('out of smoke\\nand mirrors')\n"
    module("acme_device", textwrap.dedent(GOOD_BACKEND) + raising)
    acme = backend(examined(ACME, Wanted(verify=True, seconds=20)), "acme")
    assert not acme.usable
    assert acme.reason == "a test kernel failed: RuntimeError: out of smoke"
    assert [device.verified for device in acme.devices] == [False, False]


def test_a_process_that_hangs_takes_its_own_children_with_it(module, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """On a timeout the whole process group is ended, not only our child."""
    note = tmp_path / "pid"
    hanging = f"""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(note)!r}, "w").write(str(child.pid))
        time.sleep(600)
    """
    module("acme_device", textwrap.dedent(GOOD_BACKEND) + textwrap.dedent(hanging))
    found = examined(ACME, replace(QUICK, seconds=4))
    assert backend(found, "acme").hung
    pid = int(note.read_text())
    for _ in range(50):
        if not _runs(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} still runs")


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


MULTIPLYING = """
    import os
    from devicekit.backend import Backend
    from devicekit.values import Availability, DeviceInfo, MemoryStats

    class Acme(Backend):
        name, device_type, indexed = "acme", "cpu", False

        def probe(self): return Availability.yes([DeviceInfo(0, "Acme 1")])
        def preferred_dtype(self, index=0): return self.torch.float32
        def create_generator(self, seed=None, index=0): return self.torch.Generator()
        def memory_stats(self, index=0): return MemoryStats(source="acme")
        def empty_cache(self, index=0): pass
"""


def test_a_product_that_aborts_leaves_the_other_formats(module) -> None:  # type: ignore[no-untyped-def]
    """A kernel that takes the process down is the answer for its format; the others are tried, the device stays."""
    bent = """
        def product(self, form, a, b, index=0):
            return os.abort() if form == "float16" else super().product(form, a, b, index)
    """
    module("acme_device", textwrap.dedent(MULTIPLYING) + textwrap.indent(textwrap.dedent(bent), "    "))
    [device] = backend(examined(ACME, Wanted(verify=True, seconds=20)), "acme").devices
    assert device.info.usable
    assert device.verified
    assert set(device.trials) == set(FORMATS)
    reason = device.trials["float16"].reason
    assert reason.startswith("the process was killed by signal SIGABRT while a matrix product was tried on it")
    assert [form for form, trial in device.trials.items() if not trial.ran] == ["tf32", "float16", "int4"]
    assert device.contradicted == ()


def test_nothing_is_tried_where_the_first_kernel_fails(module) -> None:  # type: ignore[no-untyped-def]
    """A device that computes nothing is told with one reason, whether its kernel raises or dies."""
    for ending in ("raise RuntimeError('no image')", "os.abort()"):
        bent = f"""
            def verify(self, index=0):
                {ending}

            def product(self, form, a, b, index=0):
                os._exit(9)
        """
        module("acme_device", textwrap.dedent(MULTIPLYING) + textwrap.indent(textwrap.dedent(bent), "    "))
        [device] = backend(examined(ACME, Wanted(verify=True, seconds=20)), "acme").devices
        assert device.broke
        assert "exit status 9" not in device.info.reason
        assert device.trials == {}


# -- a torch that takes the process down -------------------------------------------------------------
@pytest.fixture
def fake_torch(tmp_path: Path) -> Iterator[object]:
    """Puts a package called torch before the real one, for the children only."""
    sys.path.insert(0, str(tmp_path))

    def write(code: str) -> None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(textwrap.dedent(code))

    yield write
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("code", "reason", "hung"),
    [
        ("import os; os.abort()", "the process was killed by signal SIGABRT while torch was imported", False),
        ("import time; time.sleep(600)", "no answer within 4 s while torch was imported", True),
        ("while True: pass", "no answer within 4 s while torch was imported", True),
    ],
)
def test_a_torch_that_aborts_or_hangs_leaves_numpy(fake_torch, code: str, reason: str, hung: bool) -> None:  # type: ignore[no-untyped-def]
    """When `import torch` takes the process down, that is the reason for all that needs it, and NumPy answers."""
    fake_torch(code)
    found = examine(Host(env={}), Wanted(seconds=4))
    assert not found.torch.usable
    assert found.torch.lost
    assert found.torch.hung is hung
    assert found.torch.reason == reason
    assert backend(found, "cuda").reason == reason
    assert backend(found, "cpu").reason == reason
    assert backend(found, "numpy").usable
    assert found.automatic.label == "numpy"
    assert found.machine


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libc10.so: cannot open shared object file')", "libc10.so: cannot open"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("import no_such_module_here", "No module named 'no_such_module_here'"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_torch_that_raises_is_told_with_its_reason(fake_torch, code: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    """An import of torch that fails costs no child, and its exception is the reason."""
    fake_torch(code)
    found = examine(Host(env={}), QUICK)
    assert reason in found.torch.reason
    assert found.torch.installed
    assert not found.torch.lost
    assert backend(found, "numpy").usable


def test_a_plugin_of_torch_that_aborts_is_told_apart_from_torch(module) -> None:  # type: ignore[no-untyped-def]
    """When torch can be imported without its plugins, they are to blame, and torch's own backends are asked."""
    module("bad_plugin", "import os\nos.abort()\n")
    found = examined(Machine("plugged", entry_points={"torch.backends": {"bad": "bad_plugin:load"}}))
    assert found.torch.usable
    assert "SIGABRT while torch was imported" in found.torch.plugins_lost
    assert backend(found, "cpu").usable


def test_the_parent_imports_no_torch() -> None:
    """However much is asked, torch and NumPy stay out of the process that asks."""
    code = (
        "import sys; from devicekit.host import Host\n"
        "from devicekit.isolation.examination import examine; from devicekit.isolation.steps import Wanted\n"
        "found = examine(Host(), Wanted(verify=True))\n"
        "assert any(b.usable for b in found.backends)\n"
        "assert not {'torch', 'numpy', 'psutil', 'pynvml'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr


# -- decisions and the pipe --------------------------------------------------------------------------
def test_only_what_the_decision_needs_is_asked_when_no_more_is_wanted() -> None:
    """A device of our own choice is found without waiting for a driver that hangs."""
    hanging = replace(LAPTOP, faults=Faults(hang=3600))
    found = examined(hanging, Wanted(device="numpy", strict=True, everything=False, describe=False, seconds=20))
    assert found.asked.label == "numpy"
    assert found.asked.error is None
    assert backend(found, "cuda").reason == "it was not asked"


@pytest.mark.parametrize(("name", "known"), [("cuad", False), ("npu", True)])
def test_a_device_that_cannot_be_had_is_an_error_when_strict(name: str, known: bool) -> None:
    """The error says whether the word is a device at all."""
    found = examined(MACHINES["cpu"], Wanted(device=name, strict=True, everything=False, describe=False))
    assert found.asked.error is not None
    assert found.asked.error["known"] is known
    assert found.asked.label is None


def test_a_child_answers_by_hand() -> None:
    """`python -m devicekit.isolation` reads one request and writes each step before and after it."""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    request = json.dumps({"backends": [], "skip": ["torch"]})
    done = subprocess.run(
        [sys.executable, "-m", "devicekit.isolation"],
        input=request,
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
    )
    lines = [json.loads(line.removeprefix(MARK)) for line in done.stdout.split("\n") if line]
    assert lines == [{"end": True}]


def test_a_child_that_cannot_begin_is_no_step() -> None:
    """A request that no child can read loses the child before its first step."""
    with pytest.raises(LostChildError, match="while Python was started") as caught:
        list(converse({"machine": "no machine"}, 20, lambda _: None))
    assert caught.value.step is None


def test_a_system_without_processes_is_our_error() -> None:
    """Where no process can be started, the error says so and what asks without one."""
    code = (
        "import sys; sys.executable = '/no/such/python'\n"
        "from devicekit.cli.main import main\n"
        "raise SystemExit(main(['doctor']))"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2
    assert "no child process can be started" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_child_that_never_begins_is_an_error_of_ours() -> None:
    """When not even an empty child lives, the examination ends with an error instead of going round."""

    class NoMachine(Host):
        def to_json(self) -> str:
            return "{"

    with pytest.raises(DeviceKitError, match="no child process can be started"):
        examine(NoMachine(env={}), QUICK)
