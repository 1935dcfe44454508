"""The page for who has a device layer of his own is true: each row's code runs, and gives what the row says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import devicekit as dk
from devicekit import host
from devicekit.cli.main import main
from devicekit.distributed import Processes
from devicekit.efficient.mode import EfficientMode
from devicekit.host import Host
from devicekit.precision import Autocast
from devicekit.tuning.value import Tuning

torch = pytest.importorskip("torch")

PAGE = Path(__file__).parents[1] / "docs" / "migrating.md"
HEAD = ("theirs", "ours", "gives", "what is different")


class Row(NamedTuple):
    """One line of a table."""

    theirs: str
    ours: str
    gives: str
    different: str


class Told(NamedTuple):
    """What a command came to."""

    code: int
    out: str


def rows() -> list[Row]:
    """Every row of the page's tables; no cell holds a line."""
    found, head = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split("|")) if line.startswith("|") else ()
        if cells == HEAD:
            head = True
        elif head and len(cells) == len(HEAD) and set(cells) != {"---"}:
            found.append(Row(*cells))
        elif not cells:
            head = False
    return found


ROWS = rows()

KINDS: dict[str, Callable[[Any], bool]] = {
    "`torch.device`": lambda got: isinstance(got, torch.device),
    "`dict`": lambda got: type(got) is dict,
    "`list`": lambda got: type(got) is list,
    "`tuple`": lambda got: type(got) is tuple,
    "`bool`": lambda got: type(got) is bool,
    "`int`": lambda got: type(got) is int,
    "`str`": lambda got: type(got) is str,
    "`None`": lambda got: got is None,
    "`str` or `None`": lambda got: got is None or type(got) is str,
    "`int` or `None`": lambda got: got is None or type(got) is int,
    "`Tuning` or `None`": lambda got: got is None or isinstance(got, Tuning),
    "`Verdict`": lambda got: isinstance(got, dk.Verdict),
    "`DeviceManager`": lambda got: isinstance(got, dk.DeviceManager),
    "`MemoryStats`": lambda got: isinstance(got, dk.MemoryStats),
    "`Weights`": lambda got: isinstance(got, dk.Weights),
    "`EfficientMode`": lambda got: isinstance(got, EfficientMode),
    "`Autocast`": lambda got: isinstance(got, Autocast),
    "`Processes`": lambda got: isinstance(got, Processes),
    "`Module`": lambda got: isinstance(got, torch.nn.Module),
    "`Generator`": lambda got: isinstance(got, torch.Generator),
    "exit code 0": lambda got: isinstance(got, Told) and got.code == 0,
    "raises `UnknownDeviceError`": lambda got: isinstance(got, dk.UnknownDeviceError),
}
"""What stands under "gives", to what that means."""

CHECKS: dict[str, Callable[[Any], object]] = {
    "`get_best_device()`": lambda got: got.type in {"cpu", "cuda", "xpu", "npu", "mps"},
    "`print_device_info()`": lambda got: "Machine" in got.out and "Backends" in got.out,
    "`get_device_info()`": lambda got: json.dumps(got) and all(b["reason"] for b in got["backends"]),
    "`is_rocm_platform()`": lambda got: got is False,
    "`is_vulkan_available()`": lambda got: got is ("vulkan" in dk.available_backends()),
    "`get_rocm_version()`": lambda got: got is None,
    "`get_cpu_features()`": lambda got: all(type(name) is str for name in got),
    "`get_rocm_info()`": lambda got: got.backend == "rocm" and got.reason,
    "`optimize_for_rocm()`": lambda got: got is None,  # nothing was tuned here
    "`get_optimal_batch_size()`": lambda got: got == 20,
    "`torch.autocast(device_type=device)`": lambda got: got.enabled or got.reason,
    "`get_available_backends()`": lambda got: {"cpu", "numpy"} <= set(got),
    "`get_default_backend()`": lambda got: got in dk.available_backends(),
    '`set_backend("cpu")`': lambda got: got.backend == "cpu",
    "`get_backend()`": lambda got: got == "cpu",
    "`auto_configure_backend()`": lambda got: got.backend in dk.available_backends() and got.warning is None,
    "`BackendOptimizer`": lambda got: "`devicekit tune` measures what is best" in got.out,
    "`get_memory_info()`": lambda got: 0 < got.available <= got.total and got.source,
    "`benchmark_backends()`": lambda got: "TFLOP/s" in got.out,
    "`save_config()`": lambda got: got.out.startswith("Saved: cpu (in "),
    "`load_config()`": lambda got: got.out.startswith("Nothing is saved"),
    "`DeviceManager.to(model)`": lambda got: next(got.parameters()).device.type == "cpu",
    "`DeviceManager.create_generator(seed)`": lambda got: got.initial_seed() == 0,
    "`DeviceManager.load_safetensors(path)`": lambda got: got["weight"].device.type == "cpu",
    "`DeviceManager.set_memory_efficient_mode(pipeline)`": lambda got: got.done or got.not_done,
    "`DeviceManager.memory_stats()`": lambda got: got.source,
    "`DeviceManager.empty_cache()`": lambda got: got is None,
    '`int(os.environ["CUDA_VISIBLE_DEVICES"])`': lambda got: got is None,
    '`device, warning = resolve_device("auto")`': lambda got: got == (torch.device("cpu"), None),
    '`resolve_device("invalid")`': lambda got: got.why and got.try_,
    "`KRONOS_DEVICE`": lambda got: got == "default",
    "`predictor.device_warning`": lambda got: json.loads(json.dumps(got)) == got and got["warning"] is None,
    "`print(device)`": lambda got: got is None,
    '`use_ddp = device.type == "cuda" and WORLD_SIZE > 1`': lambda got: (got.rank, got.world_size) == (0, 1),
    '`device = "cuda"`': lambda got: got == "cpu",
}
"""A row's "theirs", to what must hold of what its "ours" gives; true means good."""

WANTED = (
    "get_best_device", "print_device_info", "is_rocm_platform", "is_vulkan_available", "get_rocm_version",
    "get_cpu_features", "get_rocm_info", "optimize_for_rocm", "get_optimal_batch_size", "get_available_backends",
    "set_backend", "get_backend", "auto_configure_backend", "BackendOptimizer", "get_memory_info",
    "benchmark_backends", "save_config", "load_config", "DeviceManager.to", "DeviceManager.create_generator",
    "DeviceManager.load_safetensors", "DeviceManager.set_memory_efficient_mode", "DeviceManager.memory_stats",
    "DeviceManager.empty_cache", "resolve_device",
)  # fmt: skip


class Untouched(Host):
    """The real machine, for a user who has set and saved nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(env={**os.environ, "XDG_CONFIG_HOME": str(folder)})
        self.folder = folder

    def config_file(self, name: str) -> Path:
        return self.folder / "devicekit" / name


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the page says that a row may use, on a host with a configuration folder of its own."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def step(size: int) -> None:
        if size > 20:
            raise MemoryError

    model = torch.nn.Linear(3, 2)
    path = dk.save_safetensors(model, tmp_path / "model.safetensors")
    with host.use(Untouched(tmp_path)):
        dm = dk.DeviceManager("cpu")
        yield {"dk": dk, "dm": dm, "torch": torch, "model": model, "path": path, "step": step}


def codes(row: Row) -> list[str]:
    """The code of a row's "ours", piece by piece."""
    return re.findall(r"`([^`]+)`", row.ours)


def command(code: str) -> Told:
    """A command as the shell would give it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code_ = main(shlex.split(code)[1:])
    return Told(code_, out.getvalue())


def answer(code: str, names: dict[str, Any]) -> Any:
    """What a row's code gives; an error of ours is an answer too."""
    if code.startswith("devicekit "):
        return command(code)
    try:
        return eval(code, names)
    except dk.DeviceKitError as error:
        return error


def _case(row: Row) -> Any:
    starts_processes = any(code.startswith("devicekit ") for code in codes(row))
    return pytest.param(row, id=row.theirs.strip("`"), marks=[pytest.mark.slow] if starts_processes else [])


@pytest.mark.parametrize("row", [_case(row) for row in ROWS])
def test_ours_gives_what_the_row_says(row: Row, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The code runs on this machine's processor, and the answer is of the kind and has the value that it should."""
    (code,) = codes(row)
    assert row.ours == f"`{code}`"
    got = answer(code, names)
    assert KINDS[row.gives](got), got
    assert CHECKS[row.theirs](got), got


def test_every_row_has_its_check_and_every_check_its_row() -> None:
    """No row is left unchecked, none is told twice, and no check or kind is left behind when a row goes."""
    assert sorted(row.theirs for row in ROWS) == sorted(CHECKS)
    assert {row.gives for row in ROWS} == set(KINDS)


def test_every_call_of_the_five_is_on_the_page() -> None:
    """Each function and method of theirs has a row."""
    theirs = " ".join(row.theirs for row in ROWS)
    assert [name for name in WANTED if not re.search(rf"(?<![\w.]){re.escape(name)}\b", theirs)] == []


def test_every_line_of_a_table_is_a_row() -> None:
    """Nothing that looks like a row escapes the test."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS) > 30
