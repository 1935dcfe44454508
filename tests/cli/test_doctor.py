"""The doctor: what it says of machines that go wrong in the field, as text, as data and as an exit code.

The texts stand in ``snapshots/doctor-*.txt``, to be read as a stranger would. After a change of wording write them anew
with ``DEVICEKIT_UPDATE_SNAPSHOTS=1 python -m pytest tests/cli/test_doctor.py -k snapshot`` and read the difference.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from devicekit import __version__
from devicekit.request import CHOICE_FILE
from devicekit.testing import MACHINES, Faults, simulated_machine
from tests.cli.calling import SRC, Ran, run, run_on

pytestmark = pytest.mark.slow

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = "DEVICEKIT_UPDATE_SNAPSHOTS"

LAPTOP = MACHINES["cuda-laptop"]


def report(ran: Ran) -> dict[str, Any]:
    """The one JSON document on stdout."""
    document: dict[str, Any] = json.loads(ran.out)
    return document


# -- snapshots -----------------------------------------------------------------------------------
def normalised(text: str) -> str:
    """Without what differs between the machines that run the tests."""
    text = text.replace(f"devicekit {__version__}", "devicekit <version>")
    text = text.replace(f"Python {platform.python_version()}", "Python <version>")
    return text.replace(f"{platform.system()} {platform.release()}", "<system>")


# The processor's kernels are this process's, and the snapshots show what the newest torch has.
@pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm", "CPU"), reason="this torch is too old"
)
@pytest.mark.parametrize(
    "machine", ["cuda-laptop", "amd-workstation", "mac", "ascend-no-cann", "intel-igpu", "container-2gib"]
)
def test_a_machine_is_told_as_in_its_snapshot(machine: str) -> None:
    """`doctor` on this machine prints the text that was read and found good."""
    ran = run_on(machine, "doctor")
    assert (ran.code, ran.err) == (0, "")
    file = SNAPSHOTS / f"doctor-{machine}.txt"
    text = normalised(ran.out)
    if os.environ.get(UPDATE) == "1":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_every_machine_gets_reasons_and_ways_out(machine: str) -> None:
    """Whatever is wrong, every backend has a verdict, every no a reason, and no advice sends back to the doctor."""
    ran = run_on(machine, "doctor", "--json")
    told = report(ran)
    assert ran.err == ""
    assert ran.code == (0 if told["good"] else 1)
    assert {backend["name"] for backend in told["backends"]} == {
        "cuda", "rocm", "xpu", "npu", "mps", "cpu", "numpy", "vulkan"
    }  # fmt: skip
    for backend in told["backends"]:
        assert backend["reason"]
    for problem in told["problems"]:
        assert problem["what"]
        assert problem["try"]
        assert "devicekit doctor" not in problem["try"]
    assert told["decision"]["label"]


# -- as data ---------------------------------------------------------------------------------------
def test_json_has_everything_and_unknown_is_null() -> None:
    """The document has the decision, the devices with their figures and sources, and null for what is not known."""
    told = report(run_on("intel-igpu", "doctor", "--json"))
    assert list(told) == [
        "good", "problems", "notes", "decision", "automatic", "pins", "saved_choice", "requirement", "torch",
        "backends", "machine", "versions",
    ]  # fmt: skip
    assert told["decision"]["label"] == "xpu:0"
    xpu = next(b for b in told["backends"] if b["name"] == "xpu")
    [device] = xpu["devices"]
    assert xpu["chosen"]
    assert device["total_memory"] == 28 * 2**30
    assert device["free_memory"] is None
    assert "doesn't support querying the available free memory" in device["memory_source"]
    assert device["precisions"] == {
        "float64": "no", "float32": "native", "tf32": "no", "bfloat16": "native", "float16": "native",
        "float8": "emulated", "int8": "emulated", "int4": "emulated",
    }  # fmt: skip
    assert device["traits"] == {"matrix units (XMX)": "no", "memory": "shared with the host"}
    assert device["trials"] == {}
    assert device["verified"] is None
    assert told["saved_choice"] is None
    assert told["requirement"] is None


def test_a_requirement_stands_in_the_json() -> None:
    """Each term is there with its answer and the actual value."""
    told = report(run_on("cuda-laptop", "doctor", "--json", "--require", "bf16 and memory>=20GiB"))
    assert not told["good"]
    assert told["requirement"]["met"] is False
    assert [(term["term"], term["met"]) for term in told["requirement"]["terms"]] == [
        ("bf16", True),
        ("memory>=20GiB", False),
    ]


# -- what was asked for ------------------------------------------------------------------------------
def pinned(machine: str, **env: str) -> Ran:
    return run_on(replace(MACHINES[machine], env=env), "doctor")


def test_a_typo_in_a_pin_is_reported_and_does_not_end_the_doctor() -> None:
    """The variable is named with a near miss, and what would be chosen without it is told all the same."""
    code, out, err = pinned("cuda-laptop", DEVICEKIT_DEVICE="cuad")
    assert (code, err) == (1, "")
    assert "'cuad' (from DEVICEKIT_DEVICE) is no device." in out
    assert "try: did you mean 'cuda'?" in out
    assert '"auto" chooses cuda:0' in out


def test_pins_that_disagree_are_noted_and_are_no_failure() -> None:
    """The first pin wins, the note names both, and the exit code is 0."""
    code, out, _ = pinned("cuda-laptop", DEVICEKIT_DEVICE="cpu", KRONOS_DEVICE="cuda")
    assert code == 0
    assert "Note: DEVICEKIT_DEVICE='cpu' and KRONOS_DEVICE='cuda' disagree: DEVICEKIT_DEVICE is used." in out
    assert "Programs get cpu, as DEVICEKIT_DEVICE='cpu' asks." in out


def test_a_pin_that_cannot_be_had_is_a_problem_with_two_ways_out() -> None:
    """It says why, what is used instead, how to get the device and how to stop asking for it."""
    code, out, _ = pinned("ascend-no-cann", KRONOS_DEVICE="npu")
    assert code == 1
    assert "cpu is used instead." in out
    assert re.search(r"try: install CANN.*; or unset KRONOS_DEVICE", out)


def test_a_device_by_argument_counts_instead_of_the_pins() -> None:
    """`--device` is examined, whatever is pinned."""
    code, out, _ = run_on(replace(LAPTOP, env={"DEVICEKIT_DEVICE": "cuad"}), "doctor", "--device", "cuda:0")
    assert code == 0
    assert "Programs get cuda:0, as --device cuda:0 asks." in out


def test_auto_by_argument_leaves_the_word_to_the_pins() -> None:
    """`--device auto` with a typo in a pin is a finding, as without it."""
    code, out, _ = run_on(replace(LAPTOP, env={"DEVICEKIT_DEVICE": "cuad"}), "doctor", "--device", "auto")
    assert code == 1
    assert "'cuad' (from DEVICEKIT_DEVICE) is no device." in out


@pytest.mark.parametrize(("name", "code"), [("cuda:7", 1), ("npu", 1), ("cuad", 2), ("cuda:x", 2)])
def test_a_device_by_argument_that_cannot_be_had(name: str, code: int) -> None:
    """A device that is not usable is a finding (1), a word that is none is a mistake (2)."""
    ran = run_on("cuda-laptop", "doctor", "--device", name)
    assert ran.code == code
    assert (ran.out == "") == (code == 2)


def test_the_saved_choice_is_told_and_what_wins_over_it() -> None:
    """A choice that a pin overrides is noted, and both are in the JSON."""
    with simulated_machine("two-gpus", env={"KRONOS_DEVICE": "cpu"}) as host:
        file = host.config_file(CHOICE_FILE)
        file.parent.mkdir(parents=True)
        file.write_text("cuda:1\n")
        over = report(run("doctor", "--json"))
        del host.env["KRONOS_DEVICE"]
        alone = run("doctor")
    assert over["decision"]["source"] == "KRONOS_DEVICE"
    assert over["saved_choice"] == "cuda:1"
    assert over["notes"] == ["the saved choice 'cuda:1' is not used, because KRONOS_DEVICE is set"]
    assert "Programs get cuda:1, as the saved choice 'cuda:1' asks." in alone.out


# -- what is broken ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fault", "reason"), [("no_kernels", "no kernel image is available"), ("wrong_numbers", "computes wrong numbers")]
)
def test_verify_finds_what_no_probe_can(fault: str, reason: str) -> None:
    """Without `--verify` the device is usable; with it, the kernel that fails is the reason why it is not."""
    machine = replace(LAPTOP, faults=Faults.of(fault))
    assert run_on(machine, "doctor").code == 0
    code, out, _ = run_on(machine, "doctor", "--verify")
    assert code == 1
    assert "cuda:0 seems usable and is not." in out
    assert reason in out
    assert '"auto" chooses cuda:0 all the same' in out


def test_verify_tells_what_ran() -> None:
    """A kernel that ran and was right is told of every usable device, and of every format what a product in it did."""
    code, out, _ = run_on("cuda-laptop", "doctor", "--verify")
    assert code == 0
    assert out.count("a test kernel ran and was right") == 3
    cuda = out.partition("cuda:0")[2].partition("  cpu ")[0]
    assert re.findall(r"^ +(\w+) +(native|emulated|no),? ", cuda, re.MULTILINE) == [
        ("float64", "native"), ("float32", "native"), ("tf32", "native"), ("bfloat16", "native"), ("float16", "native"),
        ("float8", "no"), ("int8", "native"), ("int4", "emulated"),
    ]  # fmt: skip
    assert re.search(r"tf32 +native, ran, [0-9.e+-]+x float32\n", cuda)
    assert "float8    no (RuntimeError: torch._scaled_mm is only supported on CUDA devices with" in cuda
    assert "and yet" not in out


BENT = """
    import torch
    from devicekit.backend import Backend
    from devicekit.values import Availability, DeviceInfo, MemoryStats

    class Acme(Backend):
        name, device_type, indexed = "acme", "cpu", False

        def probe(self): return Availability.yes([DeviceInfo(0, "Acme 1")])
        def preferred_dtype(self, index=0): return torch.float32
        def create_generator(self, seed=None, index=0): return torch.Generator()
        def memory_stats(self, index=0): return MemoryStats(source="acme")
        def empty_cache(self, index=0): pass
        def precisions(self, index=0): return {"float32": "native", "float16": "no", "int8": "native"}
        def traits(self, index=0): return {"warning": "hot", "cores": "8"}
        def product(self, form, a, b, index=0):
            if form == "int8":
                raise RuntimeError("acme_mul: no such unit")
            return super().product(form, a, b, index)
"""


def test_a_claim_that_a_kernel_contradicts_is_a_problem(tmp_path: Path) -> None:
    """A format that is called native and fails, and one that is called missing and runs, are told as what they are."""
    name = "acme_bent_for_doctor"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(BENT))
    sys.path.insert(0, str(tmp_path))
    try:
        machine = replace(LAPTOP, entry_points={"devicekit.backends": {"acme": f"{name}:Acme"}})
        code, out, _ = run_on(machine, "doctor", "--verify")
        unasked, plain, _ = run_on(machine, "doctor")
    finally:
        sys.path.remove(str(tmp_path))
    assert (code, unasked) == (1, 0)
    assert "native, and yet it did not run (RuntimeError: acme_mul: no such unit)" in out
    assert re.search(r"float16 +no, and yet it ran", out)
    assert re.search(r"bfloat16 +unknown, ran", out)
    assert "Result: 2 problems." in out
    assert "1. acme computes float16, and devicekit says that it does not." in out
    assert "2. acme does not compute int8, and devicekit says that it does." in out
    assert "why: RuntimeError: acme_mul: no such unit" in out
    assert "formats: native float32, int8; no float16" in plain
    assert "Note: acme: hot." in plain
    assert "cores: 8" in plain


def test_a_backend_that_aborts_is_a_problem_though_others_work() -> None:
    """The doctor survives SIGABRT, names the backend, and says that `auto` would walk into it."""
    code, out, _ = run_on(replace(LAPTOP, faults=Faults(abort=True)), "doctor")
    assert code == 1
    assert "cuda is broken: a program that asks it is taken down." in out
    assert '"auto" asks cuda on its way, and is taken down; without cuda it would choose cpu.' in out
    assert "until then set DEVICEKIT_DEVICE=cpu" in out


def test_a_broken_torch_is_one_problem_not_seven(tmp_path: Path) -> None:
    """When torch cannot be imported, the backends that need it say so once, and NumPy is still usable."""
    code, out, _ = run_on("broken-torch", "doctor")
    assert code == 1
    assert "cuda (nvidia), rocm (amd), xpu (intel), npu (ascend), mps (apple), cpu, vulkan  needs torch" in out
    assert out.count("libcudart.so.13") == 1
    assert re.search(r"numpy +CPU", out)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", '"auto" imports torch, and is taken down; without torch it would choose numpy.'),
        ("import time; time.sleep(600)", '"auto" imports torch, and stands still; without torch'),
    ],
)
def test_the_doctor_answers_when_torch_takes_the_process_down(tmp_path: Path, code: str, said: str) -> None:
    """`devicekit doctor` in a process of its own survives a torch that aborts or hangs, and says what still works."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SRC}", "XDG_CONFIG_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "devicekit", "doctor", "--timeout", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert said in done.stdout
    assert "until then set DEVICEKIT_DEVICE=numpy" in done.stdout


def test_a_broken_plugin_is_listed_with_its_package(tmp_path: Path) -> None:
    """A third party's backend that cannot be loaded is told with its reason and the distribution it comes from."""
    name = "acme_broken_for_doctor"
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('acme 2 needs acme-runtime 7')")
    sys.path.insert(0, str(tmp_path))
    try:
        machine = replace(LAPTOP, entry_points={"devicekit.backends": {"acme": f"{name}:Acme"}})
        code, out, _ = run_on(machine, "doctor")
    finally:
        sys.path.remove(str(tmp_path))
    assert code == 0
    assert f"acme (of {name})" in out
    assert "acme 2 needs acme-runtime 7" in out
    assert "try: update or uninstall the package that it comes from" in out


def test_a_plugin_of_torch_that_kills_is_told_apart_from_torch(tmp_path: Path) -> None:
    """The plugin is the problem, the switch that leaves it out is the way out, and torch's own devices are told."""
    name = "acme_aborting_for_doctor"
    (tmp_path / f"{name}.py").write_text("import os; os.abort()")
    sys.path.insert(0, str(tmp_path))
    try:
        code, out, _ = run_on(replace(LAPTOP, entry_points={"torch.backends": {"acme": f"{name}:load"}}), "doctor")
    finally:
        sys.path.remove(str(tmp_path))
    assert code == 1
    assert "a plugin that it loads when it starts kills or stops the process." in out
    assert "export TORCH_DEVICE_BACKEND_AUTOLOAD=0" in out
    assert "without them it would choose cuda:0" in out


def test_a_host_where_nothing_computes_says_so() -> None:
    """Without torch and NumPy there is a problem, with what to install."""
    code, out, _ = run_on(replace(MACHINES["no-torch"], modules=()), "doctor")
    assert code == 1
    assert "nothing on this machine can compute." in out
    assert "pip install numpy" in out


# -- on paper ------------------------------------------------------------------------------------------
def test_names_from_outside_cannot_write_to_the_terminal() -> None:
    """A device's name with control characters is printed without them."""
    card = replace(LAPTOP.cards[0], name="evil\x1b[31m\ncard")
    _, out, _ = run_on(replace(LAPTOP, cards=(card,)), "doctor")
    assert "\x1b" not in out
    assert "evil [31m card" in out


def test_a_terminal_wraps_and_a_pipe_does_not() -> None:
    """Lines are broken at the width of a terminal only, so that a pipe can be searched."""
    code = textwrap.dedent(
        """
        import os, pty, sys
        os.environ["COLUMNS"] = "60"
        from devicekit.cli.output import print_text
        print_text("word " * 30, indent=2, hanging=4)
        """
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert len(piped.stdout.splitlines()) == 1
    spawned = f"import pty, sys; pty.spawn([sys.executable, '-c', {code!r}])"
    on_terminal = subprocess.run([sys.executable, "-c", spawned], capture_output=True, text=True, env=env, timeout=60)
    lines = on_terminal.stdout.splitlines()
    assert len(lines) > 2
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].startswith("    word")
