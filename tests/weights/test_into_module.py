"""Loading weights into a module: as ``load_state_dict`` would, checked before anything changes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import devicekit as dk
from devicekit.weights.reading import PIECE
from tests.weights.comparing import DTYPES, drawn, same, same_dicts, saved
from tests.weights.test_loading import CALLERS, collecting, in_threads, is_mapped, linux, open_files


@pytest.fixture(scope="module")
def dm() -> dk.DeviceManager:
    """The CPU."""
    return dk.DeviceManager("cpu")


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module with other numbers for each seed, in buffers as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if nn.parameter.is_lazy(tensor):
                    continue
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + 0.1)
                else:
                    tensor.fill_(seed)
    return module


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module without memory."""
    with torch.device("meta"):
        return build()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what it holds."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def objects(module: nn.Module) -> dict[str, int]:
    """Which object each name is."""
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: id(tensor) for name, tensor in held}


class Tied(nn.Module):
    """Input and output share a weight, as in most language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


class TiedNormed(Tied):
    """The same with a hook, so that it is loaded by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(lambda module, keys: None)


class Buffered(nn.Module):
    """Buffers of several kinds: saved, not saved, whole numbers, none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(2, 2, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(0, 4))
        self.register_buffer("positions", torch.arange(4.0), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("bias", None)


class WithPreHook(nn.Module):
    """Renames what older versions of it saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix + "gamma" in state:
            state[prefix + "weight"] = state.pop(prefix + "gamma")


class WithExtraState(nn.Module):
    """Keeps a tensor beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.extra = torch.zeros(2)

    def get_extra_state(self) -> torch.Tensor:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state.clone()


class Twice(nn.Module):
    """One part under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Sequential(self.first, nn.BatchNorm1d(3))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(3, 4),
    "Linear without bias": lambda: nn.Linear(3, 1, bias=False),
    "Linear in bfloat16": lambda: nn.Linear(3, 4, dtype=torch.bfloat16),
    "Linear, complex": lambda: nn.Linear(3, 4, dtype=torch.complex64),
    "Bilinear": lambda: nn.Bilinear(2, 3, 4),
    "Conv1d": lambda: nn.Conv1d(2, 3, 2),
    "Conv2d, channels last": lambda: nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "BatchNorm2d in a chain": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU()),
    "BatchNorm2d, no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "BatchNorm2d, not affine": lambda: nn.BatchNorm2d(3, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nn.LayerNorm((2, 3)),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2),
    "PReLU": lambda: nn.PReLU(),
    "Embedding": lambda: nn.Embedding(5, 3, padding_idx=0),
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 3),
    "LSTM": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4),
    "RNNCell": lambda: nn.RNNCell(3, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "MultiheadAttention of three sizes": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False
    ),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10]),
    "ParameterList": lambda: nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))]),
    "ParameterDict": lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(0))}),
    "ModuleDict": lambda: nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleList([nn.Linear(2, 1)])}),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
    "Identity": lambda: nn.Identity(),
    "tied": Tied,
    "tied, with a hook": TiedNormed,
    "buffered": Buffered,
    "with a hook": WithPreHook,
    "with extra state": WithExtraState,
    "one part twice": Twice,
}
NOT_ON_META = {"spectral norm"}  # its power iteration needs numbers


def file_of(folder: Path, module: nn.Module, dtype: torch.dtype | None = None) -> Path:
    """A file of what it holds; its floating-point numbers in another dtype."""
    held = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    return saved(folder, held)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ZOO)
def test_a_module_is_filled_as_by_load_state_dict(
    tmp_path: Path, dm: dk.DeviceManager, kind: str, dtype: torch.dtype | None
) -> None:
    """Into any module goes what ``load_state_dict(load_file(...))`` puts there, cast to the module's dtypes.

    Its parameters and buffers stay the objects that they were.
    """
    path = file_of(tmp_path, seeded(ZOO[kind], 1), dtype)
    theirs, ours = seeded(ZOO[kind], 2), seeded(ZOO[kind], 2)
    before = objects(ours)
    told = theirs.load_state_dict(safetensors.torch.load_file(path))
    result = dm.load_safetensors(path, into=ours)
    assert same_dicts(ours.state_dict(), theirs.state_dict())
    assert objects(ours) == before
    assert_alike(ours, theirs)
    assert (result.missing_keys, result.unexpected_keys) == (tuple(told.missing_keys), tuple(told.unexpected_keys))
    assert result.meta_keys == ()


@pytest.mark.parametrize("kind", [kind for kind in ZOO if kind not in NOT_ON_META | {"buffered"}])
def test_a_module_without_memory_gets_some(tmp_path: Path, dm: dk.DeviceManager, kind: str) -> None:
    """A module on the meta device holds what ``load_state_dict(..., assign=True)`` gives it, all in memory."""
    path = file_of(tmp_path, seeded(ZOO[kind], 1))
    theirs, ours = on_meta(ZOO[kind]), on_meta(ZOO[kind])
    theirs.load_state_dict(safetensors.torch.load_file(path), assign=True)
    result = dm.load_safetensors(path, into=ours)
    assert same_dicts(ours.state_dict(), theirs.state_dict())
    assert_alike(ours, theirs)
    assert result.meta_keys == ()
    assert not any(tensor.is_meta for tensor in [*ours.parameters(), *ours.buffers()])
    if isinstance(ours, nn.RNNBase):
        assert all(any(flat is weight for weight in ours.parameters()) for flat in ours._flat_weights)


def all_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """By each of their names."""
    return list(module.named_parameters(remove_duplicate=False))


def assert_alike(ours: nn.Module, theirs: nn.Module) -> None:
    """The same classes, memory formats and wishes for gradients."""
    for one, other in zip(all_parameters(ours), all_parameters(theirs), strict=True):
        assert (one[0], type(one[1]), one[1].requires_grad) == (other[0], type(other[1]), other[1].requires_grad)
        assert one[1].is_leaf
        assert one[1].stride() == other[1].stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("meta", [False, True], ids=["real", "meta"])
def test_every_dtype_goes_into_a_buffer(tmp_path: Path, dm: dk.DeviceManager, dtype: torch.dtype, meta: bool) -> None:
    """A buffer of any dtype and shape gets the file's bytes, empty ones and single numbers included."""
    shapes = [(2, 4), (0, 2), *([] if "x2" in str(dtype) else [(), (1,)])]

    def build() -> nn.Module:
        module = nn.Module()
        for n, shape in enumerate(shapes):
            module.register_buffer(f"b{n}", torch.empty(shape, dtype=dtype))
        return module

    held = {f"b{n}": drawn(dtype, shape, n) for n, shape in enumerate(shapes)}
    module = on_meta(build) if meta else build()
    dm.load_safetensors(saved(tmp_path, held), into=module)
    assert same_dicts(module.state_dict(), held)


@pytest.mark.parametrize("stored", [torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16], ids=str)
def test_a_module_keeps_its_dtypes(tmp_path: Path, dm: dk.DeviceManager, stored: torch.dtype) -> None:
    """Whatever the file's dtype is, a parameter, a count and a mask keep theirs, as in ``load_state_dict``."""
    source = Buffered()
    held = {
        name: (torch.arange(tensor.numel()).reshape(tensor.shape) % 2).to(stored)
        for name, tensor in state(source).items()
    }
    path = saved(tmp_path, held)
    theirs, ours = Buffered(), Buffered()
    theirs.load_state_dict(held)
    dm.load_safetensors(path, into=ours)
    assert same_dicts(ours.state_dict(), theirs.state_dict())


def test_numbers_that_cannot_be_trained_are_refused(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Whole numbers for a parameter on the meta device that requires gradients are an error before anything changes."""
    path = saved(tmp_path, {"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.ones(2)})
    module = on_meta(lambda: nn.Linear(2, 2))
    with pytest.raises(dk.WeightsError, match=r"'weight' holds torch\.int8, and the module's has requires_grad"):
        dm.load_safetensors(path, into=module)
    assert module.bias.is_meta
    module.requires_grad_(False)
    dm.load_safetensors(path, into=module)
    assert module.weight.dtype is torch.int8


def test_a_sparse_buffer_is_refused(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Into a sparse tensor nothing can be copied, so it is an error and not silently left out."""
    module = nn.Module()
    module.register_buffer("b", torch.eye(2).to_sparse())
    with pytest.raises(dk.WeightsError, match=r"'b' is dense, the module's is torch\.sparse_coo"):
        dm.load_safetensors(saved(tmp_path, {"b": torch.ones(2, 2)}), into=module)


# -- what does not fit ---------------------------------------------------------------------------
def chain(*sizes: int) -> nn.Sequential:
    """Linear layers."""
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def test_missing_and_unexpected_names_are_told(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """strict names a few of both and how many more, and changes nothing; else all are in the result, the rest loads."""
    held = state(chain(2, 2, 2, 2, 2, 2))
    extra = {f"extra.{n}": torch.ones(1) for n in range(8)}
    path = saved(tmp_path, {name: t for name, t in held.items() if name.startswith(("0", "1"))} | extra)
    module = chain(2, 2, 2, 2, 2, 2)
    before = state(module)
    with pytest.raises(dk.WeightsError) as told:
        dm.load_safetensors(path, into=module)
    assert told.value.what == f"{path} does not fit the Sequential."
    assert "the file lacks '2.weight', '2.bias', '3.weight', '3.bias', '4.weight' and 1 more; " in told.value.why
    assert "the module has no 'extra.0', 'extra.1', 'extra.2', 'extra.3', 'extra.4' and 3 more" in told.value.why
    assert told.value.try_ == "strict=False to load what fits"
    assert same_dicts(state(module), before)
    result = dm.load_safetensors(path, into=module, strict=False)
    assert set(result.missing_keys) == {f"{n}.{leaf}" for n in (2, 3, 4) for leaf in ("weight", "bias")}
    assert set(result.unexpected_keys) == set(extra)
    assert same_dicts(state(module), {name: held[name] if name[0] in "01" else before[name] for name in held})


@pytest.mark.parametrize("strict", [True, False])
def test_all_shapes_are_checked_first(tmp_path: Path, dm: dk.DeviceManager, strict: bool) -> None:
    """Every shape that differs is named, up to five, and nothing has changed."""
    path = saved(tmp_path, state(chain(*range(2, 10))))
    module = chain(*range(1, 9))
    before = state(module)
    with pytest.raises(dk.WeightsError) as told:
        dm.load_safetensors(path, into=module, strict=strict)
    assert "'0.weight' has the shape [3, 2], the module's is [2, 1]" in told.value.why
    assert told.value.why.count("has the shape") == 5
    assert told.value.why.endswith("; 9 more differ")
    assert same_dicts(state(module), before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_is_seen_through(tmp_path: Path, dm: dk.DeviceManager, prefix: str) -> None:
    """Where a wrapper's prefix makes all the difference, the error holds the ``rename=`` that loads it."""
    build = ZOO["TransformerEncoder"]
    module = build()
    with_prefix = nn.ModuleDict({prefix[:-1]: build()})
    path = file_of(tmp_path, build())
    for into, file in ((with_prefix, path), (module, saved(tmp_path, state(with_prefix), "longer"))):
        with pytest.raises(dk.WeightsError) as told:
            dm.load_safetensors(file, into=into)
        assert told.value.try_.startswith("rename=lambda name: ")
        assert repr(prefix) in told.value.try_
        rename = eval(told.value.try_.removeprefix("rename="))
        assert dm.load_safetensors(file, into=into, rename=rename).missing_keys == ()


def test_a_part_is_loaded(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """With keys, only the part is filled, and strict asks only whether that is complete."""
    held = state(chain(2, 2, 2))
    path = saved(tmp_path, held)
    module = chain(2, 2, 2)
    before = state(module)
    result = dm.load_safetensors(path, into=module, keys="1.*")
    assert (result.missing_keys, result.unexpected_keys) == ((), ())
    assert same_dicts(state(module), {name: (held if name[0] == "1" else before)[name] for name in held})
    path = saved(tmp_path, {"1.weight": held["1.weight"]})
    with pytest.raises(dk.WeightsError, match=r"the file lacks '1\.bias'"):
        dm.load_safetensors(path, into=module, keys=(pattern for pattern in ["1.*"]))
    dm.load_safetensors(path, into=module, keys="1.weight")


def test_a_part_of_a_module_with_hooks_is_loaded(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Where torch does the loading, keys and missing names mean the same."""
    build = lambda: nn.Sequential(WithPreHook(), nn.Linear(2, 2))  # noqa: E731
    path = file_of(tmp_path, seeded(build, 1))
    module = seeded(build, 2)
    result = dm.load_safetensors(path, into=module, keys="1.*")
    assert (result.missing_keys, result.unexpected_keys) == ((), ())
    assert same(module[1].weight, seeded(build, 1)[1].weight)
    assert same(module[0].weight, seeded(build, 2)[0].weight)
    path = saved(tmp_path, {"1.weight": torch.ones(2, 2), "1.more": torch.ones(1)})
    with pytest.raises(
        dk.WeightsError, match=r"the file lacks '1\.bias'; the module has no '1\.more'; what fits is loaded"
    ):
        dm.load_safetensors(path, into=module, keys="1.*")


@pytest.mark.parametrize(
    "build", [WithPreHook, lambda: nn.Sequential(nn.Linear(2, 2), WithPreHook())], ids=["it", "within"]
)
def test_what_does_not_fit_a_module_with_hooks_says_what_was_done(
    tmp_path: Path, dm: dk.DeviceManager, build: Callable[[], nn.Module]
) -> None:
    """Torch finds wrong shapes while it loads; the error says so, and that the rest was loaded."""
    name = next(name for name in build().state_dict() if name.endswith("weight"))
    path = saved(tmp_path, {**state(build()), name: torch.ones(7, 7)})
    with pytest.raises(dk.WeightsError, match=rf"(?s)size mismatch for {name}.*what fits is loaded already"):
        dm.load_safetensors(path, into=build())


@pytest.mark.parametrize("into", [{}, "module", nn.Linear, object()])
def test_what_is_no_module_is_refused(tmp_path: Path, dm: dk.DeviceManager, into: Any) -> None:
    """Into anything but a torch.nn.Module is an error that says what it was."""
    path = saved(tmp_path, {"w": torch.ones(1)})
    with pytest.raises(dk.WeightsError, match=rf"into a {type(into).__name__}\.\n  why: into= takes a torch.nn.Module"):
        dm.load_safetensors(path, into=into)


# -- a module of its own memory ------------------------------------------------------------------
@pytest.mark.parametrize("build", [lambda: chain(3, 4, 2), ZOO["BatchNorm2d in a chain"], TiedNormed])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float16], ids=str)
def test_an_optimizer_goes_on(tmp_path: Path, dm: dk.DeviceManager, build: Any, dtype: torch.dtype | None) -> None:
    """Parameters are the objects that the optimizer knows, in another dtype as well: its next step moves the module."""
    path = file_of(tmp_path, seeded(build, 1))
    module = seeded(build, 2)
    before = dict(module.named_parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    dm.load_safetensors(path, into=module, dtype=dtype)
    expected = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state(seeded(build, 1)).items()}
    assert same_dicts(state(module), expected)
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(parameter, expected[name] - 0.5) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 2), WithPreHook], ids=["ours", "torch's"])
def test_gradients_stay_while_they_fit(tmp_path: Path, dm: dk.DeviceManager, build: Any) -> None:
    """A gradient outlives loading in the same dtype, and is dropped with the dtype that it had."""
    path = file_of(tmp_path, build())
    module = build()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    grads = [parameter.grad for parameter in module.parameters()]
    dm.load_safetensors(path, into=module)
    assert all(p.grad is grad for p, grad in zip(module.parameters(), grads, strict=True))
    dm.load_safetensors(path, into=module, dtype=torch.float64)
    assert all(p.grad is None and p.dtype is torch.float64 and p.requires_grad for p in module.parameters())


def test_dtype_casts_only_floats(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """``dtype=`` changes floating-point parameters and buffers; counts, masks and complex ones keep the module's."""
    held = state(Buffered())
    path = saved(tmp_path, {**held, "count": held["count"].to(torch.int16), "mask": held["mask"].to(torch.uint8)})
    module = Buffered()
    dm.load_safetensors(path, into=module, dtype=torch.float16)
    assert {name: tensor.dtype for name, tensor in state(module).items()} == {
        "scale": torch.float16,
        "frozen": torch.float16,
        "count": torch.int64,
        "mask": torch.bool,
        "mean": torch.float16,
    }
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["scale"]


def test_a_function_chooses_dtypes(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A function's None keeps the module's dtype, and its answer is the tensor's."""
    module = chain(2, 2, 2)
    path = file_of(tmp_path, module, torch.float16)
    dm.load_safetensors(path, into=module, dtype=lambda name, stored: torch.float64 if name.startswith("0") else None)
    assert [p.dtype for p in module.parameters()] == [torch.float64] * 2 + [torch.float32] * 2


def test_filling_in_place_is_seen_by_autograd(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A backward pass through numbers that loading has overwritten is an error, as after any change in place."""
    module = nn.Linear(2, 2, bias=False)
    path = saved(tmp_path, {"weight": torch.ones(2, 2)})
    loss = (module.weight**2).sum()
    dm.load_safetensors(path, into=module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


STRIDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "every second": lambda t: torch.zeros(4, 3, 4, 5)[::2].copy_(t),
    "expanded": lambda t: torch.zeros(1).expand(t.shape),
    "a part of another": lambda t: torch.zeros(3, *t.shape)[1].copy_(t),
}


@pytest.mark.parametrize("kind", STRIDED)
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_memory_of_any_layout_is_filled(tmp_path: Path, dm: dk.DeviceManager, kind: str, dtype: Any) -> None:
    """Parameters and buffers that are not contiguous, or lie in other tensors, hold the file's numbers afterwards."""
    tensor = torch.zeros(2, 3, 4, 5)
    module = nn.Module()
    module.p = nn.Parameter(STRIDED[kind](tensor))
    module.register_buffer("b", STRIDED[kind](tensor))
    held = {name: drawn(torch.bfloat16, (2, 3, 4, 5), seed) for seed, name in enumerate("pb")}
    parameter = module.p
    dm.load_safetensors(saved(tmp_path, held), into=module, dtype=dtype)
    wanted = dtype or torch.float32
    assert torch.equal(module.p.nan_to_num(), held["p"].to(wanted).nan_to_num())
    assert torch.equal(module.b.nan_to_num(), held["b"].to(wanted).nan_to_num())
    assert module.p is parameter
    if kind == "channels last" and dtype is None:
        assert module.p.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("build", [lambda: nn.Linear(3, 2), ZOO["Conv2d, channels last"], WithPreHook])
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_modules_made_for_inference_are_filled(
    tmp_path: Path, dm: dk.DeviceManager, build: Any, dtype: Any, inside: bool
) -> None:
    """A module that was made in inference mode is filled in that mode and outside of it."""
    expected = seeded(build, 1)
    path = file_of(tmp_path, expected)
    with torch.inference_mode():
        module = seeded(build, 2)
    with torch.inference_mode(inside):
        dm.load_safetensors(path, into=module, dtype=dtype)
    assert same_dicts(state(module), {name: tensor.to(dtype) for name, tensor in state(expected).items()})


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("meta", [False, True], ids=["real", "meta"])
@pytest.mark.parametrize("kind", ["Linear", "BatchNorm1d", "with a hook", "weight norm"])
def test_the_callers_modes_do_not_matter(
    tmp_path: Path, dm: dk.DeviceManager, caller: str, meta: bool, kind: str
) -> None:
    """Inside torch's modes and with other defaults a module is filled, and can be trained afterwards."""
    expected = seeded(ZOO[kind], 1)
    path = file_of(tmp_path, expected)
    module = on_meta(ZOO[kind]) if meta else seeded(ZOO[kind], 2)
    with CALLERS[caller]():
        dm.load_safetensors(path, into=module)
    assert same_dicts(state(module), state(expected))
    for parameter in module.parameters():
        assert (parameter.requires_grad, parameter.is_inference(), parameter.device.type) == (True, False, "cpu")
        (parameter * 2).sum().backward()
        with torch.no_grad():
            parameter.mul_(2)


# -- a module on the meta device -----------------------------------------------------------------
@linux
@pytest.mark.parametrize("kind", ["Linear", "tied", "BatchNorm1d", "with a hook"])
def test_a_module_without_memory_takes_the_files(tmp_path: Path, dm: dk.DeviceManager, kind: str) -> None:
    """Without a cast or copy= its parameters are the file's pages; writing to them spares the file."""
    path = file_of(tmp_path, seeded(ZOO[kind], 1))
    before = path.read_bytes()
    module = on_meta(ZOO[kind])
    dm.load_safetensors(path, into=module)
    assert all(is_mapped(parameter, path) for parameter in module.parameters())
    torch.optim.SGD(module.parameters(), lr=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert path.read_bytes() == before
    for options in ({"copy": True}, {"dtype": torch.float64}):
        module = on_meta(ZOO[kind])
        dm.load_safetensors(path, into=module, **options)
        assert not any(is_mapped(parameter, path) for parameter in module.parameters())


def test_the_files_dtype_counts_for_a_module_without_memory(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """On the meta device, where a dtype is only the default, the file's is taken, or the one that is asked for."""
    path = file_of(tmp_path, chain(2, 2), torch.bfloat16)
    for dtype, expected in ((None, torch.bfloat16), (torch.float64, torch.float64)):
        module = on_meta(lambda: chain(2, 2))
        dm.load_safetensors(path, into=module, dtype=dtype)
        assert {p.dtype for p in module.parameters()} == {expected}


def test_a_module_half_on_meta_is_filled(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """What has memory is filled where it is, what has none gets some."""
    expected = seeded(lambda: chain(2, 3, 2), 1)
    module = nn.Sequential(nn.Linear(2, 3), on_meta(lambda: nn.Linear(3, 2)))
    parameter = module[0].weight
    dm.load_safetensors(file_of(tmp_path, expected), into=module)
    assert same_dicts(state(module), state(expected))
    assert module[0].weight is parameter


@pytest.mark.parametrize("build", [Buffered, lambda: nn.Sequential(Buffered(), WithPreHook())], ids=["ours", "torch's"])
def test_buffers_that_no_file_holds_are_told(tmp_path: Path, dm: dk.DeviceManager, build: Any) -> None:
    """A buffer with persistent=False on the meta device is warned of at the caller's line, and is in ``meta_keys``."""
    path = file_of(tmp_path, build())
    module = on_meta(build)
    name = next(name for name, _ in module.named_buffers() if name.endswith("positions"))
    with pytest.warns(UserWarning, match=f"'{name}' of the {type(module).__name__} stays on the meta device") as told:
        result = dm.load_safetensors(path, into=module)
    assert told[0].filename == __file__
    assert result.meta_keys == (name,)
    real = build()
    assert dm.load_safetensors(path, into=real).meta_keys == ()
    assert torch.equal(real.get_buffer(name), torch.arange(4.0))


def test_what_is_missing_stays_on_meta(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """With strict=False a parameter that the file lacks is still on the meta device, and told in both lists."""
    module = on_meta(lambda: nn.Linear(2, 2))
    result = dm.load_safetensors(saved(tmp_path, {"weight": torch.ones(2, 2)}), into=module, strict=False)
    assert (result.missing_keys, result.meta_keys) == (("bias",), ("bias",))
    assert module.bias.is_meta


@pytest.mark.parametrize("meta", [False, True], ids=["real", "meta"])
def test_a_batch_norm_counts_from_0(tmp_path: Path, dm: dk.DeviceManager, meta: bool) -> None:
    """Files of before the counter are complete: it keeps its value, and begins at 0 on the meta device."""
    build = ZOO["BatchNorm2d in a chain"]
    held = state(seeded(build, 5))
    path = saved(tmp_path, {name: tensor for name, tensor in held.items() if "num_batches" not in name})
    ours, theirs = (on_meta(build), on_meta(build)) if meta else (seeded(build, 7), seeded(build, 7))
    told = theirs.load_state_dict(safetensors.torch.load_file(path), assign=meta)
    result = dm.load_safetensors(path, into=ours)
    assert same_dicts(ours.state_dict(), theirs.state_dict())
    assert int(ours[1].num_batches_tracked) == (0 if meta else 7)
    assert (result.missing_keys, result.meta_keys) == (tuple(told.missing_keys), ())


# -- tied parameters -----------------------------------------------------------------------------
TIES: dict[str, Callable[[dict[str, torch.Tensor], Path], Path]] = {
    "both names": lambda held, folder: saved(folder, held),
    "the first name": lambda held, folder: saved(folder, {k: t for k, t in held.items() if k != "head.weight"}),
    "the second name": lambda held, folder: saved(folder, {k: t for k, t in held.items() if k != "embed.weight"}),
    "an alias": lambda held, folder: saved(
        folder, {k: t for k, t in held.items() if k != "embed.weight"}, metadata={"embed.weight": "head.weight"}
    ),
}


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
@pytest.mark.parametrize("meta", [False, True], ids=["real", "meta"])
@pytest.mark.parametrize("names", TIES)
@pytest.mark.parametrize("build", [Tied, TiedNormed])
def test_tied_parameters_stay_tied(
    tmp_path: Path, dm: dk.DeviceManager, build: Any, names: str, meta: bool, dtype: Any
) -> None:
    """Whichever of the names a file holds, a tied parameter is filled, is still one object, and nothing is missing."""
    held = state(seeded(build, 1))
    path = TIES[names](held, tmp_path)
    module = on_meta(build) if meta else seeded(build, 2)
    result = dm.load_safetensors(path, into=module, dtype=dtype)
    assert module.embed.weight is module.head.weight
    assert same(module.head.weight, held["head.weight"].to(dtype))
    assert (result.missing_keys, result.unexpected_keys, result.meta_keys) == ((), (), ())


@pytest.mark.parametrize("meta", [False, True], ids=["real", "meta"])
def test_a_tied_file_fills_a_module_that_is_not(tmp_path: Path, dm: dk.DeviceManager, meta: bool) -> None:
    """A tensor that the file holds once under two names goes to both, and to either alone."""

    def build() -> nn.Module:
        return nn.ModuleDict(
            {"embed": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 5, bias=False)}
        )

    path = tmp_path / "tied.safetensors"
    source = seeded(Tied, 1)
    safetensors.torch.save_model(source, str(path))
    for removed in (None, "embed", "head"):
        module = build()
        if removed:
            del module[removed]  # type: ignore[attr-defined]
        module = module.to("meta") if meta else module
        result = dm.load_safetensors(path, into=module)
        assert same_dicts(state(module), {k: t for k, t in state(source).items() if not k.startswith(str(removed))})
        assert (result.missing_keys, result.unexpected_keys) == ((), ())


# -- modules with their own way --------------------------------------------------------------------
def test_hooks_see_the_files_names(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A module that renames what older versions saved loads such a file."""
    path = saved(tmp_path, {"gamma": torch.arange(3.0)})
    for module in (WithPreHook(), on_meta(WithPreHook)):
        assert dm.load_safetensors(path, into=module).unexpected_keys == ()
        assert torch.equal(module.weight, torch.arange(3.0))


def test_extra_state_is_handed_over(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A tensor under ``_extra_state`` goes to ``set_extra_state``; without it the name is missing."""
    source = seeded(WithExtraState, 1)
    source.extra = torch.ones(2)
    module = WithExtraState()
    dm.load_safetensors(file_of(tmp_path, source), into=module)
    assert torch.equal(module.extra, torch.ones(2))
    with pytest.raises(dk.WeightsError, match="the file lacks '_extra_state'"):
        dm.load_safetensors(saved(tmp_path, state(nn.ModuleDict({"linear": nn.Linear(2, 2)}))), into=module)


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_lazy_modules_take_their_shapes_from_the_file(tmp_path: Path, dm: dk.DeviceManager, dtype: Any) -> None:
    """Lazy parameters become the file's, in its shapes, and their objects stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are a new feature
        module = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    before = objects(module)
    expected = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 1)
    dm.load_safetensors(file_of(tmp_path, expected), into=module, dtype=dtype)
    assert same_dicts(
        state(module), {name: t.to(dtype) if t.is_floating_point() else t for name, t in state(expected).items()}
    )
    assert {name: id(p) for name, p in module.named_parameters()}.items() <= before.items()


class LoadsItself(nn.Linear):
    """With a ``load_state_dict`` as it was before ``assign``, which tells nothing."""

    def load_state_dict(self, state: Any, strict: bool = True) -> None:  # type: ignore[override]
        super().load_state_dict({name: tensor + 1 for name, tensor in state.items()}, strict)


def test_an_own_load_state_dict_is_used(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A module that overrides ``load_state_dict`` gets what it makes of the file, and decides what strict means."""
    module = LoadsItself(2, 2)
    dm.load_safetensors(saved(tmp_path, {"weight": torch.ones(2, 2), "bias": torch.ones(2)}), into=module)
    assert torch.equal(module.weight, torch.full((2, 2), 2.0))
    path = saved(tmp_path, {"weight": torch.ones(2, 2)})
    with pytest.raises(dk.WeightsError, match=r'Missing key.*"bias"'):
        dm.load_safetensors(path, into=module)
    dm.load_safetensors(path, into=module, strict=False)


def test_parametrized_weights_compute_the_same(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A weight-normed and a spectral-normed layer give the outputs of the module that was saved."""
    for kind in ("weight norm", "spectral norm"):
        source, module = seeded(ZOO[kind], 1).eval(), seeded(ZOO[kind], 2).eval()
        dm.load_safetensors(file_of(tmp_path, source), into=module)
        assert torch.equal(module(torch.ones(1, 3)), source(torch.ones(1, 3)))


# -- what goes wrong, and what is left -----------------------------------------------------------
@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tensors of two pieces each, in half precision."""
    numbers = torch.zeros(PIECE, dtype=torch.float16)
    return saved(tmp_path_factory.mktemp("long"), dict.fromkeys("abc", numbers))


class Mixed(nn.Module):
    """Loaded in every way at once: in place, through a copy, into new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(PIECE, dtype=torch.float16))
        self.b = nn.Parameter(torch.ones(PIECE * 2, dtype=torch.float16)[::2])
        self.c = nn.Parameter(torch.ones(PIECE, device="meta", dtype=torch.float16))


def test_progress_is_of_the_whole_load(long_path: Path, dm: dk.DeviceManager) -> None:
    """However the parts of a module are filled, one count rises to one total."""
    told: list[tuple[int, int]] = []
    module = Mixed()
    dm.load_safetensors(long_path, into=module, copy=True, progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {3 * 2 * PIECE}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == told[-1][1]
    assert not any(p.any() for p in module.parameters())


class _EnoughError(Exception):
    """Of the user's callback."""


@pytest.mark.parametrize("failure", [_EnoughError, KeyboardInterrupt])
def test_a_callback_that_raises_ends_it(long_path: Path, dm: dk.DeviceManager, failure: type[BaseException]) -> None:
    """What it raises comes through, no thread is left, and parameters without memory have none yet."""
    before = set(threading.enumerate())
    module = Mixed()

    def stop(done: int, total: int) -> None:
        raise failure

    with pytest.raises(failure):
        dm.load_safetensors(long_path, into=module, copy=True, progress=stop)
    assert set(threading.enumerate()) == before
    assert module.c.is_meta
    assert bool(module.a.all())


def test_a_file_that_shrinks_says_what_was_filled(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Where reading fails in the middle of filling a module, the error names the tensor and what may be half done."""
    path = saved(tmp_path, {"weight": torch.ones(PIECE // 4 * 3, 1)})
    module = nn.Linear(1, PIECE // 4 * 3, bias=False)

    def shrink(done: int, total: int) -> None:
        path.write_bytes(path.read_bytes()[:PIECE])

    with pytest.raises(dk.WeightsError) as told:
        dm.load_safetensors(path, into=module, progress=shrink, workers=1)
    assert "at 'weight': it ended at byte" in told.value.why
    assert told.value.why.endswith("in the module 'weight' may be filled in part, all else is as it was")


@linux
def test_nothing_holds_the_module(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A module that was loaded, or failed to be, is freed as soon as nobody uses it, and its file is closed."""
    path = file_of(tmp_path, chain(2, 2))
    gc.collect()
    before = open_files()
    for build, options in (
        (lambda: chain(2, 2), {}),
        (lambda: on_meta(lambda: chain(2, 2)), {}),
        (lambda: chain(1, 1), {"strict": False}),
    ):
        module = build()
        gone = weakref.ref(module)
        with contextlib.suppress(dk.WeightsError):
            dm.load_safetensors(path, into=module, **options)
        del module
        gc.collect()
        assert gone() is None
    assert open_files() == before


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collection_is_as_it_was(tmp_path: Path, long_path: Path, dm: dk.DeviceManager, on: bool) -> None:
    """After success, after failure and while tensors are read, it is on or off as the user wanted it."""
    during: list[bool] = []
    path = saved(tmp_path, state(WithPreHook()))
    with collecting(on):
        dm.load_safetensors(long_path, into=Mixed(), copy=True, progress=lambda *_: during.append(gc.isenabled()))
        assert gc.isenabled() is on
        for module in (WithPreHook(), on_meta(WithPreHook)):
            dm.load_safetensors(path, into=module)
            assert gc.isenabled() is on
        for wrong in (nn.Linear(1, 1), Mixed()):
            with pytest.raises(dk.WeightsError):
                dm.load_safetensors(path, into=wrong)
            assert gc.isenabled() is on
    assert set(during) == {on}


def test_threads_fill_their_own_modules(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Threads that load the same file into modules of their own each get all of it."""
    expected = seeded(lambda: chain(50, 60, 70), 1)
    path = file_of(tmp_path, expected, torch.float64)

    def load(n: int) -> dict[str, torch.Tensor]:
        module = chain(50, 60, 70)
        dm.load_safetensors(path, into=module)
        return state(module)

    assert all(same_dicts(got, state(expected)) for got in in_threads(6, load))
