"""The kernel that attention will use is named before it is used, and so is what stands in the way of a faster one."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import devicekit as dk
from devicekit.backend import SDPA
from devicekit.testing import simulated_machine

HALVES = (torch.bfloat16, torch.float16)
AMPERE = {"cuda": 1, "architecture": "sm_80"}
TURING = {"cuda": 1, "architecture": "sm_75"}
HOPPER = {"cuda": 1, "architecture": "sm_90"}
ADA = {"cuda": 1, "architecture": "sm_89"}
MI300 = {"rocm": 1, "architecture": "gfx942"}
ARC = {"xpu": 1}
ATLAS = {"npu": 1, "architecture": "Ascend910B3"}


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Torch's switches are the process's: every test leaves them as they were."""
    before = switches()
    yield
    assert switches() == before


def switches() -> tuple[bool, ...]:
    """Which kernels torch may use."""
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


def manager(machine: dict[str, Any]) -> dk.DeviceManager:
    """Vulkan is taken only when it is asked for by name."""
    return dk.DeviceManager("vulkan" if machine.get("machine") == "vulkan" else None)


# -- which kernel ------------------------------------------------------------------------------------
CASES: list[tuple[dict[str, Any], dict[str, Any], str, dict[str, str]]] = [
    (AMPERE, {}, "flash", {}),
    (AMPERE, {"head_dim": 256}, "flash", {}),
    (AMPERE, {"head_dim": 512}, "memory-efficient", {"flash": "head dim 512 > 256"}),
    (AMPERE, {"dtype": torch.float32}, "memory-efficient", {"flash": "float32 is not taken"}),
    (AMPERE, {"mask": True}, "memory-efficient", {"flash": "a mask is given"}),
    (AMPERE, {"mask": True, "head_dim": 20}, "math", {"memory-efficient": "head dim 20 is no multiple of 8"}),
    (AMPERE, {"dtype": torch.float32, "head_dim": 20}, "memory-efficient", {}),
    (AMPERE, {"dtype": torch.float32, "head_dim": 6}, "math", {"memory-efficient": "head dim 6 is no multiple of 4"}),
    (AMPERE, {"dtype": torch.float64}, "math", {"memory-efficient": "float64 is not taken"}),
    (AMPERE, {"training": True, "dropout": 0.1, "head_dim": 256}, "flash", {}),
    (ADA, {"training": True, "head_dim": 256}, "flash", {}),
    (ADA, {"training": True, "head_dim": 192}, "flash", {}),
    (ADA, {"training": True, "head_dim": 208}, "memory-efficient", {"flash": "gradients of head dim 208 on sm_89"}),
    (
        ADA,
        {"training": True, "head_dim": 256, "dropout": 0.1},
        "memory-efficient",
        {"flash": "gradients of head dim 256"},
    ),
    (TURING, {}, "memory-efficient", {"flash": "sm_75 < sm_80"}),
    (TURING, {"dtype": torch.bfloat16}, "math", {"memory-efficient": "bfloat16 is not taken"}),
    (TURING, {"dtype": torch.float32, "head_dim": 6}, "memory-efficient", {}),
    (TURING, {"head_dim": 6}, "math", {"memory-efficient": "head dim 6 is no multiple of 8"}),
    (HOPPER, {}, "cudnn", {}),
    (HOPPER, {"head_dim": 256}, "flash", {"cudnn": "head dim 256 > 128"}),
    (HOPPER, {"head_dim": 100}, "flash", {"cudnn": "head dim 100 is no multiple of 8"}),
    (HOPPER, {"mask": True}, "cudnn", {}),
    (HOPPER, {"dropout": 0.125}, "cudnn", {}),
    (HOPPER, {"dropout": 0.1}, "flash", {"cudnn": "dropout 0.1 is no multiple of 1/16"}),
    ({**HOPPER, "env": {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}}, {}, "flash", {}),
    (MI300, {}, "flash", {}),
    (MI300, {"mask": True}, "memory-efficient", {"flash": "a mask is given"}),
    ({"rocm": 1, "architecture": "gfx1101"}, {}, "math", {"flash": "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1"}),
    (
        {"rocm": 1, "architecture": "gfx1101", "env": {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"}},
        {},
        "flash",
        {},
    ),
    ({"rocm": 1, "architecture": "gfx1030"}, {}, "math", {"flash": "AOTriton has no attention for gfx1030"}),
    (ARC, {}, "onednn", {}),
    (ARC, {"mask": True, "dtype": torch.float32}, "onednn", {}),
    (ARC, {"head_dim": 577}, "math", {"onednn": "head dim 577 > 576", "flash": "head dim 577 > 192"}),
    (ARC, {"training": True}, "math", {"onednn": "gradients are asked for", "flash": "cannot be told"}),
    (ATLAS, {}, "npu-fused", {}),
    (ATLAS, {"head_dim": 513}, "math", {"npu-fused": "head dim 513 > 512"}),
    ({"npu": 1, "architecture": "Ascend310P3"}, {}, "math", {"npu-fused": "Atlas A2 and A3"}),
    ({"mps": True}, {}, "math", {"flash": "no flash on MPS"}),
    ({"machine": "vulkan"}, {}, "math", {}),
    ({}, {}, "flash", {}),
    ({}, {"mask": True, "training": True, "head_dim": 999}, "flash", {}),
    ({}, {"dropout": 0.5}, "math", {"flash": "dropout is asked for"}),
    ({"machine": "no-torch"}, {}, "none", {"math": "scaled_dot_product_attention is torch's"}),
]


@pytest.mark.parametrize(("machine", "case", "name", "why_not"), CASES)
def test_the_kernel_and_the_reasons(
    machine: dict[str, Any], case: dict[str, Any], name: str, why_not: dict[str, str]
) -> None:
    """Each machine names its kernel for a case, and the reason against every faster one in words."""
    with simulated_machine(**machine):
        answer = manager(machine).attention_backend(**case)
    assert (answer.name, str(answer)) == (name, name)
    assert name not in answer.why_not
    assert all(answer.why_not.values())
    for kernel, reason in why_not.items():
        assert reason in answer.why_not[kernel]


def test_a_build_without_a_kernel_says_so() -> None:
    """cuDNN that is too old is told as such, and so is what is not the first choice of torch."""
    from dataclasses import replace

    from devicekit.testing.machines import CUDA_BUILD

    old = replace(CUDA_BUILD, cudnn=8907)
    with simulated_machine(**HOPPER, build=old):
        dm = dk.DeviceManager()
        assert dm.attention_backend().name == "flash"
        with pytest.raises(dk.DeviceKitError, match="cuDNN 8907 < 90000"):
            dm.attention("cudnn")


@pytest.mark.parametrize(
    ("machine", "case", "reason"),
    [
        (AMPERE, {}, "flash-attn is not installed"),
        (TURING, {}, "sm_75 < sm_80"),
        (AMPERE, {"dtype": torch.float32}, "float32 is not taken"),
        (AMPERE, {"head_dim": 320}, "head dim 320 > 256"),
        (AMPERE, {"mask": True}, "a mask is given"),
        (MI300, {}, "flash-attn is not installed"),
        ({"rocm": 1, "architecture": "gfx1100"}, {}, "flash-attn has no kernels for gfx1100"),
        (ARC, {}, "flash-attn has no kernels for xpu"),
        ({"mps": True}, {}, "flash-attn has no kernels for mps"),
        (ATLAS, {}, "flash-attn has no kernels for npu"),
        ({}, {}, "flash-attn has no kernels for cpu"),
    ],
)
def test_the_package_is_a_question_of_its_own(machine: dict[str, Any], case: dict[str, Any], reason: str) -> None:
    """Torch's flash is not the package flash-attn: whether that could be used is told apart, device first."""
    with simulated_machine(**machine):
        answer = dk.DeviceManager().attention_backend(**case)
    assert (answer.why_not["flash-attn"], answer.flash_attn) == (reason, False)


def test_a_package_that_is_there_is_worth_choosing() -> None:
    """Installed and fit for the device it is offered, though torch's own function will not call it."""
    with simulated_machine(**AMPERE, modules=("numpy", "psutil", "pynvml", "flash_attn")):
        answer = dk.DeviceManager().attention_backend()
        assert answer.flash_attn
        assert "never calls the package" in answer.why_not["flash-attn"]
        with pytest.raises(dk.DeviceKitError, match="flash_attention_2"):
            dk.DeviceManager().attention("flash-attn")


@pytest.mark.parametrize("case", [{"head_dim": 0}, {"head_dim": 1.5}, {"dropout": 2}, {"dropout": "a"}, {"dtype": "x"}])
def test_what_makes_no_sense_is_refused(case: dict[str, Any]) -> None:
    """A head of no size or a dropout above 1 is an error, and never an answer."""
    with pytest.raises(dk.DeviceKitError, match=str(next(iter(case.values())))):
        dk.DeviceManager("cpu").attention_backend(**case)


def test_a_switch_that_is_off_is_a_reason() -> None:
    """What the user has switched off in torch will not be used; with all off there is none."""
    dm = dk.DeviceManager("cpu")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        answer = dm.attention_backend()
        assert (answer.name, answer.why_not["flash"]) == ("math", "it is switched off")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        assert dm.attention_backend().name == "none"


# -- torch's own answer, on this processor -------------------------------------------------------------
def tensors(dtype: torch.dtype = torch.float32, head_dim: int = 16, training: bool = False) -> list[torch.Tensor]:
    """Query, key and value of 2 batches, 3 heads and 5 places."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, head_dim, generator=generator).to(dtype).requires_grad_(training) for _ in range(3)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("head_dim", [1, 16, 100, 512])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_torch_says_the_same(dtype: torch.dtype, head_dim: int, mask: bool, dropout: float, training: bool) -> None:
    """On the processor torch can be asked which kernel it takes for real tensors, and names the same one."""
    given = torch.zeros(5, 5, dtype=dtype) if mask else None
    chosen = torch._fused_sdp_choice(*tensors(dtype, head_dim, training), attn_mask=given, dropout_p=dropout)
    dm = dk.DeviceManager("cpu")
    answer = dm.attention_backend(dtype=dtype, head_dim=head_dim, mask=mask, dropout=dropout, training=training)
    assert torch.nn.attention.SDPBackend(chosen).name == SDPA[answer.name]


def test_a_build_for_the_processor_has_no_flash_for_cuda() -> None:
    """torch's own questions about CUDA say no here, as our answer about a build without it does."""
    given = torch.backends.cuda.SDPAParams(*tensors(), None, 0.0, False, False)
    if torch.version.cuda is None and torch.version.hip is None:
        assert not torch.backends.cuda.can_use_flash_attention(given)
        assert not torch.backends.cuda.is_flash_attention_available()


# -- choosing one -----------------------------------------------------------------------------------------
def formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(query key^T / sqrt(head dim) + mask) value, in float64."""
    query, key, value = (x.double() for x in (query, key, value))
    weights = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return torch.softmax(weights if mask is None else weights + mask, dim=-1) @ value


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["flash", "math", None])
def test_every_kernel_computes_the_formula(name: str | None, dtype: torch.dtype, masked: bool) -> None:
    """Each kernel that can be chosen here gives the numbers that define attention."""
    mask = torch.full((5, 5), -1e9).triu(1) if masked else None
    given = tensors(dtype)
    with dk.DeviceManager("cpu").attention(name):
        got = sdpa(*given, attn_mask=None if mask is None else mask.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), formula(*given, mask), atol=2e-2 if dtype is torch.bfloat16 else 1e-5, rtol=0
    )


def test_inside_it_is_that_kernel() -> None:
    """Torch chooses what was chosen, our own answer follows, and afterwards all is as before."""
    dm, given = dk.DeviceManager("cpu"), tensors()
    assert torch._fused_sdp_choice(*given) == 1
    with dm.attention("math") as chosen:
        assert chosen.name == "math"
        assert torch._fused_sdp_choice(*given) == 0
        assert dm.attention_backend().name == "math"
        with dm.attention():
            assert torch._fused_sdp_choice(*given) == 1
        with chosen, chosen:
            assert torch._fused_sdp_choice(*given) == 0
        assert torch._fused_sdp_choice(*given) == 0
    assert torch._fused_sdp_choice(*given) == 1


def test_it_is_a_decorator() -> None:
    """A decorated function keeps its name and its result, call after call."""

    @dk.DeviceManager("cpu").attention("math")
    def choice() -> int:
        return int(torch._fused_sdp_choice(*tensors()))

    assert (choice.__name__, choice(), choice()) == ("choice", 0, 0)


def test_an_error_ends_it() -> None:
    """What is raised inside comes out, and torch chooses freely again."""
    with pytest.raises(ZeroDivisionError), dk.DeviceManager("cpu").attention("math"):
        raise ZeroDivisionError
    assert torch._fused_sdp_choice(*tensors()) == 1


def test_other_threads_see_it() -> None:
    """As documented: torch's switches are not a thread's."""
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(int(torch._fused_sdp_choice(*tensors()))))
    with dk.DeviceManager("cpu").attention("math"):
        thread.start()
        thread.join()
    assert seen == [0]


@pytest.mark.parametrize(
    ("machine", "name", "words"),
    [
        ({}, "memory-efficient", "it has flash, math"),
        ({}, "flahs", "it has flash, math"),
        ({}, "flash-attn", "flash-attn has no kernels for cpu"),
        (TURING, "flash", "sm_75 < sm_80"),
        ({"mps": True}, "flash", "no flash on MPS"),
        (ATLAS, "math", "torch_npu does not listen"),
        ({"machine": "no-torch"}, None, "scaled_dot_product_attention is torch's"),
        ({"machine": "no-torch"}, "math", "scaled_dot_product_attention is torch's"),
    ],
)
def test_what_cannot_be_is_refused_up_front(machine: dict[str, Any], name: str | None, words: str) -> None:
    """Asking is the error, before anything is entered, with the reason and what there is instead."""
    with simulated_machine(**machine), pytest.raises(dk.DeviceKitError) as caught:
        dk.DeviceManager().attention(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("machine", "name", "enabled"),
    [
        (AMPERE, "flash", (True, False, False, False)),
        (AMPERE, "cudnn", (False, False, True, False)),
        (AMPERE, None, (True, True, True, True)),
        (MI300, "memory-efficient", (False, True, False, False)),
        ({"mps": True}, None, (True, False, False, True)),
        (ARC, "onednn", (False, False, False, False)),
    ],
)
def test_other_machines_set_their_switches(
    machine: dict[str, Any], name: str | None, enabled: tuple[bool, ...]
) -> None:
    """The switches that torch has are set for the kernel that was chosen, and for no other."""
    with simulated_machine(**machine), dk.DeviceManager().attention(name):
        assert switches() == enabled


def test_an_npu_keeps_its_own() -> None:
    """torch_npu's kernel needs no switch; when it was told to be compatible, it can be limited to another."""
    with simulated_machine(**ATLAS) as host:
        dm = dk.DeviceManager()
        before = switches()
        with dm.attention("npu-fused"), dm.attention():
            assert switches() == before
        host.torch().npu.are_compatible_impl_enabled = lambda: True
        with dm.attention("math"):
            assert switches() == (False, False, False, True)


# -- diffusers ------------------------------------------------------------------------------------------
class Dispatch:
    """What of ``diffusers.models.attention_dispatch`` is used."""

    def __init__(self, active: str, missing: bool) -> None:
        self.active = active
        self.missing = missing
        self._AttentionBackendRegistry = self

    def get_active_backend(self) -> tuple[SimpleNamespace, None]:
        return SimpleNamespace(value=self.active), None

    def _check_attention_backend_requirements(self, backend: SimpleNamespace) -> None:
        if self.missing:
            raise RuntimeError(f"Backend '{backend.value}' is not usable because of missing package")

    @contextlib.contextmanager
    def attention_backend(self, name: str) -> Iterator[None]:
        before, self.active = self.active, name
        try:
            yield
        finally:
            self.active = before


@pytest.mark.parametrize(
    ("machine", "active", "missing", "name", "inside"),
    [
        ({}, "flash", True, None, "native"),
        ({}, "flash", False, None, "native"),
        ({}, "_flash_varlen_3", False, None, "native"),
        ({}, "_native_flash", False, None, "_native_flash"),
        ({}, "flex", False, None, "flex"),
        ({}, "flex", False, "math", "native"),
        ({}, "native", False, "math", "native"),
        (TURING, "flash", False, None, "native"),
        (AMPERE, "flash", True, None, "native"),
        (AMPERE, "sage", True, None, "native"),
        (AMPERE, "flash", False, None, "flash"),
        (AMPERE, "flash", False, "math", "native"),
    ],
)
def test_diffusers_is_brought_to_what_runs(
    machine: dict[str, Any], active: str, missing: bool, name: str | None, inside: str
) -> None:
    """Where it would call a package that cannot run, or not the chosen kernel, it uses torch's function meanwhile."""
    dispatch = Dispatch(active, missing)
    with simulated_machine(**machine) as host:
        lend(host, dispatch)
        with dk.DeviceManager().attention(name):
            assert dispatch.active == inside
    assert dispatch.active == active


def lend(host: Any, dispatch: Any) -> None:
    """Let a simulated host have a loaded diffusers."""
    loaded = host.loaded
    host.loaded = lambda name: dispatch if name == "diffusers.models.attention_dispatch" else loaded(name)


def test_a_real_pipeline_s_attention_runs_without_the_package() -> None:
    """diffusers' own dispatch, told to use flash without a check, fails outside and computes the formula inside."""
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch", reason="diffusers is not installed")
    if dispatch._CAN_USE_FLASH_ATTN:
        pytest.skip("flash-attn is installed")
    registry, dm = dispatch._AttentionBackendRegistry, dk.DeviceManager("cpu")
    given = [x.transpose(1, 2) for x in tensors()]
    before = registry._active_backend
    registry._active_backend = dispatch.AttentionBackendName("flash")  # as DIFFUSERS_ATTN_BACKEND=flash does
    try:
        with pytest.raises((TypeError, RuntimeError)):
            dispatch.dispatch_attention_fn(*given)
        with dm.attention():
            got = dispatch.dispatch_attention_fn(*given).transpose(1, 2)
        assert registry._active_backend.value == "flash"
    finally:
        registry._active_backend = before
    torch.testing.assert_close(got.double(), formula(*tensors(), None), atol=1e-5, rtol=0)
