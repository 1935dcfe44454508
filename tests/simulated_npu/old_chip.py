"""An old chip, a failing memory query and a machine with float64 can be ordered."""

from __future__ import annotations

import pytest
import torch

from devicekit.testing.simulated_npu import install

install(memory=64 << 20, soc="Ascend910B", float64=True, fail_memory_query=True)


def check_the_old_910b_has_no_bfloat16() -> None:
    """Ascend910B is number 104; it has no bfloat16, and autocast to it is switched off."""
    assert torch.npu.get_soc_version() == 104
    assert not torch.npu.is_bf16_supported()
    assert torch.npu.get_amp_supported_dtype() == [torch.float16, torch.float32]
    x = torch.ones(2, 2, device="npu")
    with pytest.warns(UserWarning, match="not supported"):
        lowered = torch.autocast("npu", dtype=torch.bfloat16)
    with lowered:
        assert (x @ x).dtype == torch.float32
    with torch.autocast("npu"):
        assert (x @ x).dtype == torch.float16


def check_the_memory_query_fails() -> None:
    """mem_get_info raises, in torch.accelerator too; the allocator's own counters still answer."""
    for ask in (torch.npu.mem_get_info, torch.accelerator.get_memory_info):
        with pytest.raises(RuntimeError, match="aclrtGetMemInfo failed"):
            ask()
    kept = torch.ones(1 << 20, device="npu")
    assert torch.npu.memory_allocated() == kept.nbytes
    assert torch.npu.get_device_properties().total_memory == 64 << 20


def check_float64_can_be_allowed() -> None:
    """With float64=True float64 and complex128 live on the device."""
    assert torch.ones(2, dtype=torch.float64).to("npu").mul(2).dtype == torch.float64
    assert torch.zeros(2, dtype=torch.complex128, device="npu").dtype == torch.complex128


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
