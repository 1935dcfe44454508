"""run: a program for CUDA runs unchanged, says what it says and ends as it ends; what is ours goes to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from devicekit.host import Host
from tests.cli.calling import Ran, run, run_on, run_process

torch = pytest.importorskip("torch")

HERE = {"DEVICEKIT_DEVICE": "cpu"}
PLUGINS = [point.value for point in Host().entry_points("torch.backends")]
runs = pytest.mark.skipif(
    "devicekit.redirect.children:autoload" not in PLUGINS,
    reason="devicekit is not installed so that torch finds it, which would be told on stderr",
)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def ran(script: Path, text: str, *options: str, arguments: tuple[str, ...] = (), **env: str) -> Ran:
    """A program in a process of its own, in its folder."""
    script.write_text(text)
    return run_process("run", *options, script.name, *arguments, env={**HERE, **env}, cwd=script.parent)


# -- what cannot be run ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "what", "why"),
    [
        ([], "devicekit run needs a program", None),
        (["no_such_script.py"], "no_such_script.py cannot be run", "there is no such file"),
        (["-m", "no_such_module"], "the module no_such_module cannot be run", "no module named"),
        (["--device", "cpuu", "-c", "1"], "'cpuu' is no device", "no backend has this name"),
        (["--count", "0", "-c", "1"], "count=0 is no number of devices", None),
        (["--strict-cuda", "--count", "0", "-c", "1"], "count=0 is no number of devices", None),
        (["--shim", "apex", "-c", "1"], "there is no stand-in for 'apex'", None),
        (["--memory", "1GiB", "-c", "1"], "--memory is of simulated GPUs", "has what it has"),
        (["--capability", "8.0", "-c", "1"], "--capability is of simulated GPUs", "has what it has"),
        (["--strict-cuda", "--memory", "much", "-c", "1"], "memory='much' is no size", None),
        (["--strict-cuda", "--capability", "8", "-c", "1"], "--capability 8 is no compute capability", None),
        (["--strict-cuda", "--device", "npu", "-c", "1"], "--device npu and --strict-cuda exclude each other", None),
        (
            ["--report-json", "no/such/folder.json", "-c", "1"],
            "no/such/folder.json cannot be written",
            "no such folder",
        ),
        (["-m", "-c", "1"], "argument -c: not allowed with argument -m", None),
        (["--devcie", "cpu", "-c", "1"], "has no option '--devcie'", None),
    ],
)
def test_what_cannot_be_run(words: list[str], what: str, why: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines and 2, before anything runs and before anything is redirected."""
    monkeypatch.setattr("sys.argv", ["devicekit"])
    monkeypatch.setattr("sys.path", ["", *sys.path])
    code, out, err = run("run", *words)
    assert (code, out) == (2, "")
    first, *rest = err.splitlines()
    assert first.startswith("devicekit: ")
    assert what in first
    assert why is None or why in rest[0]
    assert rest[-1].startswith("  try: ")


def test_a_folder_without_a_main(tmp_path: Path) -> None:
    code, _, err = run("run", str(tmp_path))
    assert code == 2
    assert "it has no __main__.py" in err


def test_without_torch(script: Path) -> None:
    """The program is not begun."""
    script.write_text("raise SystemExit(3)")
    code, out, err = run_on("no-torch", "run", str(script))
    assert (code, out) == (2, "")
    assert err.startswith("devicekit: CUDA can be redirected only where torch is installed.\n  why: ")


# -- what runs ---------------------------------------------------------------------------------------
WORLD = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, format="mine: %(message)s")
logging.info("its own logging")
x = torch.ones(2, device="cuda")
print(sys.argv, __name__, torch.cuda.is_available(), x.device, x.cuda().sum().item())
sys.exit(3)
"""


@runs
@pytest.mark.slow
def test_a_script(script: Path) -> None:
    """What stands behind it is its own, also what looks like ours; stdout is its alone; the device is told once."""
    code, out, err = ran(script, WORLD, "--device", "cpu", arguments=("--report", "--", "--device", "x", "-m"))
    assert out == "['script.py', '--report', '--', '--device', 'x', '-m'] __main__ True cpu 2.0\n"
    assert code == 3
    assert err == 'devicekit: "cuda" is cpu here: as --device cpu says.\nmine: its own logging\n'


@runs
@pytest.mark.slow
@pytest.mark.parametrize("how", ["module", "text", "dashes"])
def test_other_ways(script: Path, how: str) -> None:
    """A module, a text, and a script behind two dashes; quietly, by an option or by the log level."""
    script.write_text(WORLD)
    words = {"module": ["--quiet", "-m", "script"], "text": ["-c", WORLD], "dashes": ["--quiet", "--", "script.py"]}[
        how
    ]
    env = {**HERE, "DEVICEKIT_LOG_LEVEL": "error"} if how == "text" else HERE
    code, out, err = run_process("run", *words, "--quiet", env=env, cwd=script.parent)
    name = {"module": str(script), "text": "-c", "dashes": "script.py"}[how]
    assert (code, out) == (3, f"['{name}', '--quiet'] __main__ True cpu 2.0\n")
    assert err == "mine: its own logging\n"


REPORTED = """
import atexit, multiprocessing, threading, time, torch

def work(n):
    torch.zeros(n).cuda()

def late():
    time.sleep(0.3)
    work(3)

if __name__ == "__main__":
    try:
        import triton_ops, triton
    except ImportError:
        pass
    try:
        import flash_attn
    except ImportError as exc:
        print(str(exc).splitlines()[0])
    for _ in range(3):
        torch.ones(2, device="cuda")
    for method in ("spawn", "fork"):
        child = multiprocessing.get_context(method).Process(target=work, args=(2,))
        child.start()
        child.join()
    threading.Thread(target=late).start()
    multiprocessing.get_context("spawn").Process(target=late).start()
    atexit.register(work, 1)
    assert torch.ones(2, device="cuda").is_cuda
"""


def at(text: str) -> int:
    """The line of the program that begins so."""
    return next(n for n, line in enumerate(REPORTED.splitlines(), 1) if line.strip().startswith(text))


@runs
@pytest.mark.slow
def test_the_report(script: Path) -> None:
    """Of a program that fails: its children, its threads and its last will are in it; what is asked for is a hint."""
    code, out, err = ran(script, REPORTED, "--report", "--report-json", "report.json")
    assert code == 1
    assert out == f"No module named 'flash_attn' ({script}:{at('import flash')})\n"
    lines = err.splitlines()
    assert lines[0] == 'devicekit: "cuda" is cpu here: as DEVICEKIT_DEVICE says: cpu.'
    assert lines[1:3] == ["Traceback (most recent call last):", f'  File "{script}", line {at("assert")}, in <module>']
    hint = lines.index("devicekit: try --strict-cuda, which makes tensors look like CUDA's.")
    assert lines[hint - 1] == "AssertionError"
    assert [line.split() for line in lines[hint + 1 :]] == [
        ["devicekit:", "redirected", "to", "cpu:"],
        ["times", "what", "where"],
        ["5", "Tensor.cuda", f"script.py:{at('torch.zeros')}"],
        ["3", "torch.ones", f"script.py:{at('torch.ones')}"],
        ["1", "torch.ones", f"script.py:{at('assert')}"],
        ["devicekit:", "refused,", "or", "gone", "on", "without:"],
        ["times", "what", "where"],
        ["1", "import", "flash_attn:", "not", "here", f"script.py:{at('import flash')}"],
    ]
    data = json.loads((script.parent / "report.json").read_text())
    assert data["target"]["device"] == "cpu"
    assert data["redirected"][0] == {"what": "Tensor.cuda", "file": "script.py", "line": at("torch.zeros"), "count": 5}
    assert [entry["what"] for entry in data["refused"]] == ["import flash_attn: not here"]


@runs
@pytest.mark.slow
def test_nothing_to_report(script: Path) -> None:
    """A program that never asks for CUDA; a file that cannot be written is told, and the code is the program's."""
    (script.parent / "folder").mkdir()
    code, out, err = ran(script, "print('done')", "--quiet", "--report", "--report-json", "folder")
    assert (code, out) == (0, "done\n")
    first, second, *_ = err.splitlines()
    assert first == "devicekit: nothing was redirected."
    assert second == "devicekit: folder cannot be written."


@runs
@pytest.mark.slow
def test_simulated_gpus(script: Path) -> None:
    """With --strict-cuda tensors look like CUDA's, on so many devices, of that memory and capability; none mix."""
    text = """
import torch
x = torch.ones(2, device="cuda:1")
print(x.is_cuda, x.device, torch.cuda.device_count(), torch.cuda.get_device_capability())
print(torch.cuda.get_device_properties(0).total_memory)
x + torch.ones(2)
"""
    options = ("--strict-cuda", "--count", "2", "--memory", "2GiB", "--capability", "9.0", "--report")
    code, out, err = ran(script, text, *options)
    assert (code, out) == (1, f"True cuda:1 2 (9, 0)\n{2 << 30}\n")
    first = 'devicekit: "cuda" is 2 simulated GPUs of 2.0 GiB, compute capability 9.0, on the processor.'
    assert err.splitlines()[0] == first
    assert "RuntimeError: Expected all tensors to be on the same device" in err
    assert "devicekit: redirected to simulated GPUs:" in err
    assert "--strict-cuda" not in err


@runs
@pytest.mark.slow
def test_a_stand_in(script: Path) -> None:
    """With --shim the package is there, in processes that are spawned as well."""
    text = """
import subprocess, sys, torch
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
import flash_attn
q = torch.ones(1, 2, 1, 8, device="cuda")
print(flash_attn.flash_attn_func(q, q, q).sum().item(), flush=True)
"""
    assert ran(script, text, "--quiet", "--shim", "flash-attn") == (0, "16.0\n16.0\n", "")


@runs
@pytest.mark.slow
def test_autocast(script: Path) -> None:
    """--autocast-dtype is what autocast computes in where it would take float16."""
    text = """
import torch
with torch.autocast("cuda"):
    print((torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype)
"""
    assert ran(script, text, "--quiet", "--autocast-dtype", "bfloat16") == (0, "torch.bfloat16\n", "")
