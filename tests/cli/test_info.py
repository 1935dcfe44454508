"""info: the whole machine, with a source for every figure and no runtime started in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from devicekit.cli import output
from devicekit.testing import MACHINES, Faults
from tests.cli.calling import SRC, run_on

pytestmark = pytest.mark.slow


def test_json_is_one_document_with_stable_keys() -> None:
    """`info --json` prints one document, with the same keys on every machine."""
    keys = [
        "decision", "automatic", "warnings", "machine", "memory", "torch", "backends", "versions", "tuning",
        "environment",
    ]  # fmt: skip
    for machine in ("cuda-laptop", "no-torch"):
        code, out, err = run_on(machine, "info", "--json")
        assert (code, err) == (0, "")
        assert list(json.loads(out)) == keys


def test_a_machine_with_an_accelerator_is_told_whole() -> None:
    """The decision, the card with memory and architecture, the driver and the pins that are set all stand there."""
    machine = replace(MACHINES["cuda-laptop"], env={"KRONOS_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "0"})
    code, out, err = run_on(machine, "info")
    assert (code, err) == (0, "")
    for said in (
        "'cuda' by KRONOS_DEVICE", "NVIDIA GeForce RTX 3060 Laptop GPU", "sm_86", "6.0 GiB", "5.5 GiB",
        "avx2 avx512_f", "driver", "CUDA_VISIBLE_DEVICES", "torch 2.13.0+cu130 is built for CUDA 13.0, not ROCm",
    ):  # fmt: skip
        assert " ".join(said.split()) in " ".join(out.split())


def test_number_formats_are_a_table() -> None:
    """Each usable device has a row, with a word for each format; what cannot be told is unknown."""
    _, out, _ = run_on("ascend", "info")
    table = out.partition("Number formats\n")[2].partition("\n\n")[0].splitlines()
    assert table[0].split() == [
        "device", "float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8", "int4",
    ]  # fmt: skip
    assert table[1].split() == ["npu:0", "no", "native", "no", "native", "native", "unknown", "unknown", "unknown"]
    assert [line.split()[0] for line in table[2:]] == ["cpu", "numpy"]
    assert "  npu:0  SoC" in out.partition("Traits\n")[2]


def test_versions_are_those_of_the_examined_torch() -> None:
    """The version of torch is the one that the child imported, and ROCm's is told where there is one."""
    told = json.loads(run_on("amd-workstation", "info", "--json").out)
    assert told["versions"]["torch"] == "2.13.0+rocm7.1"
    assert told["versions"]["hip"].startswith("7.1")


def test_memory_in_a_container_is_the_containers() -> None:
    """The limit counts, not the host, and the source names the file."""
    told = json.loads(run_on("container-2gib", "info", "--json").out)
    assert told["memory"]["total"] == 2 * 2**30
    assert "memory.max" in told["memory"]["source"]


def test_what_is_unknown_is_null_and_never_zero() -> None:
    """A runtime that cannot tell its memory gives null with a reason, and text says `unknown`."""
    machine = replace(MACHINES["ascend"], faults=Faults(no_memory_query=True))
    told = json.loads(run_on(machine, "info", "--json").out)
    [device] = next(b for b in told["backends"] if b["name"] == "npu")["devices"]
    assert device["free_memory"] is None
    assert device["memory_source"]
    assert " unknown " in run_on(machine, "info").out


def test_a_pin_that_is_no_device_is_told_not_raised() -> None:
    """info ends with 0 and says what is wrong, for a bug report must come out of a broken setup too."""
    code, out, _ = run_on(replace(MACHINES["cpu"], env={"DEVICEKIT_DEVICE": "cuad"}), "info")
    assert code == 0
    assert "'cuad' (from DEVICEKIT_DEVICE) is no device." in out
    assert "did you mean 'cuda'?" in out


def test_the_real_machine_is_told_without_torch_in_this_process() -> None:
    """`devicekit info` prints the real machine, and neither torch nor NumPy is imported where it runs."""
    code = (
        "import sys; from devicekit.cli.main import main\n"
        "code = main(['info'])\n"
        "assert not {'torch', 'numpy', 'psutil'} & set(sys.modules), 'imported'\n"
        "raise SystemExit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Decision\n")


# -- words -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, "unknown"),
        ("12", "unknown"),
        (True, "unknown"),
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (int(23.5 * 2**30), "23.5 GiB"),
        (2**60, "1024.0 PiB"),
        (-(2**30), "-1.0 GiB"),
    ],
)
def test_bytes_for_people(count: object, words: str) -> None:
    """Bytes are told in the unit that fits, and what is no number is unknown, not 0."""
    assert output.human_bytes(count) == words


def test_tables_have_no_colour_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What goes into a pipe has neither colours nor trailing blanks, and markup in a name is left as it is."""
    output.print_table([("[red]a[/red]", "b"), ("c", "")], ("x", "y"))
    assert capsys.readouterr().out == "  x             y\n  [red]a[/red]  b\n  c\n"
