"""What saves memory is switched on where it helps, by figures, told in words, and undone without a trace."""

from __future__ import annotations

import dataclasses
import gc
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit.efficient.mode import EfficientMode, Steps
from devicekit.testing import simulated_machine

ACCELERATORS: dict[str, dict[str, Any]] = {
    "cuda": {"cuda": 1},
    "rocm": {"rocm": 1},
    "xpu": {"xpu": 1},
    "npu": {"npu": 1},
    "mps": {"mps": True},
}
MIB = 1 << 20


class Part(torch.nn.Module):
    """So many MiB of weights."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(mib * MIB // 2, dtype=torch.float16))


class Vae(Part):
    """Slices and tiles as a VAE of diffusers does."""

    def __init__(self, mib: int = 1) -> None:
        super().__init__(mib)
        self.use_slicing = self.use_tiling = False

    def enable_slicing(self) -> None:
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self) -> None:
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False


class AttnProcessor2_0:
    """What a layer has by itself."""


class SlicedAttnProcessor:
    """What a layer has in slices."""


class IPAdapterAttnProcessor2_0:
    """What an IP adapter brings."""


class Layer(torch.nn.Module):
    """An attention layer as in diffusers: asked for none, it takes a new plain processor."""

    def __init__(self) -> None:
        super().__init__()
        self.processor: object = AttnProcessor2_0()

    def set_attention_slice(self, size: object) -> None:
        self.set_processor(SlicedAttnProcessor() if size else AttnProcessor2_0())

    def set_processor(self, processor: object) -> None:
        self.processor = processor


class Unet(Part):
    """A model with attention."""

    def __init__(self, mib: int = 1) -> None:
        super().__init__(mib)
        self.layers = torch.nn.ModuleList([Layer(), Layer()])
        self.sliced_by: object = None

    def set_attention_slice(self, size: object) -> None:
        self.sliced_by = size
        for layer in self.layers:
            layer.set_attention_slice(size)


class Pipeline:
    """What a pipeline of diffusers can do, as far as it matters here."""

    model_cpu_offload_seq: str | None = "text->unet->vae"

    def __init__(self, text: int = 1, unet: int = 1, vae: int = 1, **others: Any) -> None:
        self.components = {"text": Part(text), "unet": Unet(unet), "vae": Vae(vae), "scheduler": object(), **others}
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["components"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def modules(self) -> list[Any]:
        return [part for part in self.components.values() if isinstance(part, torch.nn.Module)]

    def to(self, device: Any = None, dtype: Any = None) -> Pipeline:
        self.calls.append(("to", device))
        for module in self.modules:
            module.to(device)
        return self

    def enable_attention_slicing(self, size: object = "auto") -> None:
        raise AssertionError("it says nothing of what it did")

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        self._offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        self._offload("sequential", gpu_id, device)

    def _offload(self, kind: str, gpu_id: int | None, device: Any) -> None:
        self.calls.append((kind, device))
        self._offload_gpu_id = gpu_id or device.index or self.__dict__.get("_offload_gpu_id", 0)
        self._all_hooks = [object()]
        for module in self.modules:
            module._hf_hook = object()
            module._apply(torch.clone)  # it leaves the device

    def remove_all_hooks(self) -> None:
        for module in self.modules:
            vars(module).pop("_hf_hook", None)
        self._all_hooks = []


def sentence(told: tuple[str, ...], start: str) -> str:
    """The one that starts like this."""
    (found,) = [each for each in told if each.startswith(start)]
    return found


# -- where the weights go, by their bytes ---------------------------------------------------------------
SIZES = {
    "to": ((1, 6, 1), "everything on", "weights 8.0 MiB, 16.0 MiB available", "they fit, with 4.0 MiB to work in"),
    "model": ((4, 8, 4), "model CPU offload to", "weights 16.0 MiB, 16.0 MiB available", "(unet) takes 8.0 MiB"),
    "sequential": ((1, 13, 1), "sequential CPU offload to", "weights 15.0 MiB, 16.0 MiB available", "which is slow"),
}


@pytest.mark.parametrize("way", SIZES)
@pytest.mark.parametrize("kind", ACCELERATORS)
def test_figures_decide(kind: str, way: str) -> None:
    """On every backend the weights' bytes and the memory there is choose, and diffusers is told which device it is.

    Its helpers assume CUDA where they are not told (huggingface/diffusers#4197, #6937, #11288, #4191).
    """
    mib, start, figures, words = SIZES[way]
    with simulated_machine(**ACCELERATORS[kind], memory="16MiB"):
        dm, pipe = dk.DeviceManager(), Pipeline(*mib)
        told = sentence(dm.set_memory_efficient_mode(pipe).done, f"{start} {dm.device}")
        assert figures in told
        assert words in told
        ((called, device),) = pipe.calls
        assert called == way
        assert way == "to" or device is dm.device
        assert (dm.memory_stats().allocated >= 8 * MIB) is (way == "to")


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_a_second_time_nothing_happens_and_undo_takes_all_back(kind: str) -> None:
    """The second call says already; undo leaves the memory, the hooks and the notes as they were, also twice."""
    for way, (mib, *_) in SIZES.items():
        with simulated_machine(**ACCELERATORS[kind], memory="16MiB"):
            dm, pipe = dk.DeviceManager(), Pipeline(*mib)
            before, notes = dm.memory_stats().allocated, set(vars(pipe))
            mode = dm.set_memory_efficient_mode(pipe)
            again = dm.set_memory_efficient_mode(pipe)
            assert not again
            assert again.done == ()
            assert "already" in sentence(again.not_done, "CPU offload")
            assert len(pipe.calls) == 1
            mode.undo()
            mode.undo()
            gc.collect()
            assert dm.memory_stats().allocated == before, way
            assert set(vars(pipe)) == notes
            assert not any(hasattr(module, "_hf_hook") for module in pipe.modules)
            assert not pipe.vae.use_slicing
            assert dm.set_memory_efficient_mode(pipe).done == mode.done


def test_what_is_there_already_counts_as_room() -> None:
    """A large component on the device needs no second place: 8 of 16 MiB are taken by this pipeline itself."""
    with simulated_machine(cuda=1, memory="16MiB"):
        dm, pipe = dk.DeviceManager(), Pipeline(1, 8, 1)
        dm.to(pipe.unet)
        mode = dm.set_memory_efficient_mode(pipe)
        assert "weights 10.0 MiB, 16.0 MiB available: they fit" in sentence(mode.done, "everything").replace(")", "")
        mode.undo()
        gc.collect()
        assert dm.memory_stats().allocated == 8 * MIB  # where it was


def test_undo_of_an_offload_brings_components_back_to_where_they_were() -> None:
    """The one that was on the device is there again, and the others are not."""
    with simulated_machine(rocm=1, memory="16MiB"):
        dm, pipe = dk.DeviceManager(), Pipeline(4, 8, 4)
        dm.to(pipe.unet)
        mode = dm.set_memory_efficient_mode(pipe)
        assert "weights 16.0 MiB, 16.0 MiB available" in sentence(mode.done, "model CPU offload")
        gc.collect()
        assert dm.memory_stats().allocated == 0
        mode.undo()
        gc.collect()
        assert dm.memory_stats().allocated == 8 * MIB


def test_what_others_take_is_no_room() -> None:
    """Available memory counts, not the card's."""
    with simulated_machine("amd-workstation", memory="16MiB"):
        dm = dk.DeviceManager()
        others = dm.to(torch.zeros(6 * MIB, dtype=torch.uint8))
        assert "10.0 MiB available" in sentence(dm.set_memory_efficient_mode(Pipeline(1, 5, 1)).done, "model")
        del others


def test_shared_memory_is_counted_once() -> None:
    """On a Mac weights leave the host's memory as they come to the GPU, so that little else must be free."""
    with simulated_machine(mps=True, memory="16MiB", host_free="4MiB"):
        told = sentence(dk.DeviceManager().set_memory_efficient_mode(Pipeline(2, 2, 2)).done, "everything on mps")
        assert "weights 6.0 MiB, 10.0 MiB available" in told


def test_shared_weights_count_once() -> None:
    """Two components with the same weights take the bytes of one."""
    with simulated_machine(npu=1, memory="16MiB"):
        pipe = Pipeline(6, 1, 1)
        pipe.components["text_2"] = pipe.text
        assert "weights 8.0 MiB" in sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).done, "everything")


def test_components_that_stay_need_room_beside_the_largest() -> None:
    """What is not in the pipeline's chain, as a safety checker, is put on the device for good."""
    with simulated_machine(xpu=1, memory="16MiB"):
        dm = dk.DeviceManager()
        assert sentence(dm.set_memory_efficient_mode(Pipeline(4, 8, 3)).done, "model")
        assert sentence(dm.set_memory_efficient_mode(Pipeline(1, 8, 1, safety_checker=Part(5))).done, "sequential")


def test_without_an_order_of_components_there_is_no_model_offload() -> None:
    """diffusers refuses it there, so the layers come one by one."""
    with simulated_machine(cuda=1, memory="16MiB"):
        pipe = Pipeline(4, 8, 4)
        pipe.model_cpu_offload_seq = None
        assert sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).done, "sequential")


@pytest.mark.parametrize("machine", [{"machine": "intel-igpu"}, {"npu": 1, "faults": "no_memory_query"}])
def test_unknown_memory_decides_nothing(machine: dict[str, Any]) -> None:
    """Where the runtime cannot tell what is free nothing is moved, and the reason and the weights' size are told."""
    with simulated_machine(**machine):
        pipe = Pipeline()
        told = sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "CPU offload")
        assert "cannot tell how much memory is available (" in told
        assert "3.0 MiB" in told
        assert pipe.calls == []


def test_the_processor_offloads_nothing() -> None:
    """There the weights are where they are computed, in words and without a call."""
    with simulated_machine():
        pipe = Pipeline()
        mode = dk.DeviceManager().set_memory_efficient_mode(pipe)
        assert "everything (3.0 MiB) is where it is computed: cpu" in sentence(mode.not_done, "CPU offload")
        assert pipe.calls == []
        assert pipe.vae.use_tiling
        pipe.text.to("meta")
        assert "dm.to(pipeline)" in sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "CPU offload")
        nothing = Pipeline()
        nothing.components = {"scheduler": object()}
        assert "everything (0.0 MiB)" in str(dk.DeviceManager().set_memory_efficient_mode(nothing))


def by_number(gpu_id: int = 0) -> None:
    """As before huggingface/diffusers#3990."""
    raise AssertionError("it would use CUDA device 0")


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_a_helper_that_means_cuda_is_not_called(kind: str) -> None:
    """One that takes no device is left alone on every backend, and the figures are told all the same."""
    with simulated_machine(**ACCELERATORS[kind], memory="16MiB"):
        pipe = Pipeline(4, 8, 4)
        pipe.enable_model_cpu_offload = by_number
        told = sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "model CPU offload")
        assert "weights 16.0 MiB" in told
        assert "takes no device" in told


def test_a_pipeline_without_the_helpers() -> None:
    """Where model offload is missing the layers come one by one; where both are, that is told."""
    with simulated_machine(cuda=1, memory="16MiB"):
        pipe = Pipeline(4, 8, 4)
        pipe.enable_model_cpu_offload = None
        assert sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).done, "sequential")
        pipe = Pipeline(4, 8, 4)
        pipe.enable_model_cpu_offload = pipe.enable_sequential_cpu_offload = None
        told = sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "sequential")
        assert "has no enable_sequential_cpu_offload()" in told


def test_a_number_of_before_does_not_win() -> None:
    """diffusers takes `gpu_id or device.index or the number of before`, where 0 loses to an earlier 1."""
    with simulated_machine("two-gpus", memory="16MiB"):
        pipe = Pipeline(4, 8, 4)
        pipe._offload_gpu_id = 1
        mode = dk.DeviceManager("cuda:0").set_memory_efficient_mode(pipe)
        assert pipe._offload_gpu_id == 0
        mode.undo()
        assert pipe._offload_gpu_id == 1


def mapped(pipe: Pipeline) -> str:
    pipe.hf_device_map = {"unet": "cuda:0", "text": "cpu"}
    return "device map"


def hooked(pipe: Pipeline) -> str:
    pipe.unet.layers[0]._hf_hook = object()
    return "already on, by accelerate's hooks (unet)"


def grouped(pipe: Pipeline) -> str:
    pipe.unet.layers[0]._diffusers_hook = SimpleNamespace(hooks={"group_offloading": object()})
    return "group offloading is on (unet)"


@pytest.mark.parametrize("placed", [mapped, hooked, grouped])
def test_what_others_have_placed_stays(placed: Any) -> None:
    """Device maps, hooks and groups are in charge of the weights already."""
    with simulated_machine(cuda=1, memory="16MiB"):
        pipe = Pipeline()
        words = placed(pipe)
        assert words in sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "CPU offload")
        assert pipe.calls == []


# -- what fails --------------------------------------------------------------------------------------------
def test_a_failing_step_is_told_and_taken_back() -> None:
    """Without accelerate diffusers raises; the steps before stay, the reason is kept, and nothing is left half done."""
    with simulated_machine(cuda=1, memory="16MiB"):
        pipe = Pipeline(4, 8, 4)

        def fails(gpu_id: int | None = None, device: Any = None) -> None:
            pipe._offload("model", gpu_id, device)
            raise ImportError("`enable_model_cpu_offload` requires `accelerate v0.17.0` or higher.")

        pipe.enable_model_cpu_offload = fails
        mode = dk.DeviceManager().set_memory_efficient_mode(pipe)
        assert "ImportError: `enable_model_cpu_offload` requires `accelerate" in sentence(mode.not_done, "model CPU")
        assert pipe.vae.use_slicing
        assert not hasattr(pipe.unet, "_hf_hook")
        assert "_offload_gpu_id" not in vars(pipe)


def test_memory_that_runs_out_is_told_and_taken_back() -> None:
    """The figures said that it fits; where the move fails all the same, what was moved goes back."""
    with simulated_machine(xpu=1, memory="64MiB", faults={"oom_at": "6MiB"}):
        dm, pipe = dk.DeviceManager(), Pipeline(2, 7, 2)
        mode = dm.set_memory_efficient_mode(pipe)
        assert "XPU out of memory" in sentence(mode.not_done, "everything on xpu:0")
        gc.collect()
        assert dm.memory_stats().allocated == 0


def test_a_driver_that_fails_is_told() -> None:
    """What is raised while something is decided does not come out, and the other features are switched on."""
    with simulated_machine(npu=1) as host:
        dm, pipe = dk.DeviceManager(), Pipeline()
        host.torch().npu.get_soc_version = fails = lambda: 1 / 0
        mode = dm.set_memory_efficient_mode(pipe)
        assert "ZeroDivisionError" in sentence(mode.not_done, "attention slicing")
        assert len(mode.done) == 3
        assert host.torch().npu.get_soc_version is fails


def test_what_cannot_be_taken_back_is_told_as_well() -> None:
    """A step that fails in both directions says both reasons."""
    steps = Steps()

    def fails() -> None:
        raise ValueError("no way")

    def stuck() -> None:
        raise OSError("nor back")

    steps.switch("a", "b", fails, stuck)
    assert steps.mode().not_done == (
        "a: ValueError: no way; what it had begun could not be taken back: OSError: nor back",
    )


def test_undo_goes_on_after_a_failure_and_then_raises() -> None:
    """What can be taken back is, the last first, and the rest is an error with its reason."""
    steps, heard = Steps(), []

    def stuck() -> None:
        raise OSError("stuck")

    steps.switch("first", "", list, lambda: heard.append("first"))
    steps.switch("second", "", list, stuck)
    steps.switch("third", "", list, lambda: heard.append("third"))
    mode = steps.mode()
    with pytest.raises(dk.DeviceKitError, match="second: OSError: stuck"):
        mode.undo()
    assert heard == ["third", "first"]
    mode.undo()
    assert len(heard) == 2


# -- the result ----------------------------------------------------------------------------------------------
def test_the_result_is_a_value() -> None:
    """Frozen, equal by what it says, false when nothing was switched on, and lines for people."""
    mode = EfficientMode(("a: on",), ("b: not here",))
    assert mode
    assert not EfficientMode((), ("b: not here",))
    assert str(mode) == "on   a: on\noff  b: not here"
    assert mode == EfficientMode(("a: on",), ("b: not here",))
    assert hash(mode) == hash(EfficientMode(("a: on",), ("b: not here",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        mode.done = ()  # type: ignore[misc]


class Broken:
    """A pipeline that checks its components when it is asked for them, as in diffusers."""

    @property
    def components(self) -> dict[str, Any]:
        raise ValueError("expected vae, but none is defined")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (42, "a int has no memory-efficient mode"),
        ("model", "a str has no memory-efficient mode"),
        (Pipeline, "a type has no memory-efficient mode"),
        (SimpleNamespace(components={"a": 1}), "a SimpleNamespace has no"),
        (Broken(), "expected vae, but none is defined"),
    ],
)
def test_other_targets_are_errors(target: Any, words: str) -> None:
    """What is neither a pipeline nor a module is named, with what to give instead."""
    with simulated_machine(), pytest.raises(dk.DeviceKitError, match=words):
        dk.DeviceManager().set_memory_efficient_mode(target)


def test_without_torch_it_says_so() -> None:
    """The NumPy host has nothing to switch, for no target, and says it in words."""
    dm = dk.DeviceManager("numpy")
    assert "nothing to switch on" in str(dm.set_memory_efficient_mode())
    assert "the numpy backend runs no pipelines" in str(dm.set_memory_efficient_mode(Pipeline()))


def test_the_libraries_are_not_imported() -> None:
    """Pipelines and models are known by what they can do."""
    known = {"diffusers", "accelerate", "transformers"} & set(sys.modules)
    with simulated_machine(cuda=1) as host:
        dm = dk.DeviceManager()
        for target in (Pipeline(), Unet(), None):
            dm.set_memory_efficient_mode(target)
        assert not {"diffusers", "accelerate", "transformers"} & set(host.imports)
    assert {"diffusers", "accelerate", "transformers"} & set(sys.modules) == known


# -- attention -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "kernel"),
    [
        ({"cuda": 1}, "memory-efficient"),
        ({"cuda": 1, "architecture": "sm_75"}, "memory-efficient"),
        ({"rocm": 1, "architecture": "gfx1100"}, "flash"),
        ({"rocm": 1, "architecture": "gfx1030"}, ""),
        ({"npu": 1}, "npu-fused"),
        ({"mps": True}, ""),
        ({"machine": "vulkan"}, ""),
        ({}, "flash"),
    ],
)
def test_slices_only_where_no_kernel_fuses(machine: dict[str, Any], kernel: str) -> None:
    """Where torch has a fused kernel slicing would only cost time, and the kernel is named."""
    with simulated_machine(**machine):
        dm = dk.DeviceManager("vulkan" if "machine" in machine else None)
        unet = Unet()
        if kernel == "memory-efficient":
            unet.float()  # which flash does not take
        mode = dm.set_memory_efficient_mode(unet)
        if kernel:
            assert f"fused kernel ({kernel}) on {dm.device}" in sentence(mode.not_done, "attention slicing")
            assert unet.sliced_by is None
        else:
            assert f"no fused kernel on {dm.device}" in sentence(mode.done, "attention slicing (Unet)")
            assert unet.sliced_by == "auto"


def test_undo_brings_back_the_very_processors() -> None:
    """A second call says already, and undo restores the objects, not others of their kind."""
    with simulated_machine(mps=True):
        dm, pipe = dk.DeviceManager(), Pipeline()
        before = [layer.processor for layer in pipe.unet.layers]
        mode = dm.set_memory_efficient_mode(pipe)
        assert {type(layer.processor) for layer in pipe.unet.layers} == {SlicedAttnProcessor}
        assert "already on" in sentence(dm.set_memory_efficient_mode(pipe).not_done, "attention slicing (unet)")
        mode.undo()
        assert all(layer.processor is old for layer, old in zip(pipe.unet.layers, before, strict=True))


def test_processors_of_others_are_left() -> None:
    """An IP adapter's layers fail with sliced processors (huggingface/diffusers#7263)."""
    with simulated_machine(mps=True):
        pipe = Pipeline()
        pipe.unet.layers[1].processor = IPAdapterAttnProcessor2_0()
        told = sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "attention slicing")
        assert "IPAdapterAttnProcessor2_0" in told
        assert pipe.unet.sliced_by is None


def test_a_model_without_processors_is_sliced_all_the_same() -> None:
    """Undo then asks for no slices."""
    with simulated_machine(mps=True):
        unet = Unet()
        unet.layers = torch.nn.ModuleList()
        mode = dk.DeviceManager().set_memory_efficient_mode(unet)
        assert unet.sliced_by == "auto"
        mode.undo()
        assert unet.sliced_by is None


def test_a_pipeline_whose_models_do_not_slice() -> None:
    """Its enable_attention_slicing does nothing then, without a word (transformers as denoisers); here it is told."""
    with simulated_machine(mps=True):
        pipe = Pipeline(unet=1)
        pipe.components["unet"] = Part(1)
        assert sentence(dk.DeviceManager().set_memory_efficient_mode(pipe).not_done, "attention slicing: nothing")


# -- the VAE ---------------------------------------------------------------------------------------------------
def test_the_vae_slices_and_tiles_and_back() -> None:
    """By its own switches; what was on before stays on after undo."""
    with simulated_machine():
        dm, pipe = dk.DeviceManager(), Pipeline()
        pipe.vae.enable_tiling()
        mode = dm.set_memory_efficient_mode(pipe)
        assert sentence(mode.done, "VAE slicing (vae)")
        assert "already" in sentence(mode.not_done, "VAE tiling (vae)")
        mode.undo()
        assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (False, True)


class WithoutTiles(Vae):
    """As AutoencoderMixin of diffusers: it has the method, and not the thing."""

    def __init__(self) -> None:
        super().__init__()
        del self.use_tiling

    def enable_tiling(self) -> None:
        if not hasattr(self, "use_tiling"):
            raise NotImplementedError("Tiling doesn't seem to be implemented for WithoutTiles.")
        self.use_tiling = True


def test_a_vae_that_cannot_tile_says_so_each_time() -> None:
    """diffusers' own way back would leave the attribute by which tiling then seems to be there."""
    with simulated_machine():
        dm, pipe = dk.DeviceManager(), Pipeline()
        pipe.components["vae"] = WithoutTiles()
        for _ in range(2):
            mode = dm.set_memory_efficient_mode(pipe)
            assert "NotImplementedError: Tiling doesn't" in sentence(mode.not_done, "VAE tiling (vae)")
            assert not hasattr(pipe.vae, "use_tiling")


def test_the_pipelines_own_switches_are_used_where_the_vae_has_none() -> None:
    """Older versions have enable_vae_slicing() on the pipeline; with neither, that is told."""
    with simulated_machine():
        dm, pipe, heard = dk.DeviceManager(), Pipeline(), []
        pipe.components["vae"] = Part(1)
        assert sentence(dm.set_memory_efficient_mode(pipe).not_done, "VAE slicing: nothing here offers it")
        pipe.enable_vae_slicing = lambda: heard.append("on")
        pipe.disable_vae_slicing = lambda: heard.append("off")
        mode = dm.set_memory_efficient_mode(pipe)
        assert sentence(mode.done, "VAE slicing:")
        mode.undo()
        assert heard == ["on", "off"]
        pipe.vae.use_slicing = True
        assert sentence(dm.set_memory_efficient_mode(pipe).not_done, "VAE slicing: already on")


# -- gradients ---------------------------------------------------------------------------------------------------
class Block(torch.nn.Module):
    """A layer that can be checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False


def model_with(enable: str, disable: str) -> Any:
    """A model with these methods."""

    def on(self: Any) -> None:
        for part in self.children():
            part.gradient_checkpointing = True
            part._gradient_checkpointing_func = print

    def off(self: Any) -> None:
        for part in self.children():
            part.gradient_checkpointing = False

    return type("Model", (torch.nn.Sequential,), {enable: on, disable: off})(Block(), Block())


@pytest.mark.parametrize(
    ("enable", "disable"),
    [
        ("activation_checkpointing_enable", "activation_checkpointing_disable"),
        ("gradient_checkpointing_enable", "gradient_checkpointing_disable"),
        ("enable_gradient_checkpointing", "disable_gradient_checkpointing"),
    ],
)
def test_gradient_checkpointing_by_every_spelling(enable: str, disable: str) -> None:
    """Of transformers, new and old, and of diffusers; for training, it says; and undo leaves no attribute behind."""
    with simulated_machine(cuda=1):
        dm, model = dk.DeviceManager(), model_with(enable, disable)
        mode = dm.set_memory_efficient_mode(model)
        assert "in training only" in sentence(mode.done, "gradient checkpointing")
        assert all(block.gradient_checkpointing for block in model)
        assert "already on" in sentence(dm.set_memory_efficient_mode(model).not_done, "gradient checkpointing")
        mode.undo()
        assert not any(
            block.gradient_checkpointing or hasattr(block, "_gradient_checkpointing_func") for block in model
        )


def test_a_model_that_refuses_checkpointing() -> None:
    """Its own words are kept; one that has no such method is named."""

    class Refuses(torch.nn.Module):
        def enable_gradient_checkpointing(self) -> None:
            raise ValueError("Refuses does not support gradient checkpointing.")

    with simulated_machine():
        dm = dk.DeviceManager()
        refused = dm.set_memory_efficient_mode(Refuses())
        assert "ValueError: Refuses does not support" in sentence(refused.not_done, "gradient checkpointing")
        assert "a Linear does not offer it" in str(dm.set_memory_efficient_mode(torch.nn.Linear(1, 1)))


# -- the process -----------------------------------------------------------------------------------------------
GROW = "expandable_segments:True"


@pytest.mark.parametrize(
    ("machine", "variable"),
    [
        ({"cuda": 1}, "PYTORCH_CUDA_ALLOC_CONF"),
        ({"xpu": 1}, "PYTORCH_ALLOC_CONF"),
        ({"npu": 1}, "PYTORCH_NPU_ALLOC_CONF"),
    ],
)
def test_the_allocator_is_set_before_the_start(machine: dict[str, Any], variable: str) -> None:
    """In the variable that this runtime reads; a second call says already, and undo leaves no trace."""
    with simulated_machine(**machine) as host:
        dm, before = dk.DeviceManager(), dict(host.env)
        mode = dm.set_memory_efficient_mode()
        assert mode
        assert dict(host.env) == {**before, variable: GROW}
        assert ("needs a right" in str(mode)) is ("cuda" in machine)
        assert "already" in str(dm.set_memory_efficient_mode())
        mode.undo()
        mode.undo()
        assert dict(host.env) == before


@pytest.mark.parametrize("kind", ["cuda", "xpu", "npu"])
def test_after_the_start_it_is_too_late(kind: str) -> None:
    """Then the environment is left alone, and what to put into it is told."""
    with simulated_machine(**ACCELERATORS[kind]) as host:
        dm, before = dk.DeviceManager(), dict(host.env)
        dm.to(torch.ones(1))
        mode = dm.set_memory_efficient_mode()
        assert not mode
        assert f"ALLOC_CONF={GROW} into the environment before" in str(mode)
        assert dict(host.env) == before


@pytest.mark.parametrize(
    ("machine", "env", "after"),
    [
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, f"max_split_size_mb:128,{GROW}"),
        ("cuda", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}, f"max_split_size_mb:128,{GROW}"),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, f"backend:native,{GROW}"),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": ""}, GROW),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, None),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, None),
        ("npu", {"PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:32"}, None),
        ("npu", {"PYTORCH_NPU_ALLOC_CONF": "garbage_collection_threshold:0.6"}, None),
        ("npu", {"PYTORCH_NPU_ALLOC_CONF": "pin_memory_expandable_segments:True"}, "pin_memory_" + f"{GROW},{GROW}"),
        ("npu", {"PYTORCH_ALLOC_CONF": "page_size:1g"}, f"page_size:1g,{GROW}"),
    ],
)
def test_what_the_user_has_set_stays(machine: str, env: dict[str, str], after: str | None) -> None:
    """It is added to, or left where the two cannot stand together, and comes back with undo."""
    with simulated_machine(**ACCELERATORS[machine], env=env) as host:
        before = dict(host.env)
        mode = dk.DeviceManager().set_memory_efficient_mode()
        (name,) = env
        assert host.env[name] == (env[name] if after is None else after)
        assert set(host.env) == set(before)
        assert bool(mode) is (after is not None)
        assert after is not None or "by you" in str(mode)
        mode.undo()
        assert dict(host.env) == before


def test_undo_leaves_what_was_set_since() -> None:
    """Somebody else's value is not ours to take back."""
    with simulated_machine(cuda=1) as host:
        mode = dk.DeviceManager().set_memory_efficient_mode()
        host.env["PYTORCH_CUDA_ALLOC_CONF"] = "max_split_size_mb:64"
        mode.undo()
        assert host.env["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"rocm": 1}, "can hang for good"),
        ({"mps": True}, "PYTORCH_MPS_HIGH_WATERMARK_RATIO"),
        ({}, "MALLOC_ARENA_MAX=2"),
        ({"platform": "win32"}, "nothing to switch on"),
        ({"machine": "vulkan"}, "no option of vulkan's allocator"),
        ({"cuda": 1, "platform": "win32"}, "cannot grow on win32"),
        ({"xpu": 1, "build": {"version": "2.10.0+xpu", "xpu": "20250301"}}, "2.11 has"),
    ],
)
def test_where_nothing_can_be_set_the_reason_is_told(machine: dict[str, Any], words: str) -> None:
    """Each backend says what its allocator does not have, and what there is instead; the environment stays."""
    with simulated_machine(**machine) as host:
        before = dict(host.env)
        mode = dk.DeviceManager("vulkan" if "machine" in machine else None).set_memory_efficient_mode()
        assert not mode
        assert words in str(mode)
        assert dict(host.env) == before


def test_a_jetson_s_segments_do_not_grow() -> None:
    """torch's own tests leave it out there; the kernel's name tells."""
    with simulated_machine("jetson") as host:
        release = host.root / "proc" / "sys" / "kernel" / "osrelease"
        release.parent.mkdir(parents=True, exist_ok=True)
        release.write_text("5.15.148-tegra\n", encoding="utf-8")
        assert "cannot grow on a Jetson" in str(dk.DeviceManager().set_memory_efficient_mode())
