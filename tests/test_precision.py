"""Autocast and gradient scaling do what they say on every backend, and say so where they do nothing."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit.testing import simulated_machine

HALVES = (torch.bfloat16, torch.float16)
NATIVE = {"cpu": ("avx2", "avx512_f", "avx512_bf16")}
PLAIN = {"cpu": ("avx2",)}

MACHINES: dict[str, tuple[dict[str, Any], tuple[torch.dtype, ...]]] = {
    "Ampere": ({"cuda": 1, "architecture": "sm_80"}, HALVES),
    "Turing": ({"cuda": 1, "architecture": "sm_75"}, (torch.float16,)),
    "RDNA3": ({"rocm": 1, "architecture": "gfx1100"}, HALVES),
    "RDNA2": ({"rocm": 1, "architecture": "gfx1030"}, (torch.float16,)),
    "Arc": ({"xpu": 1}, HALVES),
    "910B": ({"npu": 1, "architecture": "Ascend910B3"}, HALVES),
    "310P": ({"npu": 1, "architecture": "Ascend310P3"}, (torch.float16,)),
    "Mac": ({"mps": True}, HALVES),
    "CPU": (NATIVE, (torch.bfloat16,)),
    "CPU with float16": ({"cpu": ("avx512_f", "avx512_bf16", "avx512_fp16")}, HALVES),
    "old CPU": (PLAIN, ()),
    "Vulkan": ({"machine": "vulkan"}, ()),
}


def product() -> torch.Tensor:
    """Of a matrix in float32, as autocast would have it."""
    made = torch.ones(4, 4)
    return made @ made


def manager(machine: str) -> dk.DeviceManager:
    """Vulkan is taken only when it is asked for by name."""
    return dk.DeviceManager("vulkan" if machine == "Vulkan" else None)


# -- it happens, or it says that it does not --------------------------------------------------------
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("machine", MACHINES)
def test_enabled_is_what_happens(machine: str, dtype: torch.dtype) -> None:
    """A product inside is in this dtype where the device computes it; elsewhere in float32, and the reason is told."""
    options, native = MACHINES[machine]
    with simulated_machine(**options), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = manager(machine).autocast(dtype)
        with made as entered:
            assert entered is made
            assert product().dtype == (dtype if dtype in native else torch.float32)
        assert product().dtype == torch.float32
        assert made.enabled is (dtype in native)
        assert (made.dtype, made.reason == "") == ((dtype, True) if dtype in native else (None, False))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_default_is_the_managers_dtype(machine: str) -> None:
    """Without a dtype nobody is warned, and what is computed in is what the device prefers."""
    options, native = MACHINES[machine]
    with simulated_machine(**options), warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = manager(machine)
        made = dm.autocast()
        assert made.dtype is (dm.dtype if dm.dtype in native else None)
        assert made.enabled is (dm.dtype in HALVES)


def test_asking_in_vain_is_warned_of() -> None:
    """Where a dtype was named that changes nothing, one warning says why, at the caller's line."""
    with simulated_machine(**PLAIN):
        dm = dk.DeviceManager()
        with pytest.warns(
            UserWarning, match="autocast to torch.bfloat16 changes nothing here.* computes none"
        ) as heard:
            dm.autocast(torch.bfloat16)
        assert heard[0].filename == __file__


def test_float32_is_no_autocast() -> None:
    """float32 may be asked for, by word or by the manager's dtype, and is what happens anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (
            dk.DeviceManager("cpu").autocast(torch.float32),
            dk.DeviceManager("cpu", dtype=torch.float32).autocast(),
        ):
            assert not made.enabled
            assert "float32" in made.reason
            assert "float32" in repr(made)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn, "bfloat17"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    """torch warns and turns itself off; here it is an error that says what there is."""
    with pytest.raises(dk.DeviceKitError, match=str(dtype)) as caught:
        dk.DeviceManager("cpu").autocast(dtype)
    assert "torch.bfloat16" in str(caught.value)


# -- switched off ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("machine", MACHINES)
def test_switched_off_is_float32(machine: str) -> None:
    """With ``enabled=False`` products are in float32, whatever the dtype, and nobody is warned."""
    options, _ = MACHINES[machine]
    with simulated_machine(**options), warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (None, *HALVES):
            with manager(machine).autocast(dtype, enabled=False) as made:
                assert product().dtype == torch.float32
            assert (made.enabled, made.dtype, made.reason) == (False, None, "switched off by the caller")


@pytest.mark.parametrize("machine", [{"cuda": 1}, NATIVE], ids=str)
def test_it_is_switched_off_inside_of_one(machine: dict[str, Any]) -> None:
    """As with torch's own: the inner block is in float32, and afterwards the outer one goes on."""
    with simulated_machine(**machine):
        dm = dk.DeviceManager()
        with dm.autocast():
            with dm.autocast(enabled=False):
                assert product().dtype == torch.float32
            assert product().dtype == dm.dtype


def test_switched_off_starts_nothing() -> None:
    """The default dtype is not asked for, because that would start the runtime."""
    with simulated_machine(cuda=1) as host:
        dk.DeviceManager().autocast(enabled=False)
        assert not host.torch().cuda.is_initialized()


def test_there_is_nothing_to_switch_off_without_torch() -> None:
    """A host with NumPy alone has no autocast, and runs the block."""
    with simulated_machine("no-torch"), dk.DeviceManager().autocast(enabled=False) as made:
        assert not made.enabled


def test_a_scaler_can_be_switched_off() -> None:
    """With ``enabled=False`` it passes everything through, also for float16."""
    with simulated_machine(cuda=1):
        dm = dk.DeviceManager(dtype=torch.float16)
        assert dm.grad_scaler().is_enabled()
        assert not dm.grad_scaler(enabled=False).is_enabled()


# -- a context as others ------------------------------------------------------------------------------
def test_it_is_a_decorator_and_can_be_entered_inside_of_itself() -> None:
    """Decorated functions keep their name, and one object serves twice at once."""
    with simulated_machine(**NATIVE):
        made = dk.DeviceManager().autocast()
        decorated = made(product)
        assert decorated.__name__ == "product"
        with made:
            with made:
                assert product().dtype == torch.bfloat16
            assert decorated().dtype == product().dtype == torch.bfloat16
        assert product().dtype == torch.float32
        assert decorated().dtype == torch.bfloat16


def test_an_error_ends_it() -> None:
    """What is raised inside comes out, and nothing stays switched on."""
    with simulated_machine(**NATIVE):
        with pytest.raises(ZeroDivisionError), dk.DeviceManager().autocast():
            raise ZeroDivisionError
        assert not torch.is_autocast_enabled("cpu")


def test_threads_share_a_decorated_function() -> None:
    """Each call is in its own context, for torch's is a thread's."""
    with simulated_machine(**NATIVE):
        meet = threading.Barrier(4)

        @dk.DeviceManager().autocast()
        def work(_: int) -> torch.dtype:
            meet.wait(10)
            return product().dtype

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(work, range(4))) == {torch.bfloat16}
        assert not torch.is_autocast_enabled("cpu")


def test_nothing_leaves_an_outer_autocast_alone() -> None:
    """Where it does nothing it does not switch off what the caller has switched on."""
    with simulated_machine(**PLAIN), torch.autocast("cpu", torch.bfloat16), dk.DeviceManager().autocast():
        assert product().dtype == torch.bfloat16


def test_without_torch_it_is_nothing() -> None:
    """On the NumPy host the same line runs and says why it changes nothing; a scaler has no meaning there."""
    dm = dk.DeviceManager("numpy")
    with dm.autocast() as made:
        assert not made.enabled
    assert made.reason
    with pytest.raises(dk.DeviceKitError, match="numpy"):
        dm.grad_scaler()


# -- gradients ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [None, *HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("machine", MACHINES)
def test_only_float16_is_scaled(machine: str, dtype: torch.dtype | None) -> None:
    """The scaler is on where autocast computes in float16, off elsewhere, and never says a word."""
    options, native = MACHINES[machine]
    with simulated_machine(**options), warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = manager(machine)
        wanted = dm.dtype if dtype is None else dtype
        scaler = dm.grad_scaler(dtype)
        assert isinstance(scaler, torch.amp.GradScaler)
        assert scaler.is_enabled() is (wanted is torch.float16 and wanted in native)


def test_options_are_torchs() -> None:
    """They go through; ``enabled=False`` stays false, and true does not enable what is useless."""
    with simulated_machine(cuda=1, architecture="sm_75"):
        dm = dk.DeviceManager()
        assert dm.grad_scaler(init_scale=8.0).get_scale() == 8
        assert not dm.grad_scaler(enabled=False).is_enabled()
        assert not dm.grad_scaler(torch.bfloat16, enabled=True).is_enabled()


@pytest.mark.parametrize("machine", ["Turing", "Ampere", "old CPU"])
def test_a_training_step_is_the_same_line_everywhere(machine: str) -> None:
    """Autocast and scaler of any machine train: the parameters change, and stay finite and float32."""
    with simulated_machine(**MACHINES[machine][0]):
        dm = dk.DeviceManager()
        layer = torch.nn.Linear(3, 1)
        before = layer.weight.detach().clone()
        optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.1), dm.grad_scaler()
        for _ in range(3):
            with dm.autocast():
                loss = layer(torch.ones(2, 3)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert layer.weight.dtype == torch.float32
        assert torch.isfinite(layer.weight).all()
        assert not torch.equal(layer.weight, before)
