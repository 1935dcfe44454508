"""A real pipeline on the simulated npu: run in a process of its own, for torch forgets no such device.

Its tensors really are on another device, so what the hooks of accelerate do is seen. The device has 5.5 MiB, into which
the pipeline's 4.5 MiB go in half precision, one component at a time as they are, and one layer at a time when doubled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import diffusers  # noqa: F401  # before the npu, for which it would want more of torch_npu than is simulated
import torch
from tiny_pipeline import hooked, make_pipeline, picture, places

import devicekit as dk
from devicekit.testing.simulated_npu import install

WAYS = {
    torch.bfloat16: ("everything on npu:0 (weights 2.2 MiB, 5.5 MiB available)", {"npu"}),
    torch.float32: ("model CPU offload to npu:0 (weights 4.5 MiB, 5.5 MiB available)", {"cpu"}),
    torch.float64: ("sequential CPU offload to npu:0 (weights 9.0 MiB, 5.5 MiB available)", {"meta"}),
}
with tempfile.TemporaryDirectory() as folder:
    PIPES = {dtype: make_pipeline(Path(folder)).to(dtype) for dtype in WAYS}
install(memory="5632KiB", float64=True)
dm = dk.DeviceManager("npu", strict=True)


def check(dtype: torch.dtype, way: str, where: set[str], pipe: Any) -> None:
    """It is placed this way, draws the same, and comes back."""
    before, notes = picture(pipe), set(vars(pipe))
    mode = dm.set_memory_efficient_mode(pipe)
    assert [each for each in mode.done if each.startswith(way)], str(mode)
    assert set().union(*places(pipe).values()) == where, places(pipe)
    assert hooked(pipe) == (set() if where == {"npu"} else {"vae", "text_encoder", "unet"}), hooked(pipe)
    if where != {"meta"}:
        # accelerate's layer-wise hooks make tensors by the class of the old ones, which the simulated npu's refuses.
        dm.reset_peak_memory()
        assert torch.allclose(before, picture(pipe), atol=0.05 if dtype is torch.bfloat16 else 1e-4)
        assert 2 << 20 < dm.memory_stats().peak <= dm.memory_stats().total
    assert "already" in str(dm.set_memory_efficient_mode(pipe))
    mode.undo()
    mode.undo()
    assert set().union(*places(pipe).values()) == {"cpu"}, places(pipe)
    assert hooked(pipe) == set()
    assert set(vars(pipe)) == notes
    assert {t.dtype for t in pipe.unet.parameters()} == {dtype}
    assert torch.equal(before, picture(pipe))


for dtype, (way, where) in WAYS.items():
    check(dtype, way, where, PIPES.pop(dtype))
