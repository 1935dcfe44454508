"""Processes that a redirected program starts are redirected as it is, and nobody else is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

import devicekit as dk
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.isolation.process import BOOT
from devicekit.redirect import children, layer
from devicekit.redirect.children import SWITCH, VARIABLE, Settings
from devicekit.redirect.entry import redirect_cuda

torch = pytest.importorskip("torch")

SEVERAL = Path(__file__).parent / "several"
slow = pytest.mark.slow
PLUGINS = [point.value for point in Host().entry_points("torch.backends")]
heard = pytest.mark.skipif(
    f"{children.__name__}:autoload" not in PLUGINS, reason="devicekit's entry point is not installed"
)

EVERYTHING = Settings(
    device="npu", policy="masquerade", count=2, memory="24GiB", capability=(8, 6), autocast_dtype="bfloat16",
    shims=("flash-attn",), report="/somewhere",
)  # fmt: skip


def started(command: list[str], settings: Settings | str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """A Python process that finds this devicekit, with or without the variable."""
    if settings is not None:
        env[VARIABLE] = settings if isinstance(settings, str) else settings.to_json()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1", **env}
    path = os.pathsep.join([str(Path(dk.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def output(command: list[str], settings: Settings | str | None = None, **env: str) -> list[str]:
    done = started(command, settings, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


# -- what is said ------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [Settings(), EVERYTHING, Settings(memory=1 << 30)])
def test_settings_survive_the_variable(settings: Settings) -> None:
    assert Settings.from_json(settings.to_json()) == settings


def test_only_what_was_said_is_in_it() -> None:
    assert json.loads(Settings("cpu").to_json()) == {"device": "cpu", "policy": "translate"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cpu", "Expecting value"),
        ("[]", "list is no object"),
        ('{"devise": "cpu"}', "'devise' is not known"),
        ('{"device": 3}', "device=3 is of the wrong type"),
        ('{"count": true}', "count=True is of the wrong type"),
        ('{"policy": "lie"}', "policy='lie' is neither translate nor masquerade"),
        ('{"capability": [8]}', "no pair of whole numbers"),
        ('{"capability": 8}', "not iterable"),
    ],
)
def test_a_variable_that_makes_no_sense(text: str, why: str) -> None:
    """One error that says what, why, and what to try."""
    with pytest.raises(DeviceKitError, match="does not say how to redirect") as caught:
        Settings.from_json(text)
    assert why in caught.value.why
    assert VARIABLE in caught.value.try_


def test_a_dtype_that_there_is_not() -> None:
    with pytest.raises(DeviceKitError, match="'floating' is no dtype"):
        children.enter_from(Settings(autocast_dtype="floating"))
    assert layer._STACK == []


# -- in the parent -----------------------------------------------------------------------------------
@heard
@pytest.mark.parametrize("before", [None, "something"])
def test_the_variable_is_there_while_it_is_in_force(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    """And afterwards it is what it was, also after an error."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    told = redirect_cuda("cpu", count=3, autocast_dtype=torch.bfloat16, children=True)
    said = None
    with contextlib.suppress(ZeroDivisionError), told:
        said = Settings.from_json(os.environ[VARIABLE])
        1 / 0  # noqa: B018
    assert said == Settings("cpu", count=3, autocast_dtype="bfloat16")
    assert os.environ.get(VARIABLE) == before


def test_nobody_is_told_unless_asked() -> None:
    with redirect_cuda("cpu"):
        assert VARIABLE not in os.environ


@heard
def test_a_process_that_is_redirected_is_not_redirected_again() -> None:
    with redirect_cuda("cpu", children=True):
        depth = len(layer._STACK)
        children.autoload()
        assert len(layer._STACK) == depth


def test_without_the_variable_nothing_happens() -> None:
    children.autoload()
    assert layer._STACK == []


def test_who_does_not_hear_it() -> None:
    """The reasons, in words that say what to do."""
    ours = f"{children.__name__}:autoload"
    assert children.why_unheard({}, ["other:load", ours]) == ""
    assert children.why_unheard({SWITCH: "1"}, [ours]) == ""
    assert f"{SWITCH}=0 keeps torch from asking" in children.why_unheard({SWITCH: "0"}, [ours])
    assert "not installed" in children.why_unheard({}, ["other:load"])


def test_it_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off for this test")
    with pytest.warns(UserWarning, match="are not redirected: TORCH_DEVICE_BACKEND_AUTOLOAD=off for this test"):
        with redirect_cuda("cpu", children=True):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with redirect_cuda("cpu", children=True):
            pass


def test_devicekit_does_not_take_itself_for_a_foreign_plugin() -> None:
    """A broken plugin is kept away from torch; ours is not among those that are suspected."""
    ours, others = Host().torch_plugins()
    assert len(ours) == PLUGINS.count(f"{children.__name__}:autoload")
    assert not [plugin for plugin in others if plugin.value.startswith("devicekit")]


def test_who_looks_at_the_machine_is_not_redirected() -> None:
    assert f"os.environ.pop('{VARIABLE}', None)" in BOOT


def test_threads_can_import_what_is_almost_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers are asked in threads, and a driver's package imports torch."""
    (tmp_path / "almost.py").write_text("import call_me\ncall_me.now()\n")
    monkeypatch.syspath_prepend(tmp_path)
    found: list[Any] = []

    def look() -> None:
        import almost

        found.append(almost)

    class CallMe:
        @staticmethod
        def now() -> None:
            with children._counts_as_imported("almost"):
                thread = threading.Thread(target=look, daemon=True)
                thread.start()
                thread.join(20)

    monkeypatch.setitem(sys.modules, "call_me", CallMe)  # type: ignore[arg-type]
    try:
        import almost

        assert found == [almost]
    finally:
        sys.modules.pop("almost", None)


# -- in a child --------------------------------------------------------------------------------------
@slow
@heard
def test_without_the_variable_it_costs_one_small_file() -> None:
    """No other part of devicekit is imported, and torch is as ever."""
    code = (
        "import sys, torch; print(*sorted(m for m in sys.modules if m.startswith('devicekit')))\n"
        "print(type(torch.zeros).__name__)"
    )
    modules, kind = output(["-c", code])
    assert modules == "devicekit devicekit.redirect devicekit.redirect.children"
    assert kind == "builtin_function_or_method"


@slow
@heard
def test_a_child_is_redirected_for_its_life() -> None:
    code = "import torch; print(torch.ones(2, device='cuda:7').device, torch.cuda.device_count())"
    assert output(["-c", code], Settings("cpu", count=2)) == ["cpu 2"]


@slow
@heard
def test_a_child_has_simulated_cards() -> None:
    code = (
        "import torch; x = torch.ones(2).cuda(1); print(x.device, torch.cuda.get_device_capability())\n"
        "try: x + torch.ones(2)\nexcept RuntimeError as error: print(str(error)[:8])"
    )
    settings = Settings(policy="masquerade", count=2, memory="1GiB", capability=(9, 0))
    assert output(["-c", code], settings) == ["cuda:1 (9, 0)", "Expected"]


@slow
@heard
def test_a_child_whose_torch_devicekit_imports_first() -> None:
    code = (
        "import devicekit; devicekit.resolve_device('cpu')\n"
        "import torch; print(torch.ones(2, device='cuda').device, devicekit.resolve_device('cpu'))"
    )
    assert output(["-c", code], Settings("cpu")) == ["cpu cpu"]


@slow
@heard
@pytest.mark.parametrize("code", ["import torch", "import devicekit; devicekit.resolve_device('cpu', strict=True)"])
def test_a_broken_variable_is_one_clear_error(code: str) -> None:
    done = started(["-c", code], "{broken")
    assert done.returncode == 1
    assert "does not say how to redirect CUDA" in done.stderr


@slow
@heard
def test_a_device_that_is_not_there_is_an_error() -> None:
    """Else one process would work on another device than the others, which wait for it."""
    done = started(["-c", "import torch"], Settings("no-such-device"))
    assert done.returncode == 1
    assert "no-such-device" in done.stderr


@slow
@heard
def test_with_torchs_switch_off_nobody_is_asked() -> None:
    code = "import torch; print(type(torch.zeros).__name__, 'devicekit' in __import__('sys').modules)"
    assert output(["-c", code], Settings("cpu"), **{SWITCH: "0"}) == ["builtin_function_or_method False"]


# -- whole programs ----------------------------------------------------------------------------------
@slow
@heard
@pytest.mark.parametrize("policy", ["translate", "masquerade"])
def test_training_in_two_processes(policy: str) -> None:
    """``mp.spawn``, NCCL, averages, SyncBatchNorm, DistributedDataParallel; each number is checked there."""
    said = output([str(SEVERAL / "training.py"), "2"], Settings(policy=policy, count=2))
    places = ["cpu", "cpu"] if policy == "translate" else ["cuda:0", "cuda:1"]
    assert sorted(said) == [f"rank {rank} of 2: {place}" for rank, place in enumerate(places)]


@slow
@heard
@pytest.mark.parametrize("number", ["2", "gpu"])
def test_torchrun(number: str) -> None:
    """The launcher and its processes; "gpu" are as many as CUDA stands for."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    said = output([*launcher, str(SEVERAL / "training.py")], Settings("cpu", count=2))
    assert sorted(said) == ["rank 0 of 2: cpu", "rank 1 of 2: cpu"]


@slow
@heard
@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("fork", "fork: True 2"),
        ("spawn", "spawn: True 2"),
        ("forkserver", "forkserver: True 2"),
        ("queue", "queue: [6.0, 6.0] [6.0, 6.0]"),  # memory is shared between processes, as on a card
        ("loader", "loader: [2.0, 10.0]"),
        ("subprocess", "subprocess: 2.0"),
    ],
)
def test_ways_to_start_a_process(way: str, says: str) -> None:
    assert output([str(SEVERAL / "starting.py"), way], Settings("cpu", count=2)) == [says]


@slow
@heard
def test_what_children_count_comes_to_the_parent() -> None:
    code = (
        "import subprocess, sys, devicekit\n"
        "with devicekit.redirect_cuda('cpu', report=True, children=True) as redirect:\n"
        "    subprocess.run([sys.executable, '-c', 'import torch; torch.ones(1).cuda()'], check=True)\n"
        "print([(place.what, count) for place, count in redirect.record.counts.items()])"
    )
    assert output(["-c", code]) == ["[('Tensor.cuda', 1)]"]
