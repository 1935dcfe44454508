"""What the simulated npu cannot do ends in an error that says so, never in a dead process."""

from __future__ import annotations

import os

import pytest
import torch

import devicekit.testing.simulated_npu as simulated
from devicekit.testing.simulated_npu.settings import SOC_VERSIONS, Settings, bytes_from

with pytest.raises(ValueError, match="unknown soc 'Ascend9'; known: Ascend910PremiumA"):
    simulated.install(soc="Ascend9")
with pytest.raises(ValueError, match="only 0 and 1 can be simulated"):
    simulated.install(count=2)
with pytest.raises(ValueError, match="memory='2GB'"):
    simulated.install(memory="2GB")
with pytest.raises(ValueError, match="must be positive"):
    simulated.install(memory=0)
assert torch._C._get_privateuse1_backend_name() == "privateuseone", "a refusal registers nothing"

simulated.install("512MiB")


def check_once_per_process() -> None:
    """A second install is refused, and the first one goes on working."""
    with pytest.raises(RuntimeError, match="this process has one already"):
        simulated.install()
    assert torch.ones(2, device="npu").sum().item() == 2


def check_sizes_are_read_as_binary() -> None:
    """Memory is given in bytes or in binary units."""
    assert bytes_from("2GiB") == bytes_from(" 2048 mib") == bytes_from(2 << 30) == 2 << 30
    assert (bytes_from("1.5KiB"), bytes_from("77")) == (1536, 77)


def check_the_table_of_chips() -> None:
    """The old Ascend910B is 104 and has no bfloat16; 910B1 and later have it, and so has 910C."""
    have = {s for s in SOC_VERSIONS if Settings(1, s, 1, float64=False, fail_memory_query=False).bfloat16}
    assert SOC_VERSIONS["Ascend910B"] == 104
    assert "Ascend910B" not in have
    assert "Ascend310P3" not in have
    assert {"Ascend910B1", "Ascend910B4-1", "Ascend910_9391", "Ascend950"} <= have


def check_float64_is_refused() -> None:
    """A float64 or complex128 tensor can neither be made on the npu nor put there nor computed."""
    there = torch.ones(2, device="npu")
    for forbidden in (
        lambda: torch.zeros(2, dtype=torch.float64, device="npu"),
        lambda: torch.ones(2, dtype=torch.float64).to("npu"),
        lambda: torch.tensor(1.0, dtype=torch.float64).npu(),
        lambda: torch.nn.Linear(2, 2).double().to("npu"),
        lambda: torch.as_tensor([1.0], dtype=torch.complex128, device="npu"),
        lambda: there.double(),
        lambda: there.sum(0, keepdim=True, dtype=torch.float64),
    ):
        with pytest.raises(RuntimeError, match="is not supported by the AI core of Ascend910B3"):
            forbidden()


def check_float64_can_be_converted_on_the_way() -> None:
    """A float64 tensor may be converted while it is copied, and a scale may be inverted."""
    host = torch.ones(2, dtype=torch.float64)
    assert host.to("npu", torch.float32).dtype == torch.float32
    assert torch.zeros(2, device="npu").copy_(host).tolist() == [1, 1]
    assert torch.tensor(4.0, device="npu").double().reciprocal().float().item() == 0.25


def check_other_kinds_of_tensors_are_refused() -> None:
    """Quantised and sparse tensors are refused by name."""
    there = torch.ones(2, 2, device="npu")
    with pytest.raises(RuntimeError, match=r"torch\.qint8 is not supported"):
        torch.quantize_per_tensor(there, 0.1, 0, torch.qint8)
    with pytest.raises(NotImplementedError, match="strided tensors only"):
        there.to_sparse()


def check_other_indices_are_refused() -> None:
    """There is no npu:1, for tensors, generators, storages, nor for torch.npu."""
    for wrong in (
        lambda: torch.zeros(2, device="npu:1"),
        lambda: torch.zeros(2).to("npu:1"),
        lambda: torch.zeros(2, device="npu").to("npu:1"),
        lambda: torch.Generator("npu:1"),
        lambda: torch.UntypedStorage(4, device="npu:1"),
        lambda: torch.npu.set_device(1),
        lambda: torch.accelerator.set_device_index(1),
    ):
        with pytest.raises(RuntimeError, match="Invalid device ID"):
            wrong()
    for wrong in (torch.npu.get_device_name, torch.npu.mem_get_info):
        with pytest.raises(AssertionError, match="Invalid device id"):
            wrong(1)
        with pytest.raises(ValueError, match="Expected a npu device, but got: cpu"):
            wrong("cpu")


def check_pinned_memory_is_refused() -> None:
    """pin_memory raises NotImplementedError."""
    with pytest.raises(NotImplementedError, match="getPinnedMemoryAllocator"):
        torch.ones(2).pin_memory()


def check_recurrent_layers_are_refused() -> None:
    """An LSTM raises NotImplementedError, as torch picks a fused kernel for it."""
    with pytest.raises(NotImplementedError, match="_thnn_fused_lstm_cell"):
        torch.nn.LSTM(2, 2).to("npu")(torch.ones(2, 2, device="npu"))


def check_dlpack_is_refused() -> None:
    """Memory of the npu cannot be handed over by DLPack."""
    with pytest.raises(ValueError, match="Unknown device type npu"):
        torch.from_dlpack(torch.ones(2, device="npu"))


def check_capability_is_asked_of_the_environment() -> None:
    """The capability is None with a warning, as with torch_npu, and torch.accelerator has none."""
    with pytest.warns(UserWarning, match="TORCH_NPU_DEVICE_CAPABILITY"):
        assert torch.npu.get_device_capability() is None
    with pytest.raises(RuntimeError, match="doesn't support getting device capabilities"):
        torch.accelerator.get_device_capability()


def check_a_fork_is_refused() -> None:
    """In a fork of a process that used the npu, the npu raises and the CPU goes on."""
    if not hasattr(os, "fork"):
        return
    torch.ones(1, device="npu")
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, device="npu")
        except RuntimeError as error:
            good = "Cannot re-initialize NPU in forked subprocess" in str(error)
            good = good and torch.npu._is_in_bad_fork() and torch.ones(1).item() == 1
            os._exit(0 if good else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
