"""The memory-efficient mode on the real diffusers, transformers and accelerate, with tiny models made here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit.backends.cpu import CpuBackend
from devicekit.efficient.mode import Here
from devicekit.efficient.switching import switch_on
from devicekit.host import current
from devicekit.testing import simulated_machine
from devicekit.values import MemoryStats
from tests.tiny_pipeline import hooked, make_pipeline, picture, places

# Their warnings about themselves are not what is tested.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HERE = Path(__file__).parent
LIBRARIES = ("diffusers", "transformers", "accelerate")


def needs(*libraries: str) -> None:
    """Skip, and say what to install."""
    for name in libraries:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install {' '.join(libraries)}")


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    """A fresh pipeline."""
    needs(*LIBRARIES)
    return make_pipeline(tmp_path)


class Apart(CpuBackend):
    """The processor, as if its memory were a device's: what runs there needs no accelerator, and really runs."""

    accelerator = True

    def holds(self, tensor: Any, device: Any) -> bool:
        return False


def apart(total: int, available: int) -> Here:
    """Such a device with so many bytes."""
    stats = MemoryStats(total=total, available=available, source="this test")
    return Here(Apart(current()), torch.device("cpu"), 0, lambda: stats)


# -- pictures ----------------------------------------------------------------------------------------------
def test_slices_draw_the_same_pictures(pipe: Any) -> None:
    """The same seeds give the same two pictures before, with everything in slices, and after undo."""
    before, processors = picture(pipe, 2), list(pipe.unet.attn_processors.values())
    with simulated_machine("vulkan"):  # it has no fused kernel, and its memory cannot be told
        mode = dk.DeviceManager("vulkan").set_memory_efficient_mode(pipe)
    assert [each.partition(":")[0] for each in mode.done] == [
        "attention slicing (unet)", "VAE slicing (vae)", "VAE tiling (vae)",
    ]  # fmt: skip
    assert {type(each).__name__ for each in pipe.unet.attn_processors.values()} == {"SlicedAttnProcessor"}
    assert torch.allclose(before, picture(pipe, 2), atol=1e-4)
    mode.undo()
    assert list(pipe.unet.attn_processors.values()) == processors
    assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (False, False)
    assert torch.equal(before, picture(pipe, 2))


def test_on_the_processor_torch_s_own_kernel_stays(pipe: Any) -> None:
    """Attention is not sliced where it is fused, nothing is offloaded, and the VAE saves memory."""
    before = picture(pipe)
    mode = dk.DeviceManager("cpu").set_memory_efficient_mode(pipe)
    assert len(mode.done) == 2
    assert "fused kernel (flash) on cpu" in str(mode)
    assert "weights" not in "".join(mode.done)
    assert not hooked(pipe)
    assert torch.allclose(before, picture(pipe), atol=1e-5)


# -- placing -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("total", "way"), [(5632 << 10, "model CPU offload to cpu"), (3 << 20, "sequential CPU offload to cpu")]
)
def test_offloaded_components_draw_the_same_picture(pipe: Any, total: int, way: str) -> None:
    """accelerate's hooks are there, the picture is the same, twice, and undo leaves neither hooks nor notes behind."""
    before, notes, where = picture(pipe), set(vars(pipe)), places(pipe)
    here = apart(total, total)
    mode = switch_on(here, pipe)
    assert [each for each in mode.done if each.startswith(way)], str(mode)
    assert hooked(pipe) == {"vae", "text_encoder", "unet"}
    # Layer by layer accelerate fails on weights that are on the device already, and on the CPU all are.
    for _ in range(2 if way.startswith("model") else 0):  # diffusers sets the hooks anew after each picture
        assert torch.allclose(before, picture(pipe), atol=1e-5)
    assert "already on, by accelerate's hooks" in str(switch_on(here, pipe))
    mode.undo()
    mode.undo()
    assert hooked(pipe) == set()
    assert places(pipe) == where
    assert set(vars(pipe)) == notes
    assert torch.equal(before, picture(pipe))


def test_an_earlier_number_does_not_win(pipe: Any) -> None:
    """diffusers would offload to the second device again, where the first is asked for by number 0."""
    pipe.enable_model_cpu_offload(device="cpu:1")
    pipe.remove_all_hooks()
    mode = switch_on(apart(5632 << 10, 5632 << 10), pipe)
    assert str(pipe._offload_device) == "cpu:0"
    mode.undo()
    assert (pipe._offload_gpu_id, str(pipe._offload_device)) == (1, "cpu:1")


def test_a_pipeline_without_an_order_is_offloaded_by_layers(pipe: Any) -> None:
    """enable_model_cpu_offload() refuses without model_cpu_offload_seq, so it is not asked."""
    pipe.model_cpu_offload_seq = None
    assert "sequential CPU offload" in "".join(switch_on(apart(5632 << 10, 5632 << 10), pipe).done)


def test_a_real_pipeline_on_a_simulated_npu() -> None:
    """On a device that is not CUDA, with tensors that are really on it, each way places, draws and comes back."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}; pip install {' '.join(LIBRARIES)}")
    path = os.pathsep.join([str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "offloading.py")],
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    if "cannot be installed: torch " in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-4000:]


# -- training ----------------------------------------------------------------------------------------------
def gradients(model: Any, *args: Any, **named: Any) -> dict[str, torch.Tensor]:
    """Of a loss, by the weight's name."""
    model.zero_grad()
    found = model(*args, **named)
    (found.sample if hasattr(found, "sample") else found.last_hidden_state).square().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def same_gradients(model: Any, *args: Any, **named: Any) -> None:
    """Checkpointing changes nothing but memory and time, is on in between, and leaves the attributes as they were."""
    model.train()
    before, flags = gradients(model, *args, **named), [dict(vars(part)) for part in model.modules()]
    mode = dk.DeviceManager("cpu").set_memory_efficient_mode(model)
    assert [each for each in mode.done if each.startswith("gradient checkpointing")], str(mode)
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    during = gradients(model, *args, **named)
    assert before.keys() == during.keys()
    assert all(torch.allclose(before[name], during[name], atol=1e-6) for name in before)
    mode.undo()
    after = [vars(part) for part in model.modules()]
    for old, new in zip(flags, after, strict=True):
        for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            assert old.get(name) is new.get(name)
        assert len(old["_forward_hooks"]) == len(new["_forward_hooks"])


def test_a_transformer_trains_with_less() -> None:
    """With real transformers; its deprecated spelling is not used where there is a newer one."""
    needs("transformers")
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    same_gradients(BertModel(config, add_pooling_layer=False), torch.arange(12).reshape(2, 6))


def test_a_unet_trains_with_less(pipe: Any) -> None:
    """With real diffusers."""
    torch.manual_seed(0)
    same_gradients(pipe.unet, torch.randn(1, 4, 16, 16), 3, encoder_hidden_states=torch.randn(1, 5, 32))
