"""How much memory loading takes: the result and 64 MiB, as the kernel counts it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.weights.test_loading import by_hand, header_by_hand

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset its peak (/proc/self/clear_refs)"),
    pytest.mark.slow,
]

MIB = 1 << 20
MORE = 64 * MIB
"""What a load may take beside its result."""
WIDTHS = {"F8_E4M3": 1, "BF16": 2, "F32": 4}

CHILD = """
import gc, json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import devicekit as dk

half, single, shards, tiny = (Path(path) for path in sys.argv[1:])
dm, arrays = dk.DeviceManager("cpu"), dk.DeviceManager("numpy")


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def load(path, dm=dm, **options):
    return lambda: dm.load_safetensors(path, **options)


def by_safetensors(path, dtype):
    return lambda: {name: tensor.to(dtype) for name, tensor in load_file(path).items()}


def into(path, dtype, device="cpu", norm=False, step=1, **options):
    sizes = {name: tensor.numel() for name, tensor in dm.load_safetensors(path).items()}
    held = {name: torch.full((step * size,), 1.0, dtype=dtype, device=device)[::step] for name, size in sizes.items()}
    module = torch.nn.ParameterDict({name: torch.nn.Parameter(tensor) for name, tensor in held.items()})
    if norm:
        module = torch.nn.ModuleDict({"weights": module, "norm": torch.nn.BatchNorm1d(4)})
        options |= {"strict": False, "rename": lambda name: "weights." + name}
    return lambda: (dm.load_safetensors(path, into=module, **options), module)


cases = {
    "safetensors itself": (600, by_safetensors, half, {"dtype": torch.float32}),
    "mapped": (0, load, half, {}),
    "owned": (300, load, half, {"copy": True}),
    "owned, of shards": (300, load, shards, {"copy": True}),
    "to float32": (600, load, half, {"dtype": torch.float32}),
    "to float32, one thread": (600, load, half, {"dtype": torch.float32, "workers": 1}),
    "to float32, of shards, eight threads": (1200, load, shards, {"dtype": torch.float32, "workers": 8}),
    "to bfloat16": (150, load, single, {"dtype": torch.bfloat16}),
    "to float8": (75, load, single, {"dtype": torch.float8_e4m3fn}),
    "into a module": (0, into, half, {"dtype": torch.bfloat16}),
    "into a module of float32": (0, into, half, {"dtype": torch.float32}),
    "into a module of bfloat16": (0, into, single, {"dtype": torch.bfloat16}),
    "into a module of every second": (0, into, half, {"dtype": torch.float32, "step": 2}),
    "into a module with a batch norm": (0, into, half, {"dtype": torch.float32, "norm": True}),
    "into a module without memory": (0, into, half, {"dtype": torch.bfloat16, "device": "meta"}),
    "into a module without memory, owned": (300, into, half, {"dtype": None, "device": "meta", "copy": True}),
    "arrays, owned": (300, load, single, {"dm": arrays, "copy": True}),
    "arrays to float64": (600, load, single, {"dm": arrays, "dtype": "float64"}),
    "arrays to float16": (150, load, single, {"dm": arrays, "dtype": "float16"}),
}
load(tiny, dtype=torch.float64)()  # what is imported once
load(tiny, arrays, dtype="float64")()
measured = {}
for name, (result, make, path, options) in cases.items():
    run = make(path, **options)
    gc.collect()
    dm.empty_cache()
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    loaded = run()
    measured[name] = status("VmHWM") - before, result << 20
    del run, loaded
print(json.dumps(measured))
"""


def sparse(path: Path, dtype: str, mib: int, prefix: str = "") -> list[str]:
    """A file of zeros that takes no room on the disk: one large tensor, middle ones, a thousand small ones."""
    small, middle = 4096, 10 * MIB
    rest = mib * MIB // 2 - 1000 * small
    sizes = {"large": mib * MIB // 2 + rest % middle}
    sizes |= {f"middle_{n}": middle for n in range(rest // middle)} | {f"small_{n}": small for n in range(1000)}
    header = header_by_hand({prefix + n: (dtype, [size // WIDTHS[dtype]], size) for n, size in sizes.items()})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + mib * MIB)
    return [prefix + name for name in sizes]


def test_a_load_takes_its_result_and_64_mib(tmp_path: Path) -> None:
    """Owned, cast up or down, of shards, into modules and as arrays: the peak is the result and at most 64 MiB.

    The result of what is mapped, or goes into memory that is there already, is nothing. That two copies would be seen
    shows the way of safetensors itself.
    """
    half, single, index, tiny = (tmp_path / name for name in ("half", "single", "all.safetensors.index.json", "tiny"))
    sparse(half, "BF16", 300)
    sparse(single, "F32", 300)
    names = {f"{n}": sparse(tmp_path / f"{n}", "F8_E4M3", 100, f"{n}_") for n in range(3)}
    index.write_text(json.dumps({"weight_map": {name: shard for shard in names for name in names[shard]}}))
    tiny.write_bytes(by_hand({"w": ("F32", [2], 8)}))
    command = [sys.executable, "-W", "error", "-c", CHILD, *map(str, (half, single, index, tiny))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured: dict[str, list[int]] = json.loads(done.stdout)
    over = {name: (peak - result) / MIB for name, (peak, result) in measured.items()}
    assert {name for name, mib in over.items() if mib > MORE / MIB} == {"safetensors itself"}, over
