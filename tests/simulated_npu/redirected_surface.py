"""torch.cuda, torch.accelerator, generators and mixed precision where "cuda" means the simulated npu."""

from __future__ import annotations

import warnings

import pytest
import torch

import devicekit
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver
from devicekit.testing.simulated_npu import install

install(memory="2GiB")
NPU = torch.device("npu", 0)


def check_seeding_starts_nothing() -> None:
    """A seed waits for the start; so does a question whether there is a device."""
    torch.cuda.manual_seed_all(1)
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1


def check_devices() -> None:
    """It is described as what it is, by the numbers that it has."""
    assert torch.cuda.get_device_name() == "Ascend NPU"
    assert torch.cuda.get_device_capability() == (0, 0)
    assert torch.cuda.get_device_properties(NPU).total_memory == 2 << 30
    assert torch.cuda.is_bf16_supported()
    torch.cuda.set_device("cuda:0")
    with torch.cuda.device(0):
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(NPU)
    for call in (torch.cuda.set_device, torch.cuda.synchronize, torch.cuda.memory_allocated):
        with pytest.raises(RuntimeError, match="CUDA error: invalid device ordinal"):
            call(1)


def check_memory() -> None:
    """The figures are the device's."""
    x = torch.ones(1 << 20, device="cuda")
    assert torch.cuda.memory_allocated() >= 4 << 20
    assert torch.cuda.max_memory_allocated() >= torch.cuda.memory_allocated()
    assert torch.cuda.mem_get_info()[1] == 2 << 30
    del x
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(0.5)
    assert torch.npu.get_per_process_memory_fraction() == 0.5
    torch.cuda.set_per_process_memory_fraction(1.0)


def check_streams() -> None:
    """They are the runtime's own, and instances of torch.cuda's classes."""
    stream = torch.cuda.Stream("cuda:0", priority=-1)
    assert isinstance(stream, torch.npu.Stream)
    assert isinstance(torch.npu.current_stream(), torch.cuda.Stream)
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() is stream
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    end.record(stream)
    assert isinstance(start, torch.npu.Event)
    assert start.elapsed_time(end) > 0


def check_generators() -> None:
    """They are the device's; those of the CPU are refused as ever."""
    made = torch.Generator("cuda").manual_seed(1)
    assert made.device == NPU
    assert isinstance(made, torch.Generator)
    first = torch.randn(3, device="cuda", generator=made)
    assert torch.equal(torch.randn(3, device="cuda", generator=torch.Generator("cuda:0").manual_seed(1)), first)
    with pytest.raises(RuntimeError, match="Expected a 'npu' device type for generator but found 'cpu'"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def check_random_states() -> None:
    """The device's state is saved and brought back, and not that of the CPU."""
    torch.cuda.manual_seed(2)
    state = torch.cuda.get_rng_state("cuda:0")
    first = torch.randn(3, device="cuda")
    torch.cuda.set_rng_state_all([state])
    with torch.random.fork_rng(devices=[0], device_type="cuda"):
        assert torch.equal(torch.randn(3, device="cuda"), first)
    with torch.random.fork_rng():
        assert torch.equal(torch.randn(3, device="cuda"), first)
    assert torch.cuda.default_generators[0].device == NPU
    torch.manual_seed(2)
    assert torch.equal(torch.randn(3, device="cuda"), first)


def check_typed_tensors() -> None:
    """They are made on the device, which is also where the default type puts new ones."""
    made = torch.cuda.FloatTensor([1.0, 2.0])
    assert made.device == NPU
    assert isinstance(made, torch.cuda.FloatTensor)
    assert not isinstance(torch.ones(2), torch.cuda.FloatTensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.set_default_tensor_type("torch.cuda.HalfTensor")
        assert (torch.zeros(2).device, torch.zeros(2).dtype) == (NPU, torch.float16)
        torch.set_default_tensor_type(torch.FloatTensor)
    assert (torch.zeros(2).device.type, torch.zeros(2).dtype) == ("cpu", torch.float32)


def check_mixed_precision() -> None:
    """Autocast for CUDA is the device's, in float16 unless another is said, and float32 is legal as there."""
    x = torch.ones(2, 2, device="cuda")
    for options, dtype in (
        ({}, torch.float16),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
    ):
        with torch.autocast("cuda", **options):
            assert torch.nn.functional.linear(x, x).dtype is dtype
            assert torch.is_autocast_enabled() is True
            assert torch.get_autocast_dtype("cuda") is dtype
    assert torch.is_autocast_enabled("cuda") is False
    assert torch.amp.GradScaler("cuda").is_enabled()


def check_accelerator() -> None:
    """torch.accelerator is the device that it always was, by either name."""
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    torch.accelerator.set_device_index("cuda:0")
    torch.accelerator.set_device_index(NPU)
    assert torch.accelerator.current_device_index() == 0
    assert torch.accelerator.get_memory_info()[1] == 2 << 30


def check_what_only_cuda_can_do() -> None:
    """It is refused with the device's name."""
    with pytest.raises(devicekit.DeviceUnavailableError, match="cannot work on npu"):
        torch.cuda.CUDAGraph()


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
with Redirect(DecidedTarget(resolver().decide("npu"))):
    for check in CHECKS:
        check()
assert torch.get_default_dtype() is torch.float32
print(len(CHECKS), "checks")
