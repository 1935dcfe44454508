"""With count=0 the machine is one that has torch_npu and no device."""

from __future__ import annotations

import pytest
import torch

from devicekit.testing.simulated_npu import install

install(count=0)


def check_questions_are_answered() -> None:
    """Counting and memory questions say that there is nothing, and raise nothing."""
    assert not torch.npu.is_available()
    assert torch.npu.device_count() == torch.accelerator.device_count() == 0
    assert not torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    assert torch.accelerator.current_accelerator(check_available=True) is None
    assert torch.npu.memory_stats() == torch.accelerator.memory_stats() == {}
    assert torch.npu.memory_allocated() == 0
    assert torch.npu.default_generators == ()
    torch.npu.empty_cache()
    torch.npu.set_compile_mode(jit_compile=False)
    torch.manual_seed(0)
    torch.amp.GradScaler("npu")


def check_use_is_refused() -> None:
    """Whatever needs the device raises RuntimeError."""
    for use in (
        lambda: torch.zeros(2, device="npu"),
        lambda: torch.zeros(2).to("npu"),
        lambda: torch.autocast("npu"),
        lambda: torch.UntypedStorage(2, device="npu"),
        lambda: torch.npu.Stream(),
        torch.npu.synchronize,
        torch.npu.is_bf16_supported,
        torch.npu.get_soc_version,
        torch.npu.current_device,
        torch.npu.get_rng_state,
    ):
        with pytest.raises(RuntimeError, match="No NPUs are available"):
            use()
    with pytest.raises(RuntimeError, match="Invalid device ID"):
        torch.Generator("npu")


def check_no_index_is_valid() -> None:
    """Even index 0 does not exist."""
    for ask in (torch.npu.get_device_name, torch.npu.get_device_properties, torch.npu.mem_get_info):
        with pytest.raises(AssertionError, match="Invalid device id"):
            ask(0)


def check_the_cpu_goes_on() -> None:
    """The CPU, its generator and its storages work as before."""
    assert torch.randn(2, generator=torch.Generator()).untyped_storage().device.type == "cpu"


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
