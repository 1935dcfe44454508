"""The memory counters of the simulated npu follow the tensors that are alive, in bytes."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from devicekit.testing.simulated_npu import install

MIB = 1 << 20
TOTAL = 64 * MIB

install("64MiB")


def check_nothing_is_known_before_the_first_use() -> None:
    """Before the device is used there are no figures, and asking does not start it."""
    assert not torch.npu.is_initialized()
    assert torch.npu.memory_stats() == {}
    assert torch.npu.memory_allocated() == torch.accelerator.memory_allocated() == 0
    torch.npu.empty_cache()
    assert torch.npu.is_available()
    assert not torch.npu.is_initialized()


def check_tensors_are_counted_while_they_live() -> None:
    """allocated rises by a tensor's size, once for all its views, and falls when the last dies."""
    before = torch.npu.memory_allocated()
    tensor = torch.ones(MIB, device="npu")
    view = tensor[1:].view(-1)
    assert torch.npu.memory_allocated() - before == 4 * MIB
    del tensor
    assert torch.npu.memory_allocated() - before == 4 * MIB
    del view
    assert torch.npu.memory_allocated() == before
    assert torch.npu.is_initialized()


def check_small_tensors_take_a_block() -> None:
    """A tensor of four bytes takes 512."""
    before = torch.npu.memory_allocated()
    tensor = torch.ones(1, device="npu")
    assert torch.npu.memory_allocated() - before == 512
    assert tensor.item() == 1


def check_growing_is_counted() -> None:
    """resize_ to more elements counts the difference."""
    tensor = torch.zeros(2, device="npu")
    before = torch.npu.memory_allocated()
    tensor.resize_(MIB)
    assert torch.npu.memory_allocated() - before == 4 * MIB - 512


def check_peak_and_reserved() -> None:
    """The peak stays until it is reset, and reserved until the cache is emptied."""
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    start = torch.npu.memory_allocated()
    del_me = torch.ones(4 * MIB, device="npu")
    del del_me
    assert torch.npu.max_memory_allocated() - start == 16 * MIB
    assert torch.npu.memory_reserved() >= 16 * MIB
    assert torch.npu.mem_get_info() == (TOTAL - torch.npu.memory_reserved(), TOTAL)
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    assert torch.npu.max_memory_allocated() == torch.npu.memory_allocated() == start
    assert torch.npu.mem_get_info()[0] > TOTAL - 16 * MIB


def check_accelerator_says_the_same() -> None:
    """torch.accelerator's memory functions give the figures of torch.npu."""
    kept = torch.ones(MIB, device="npu")
    assert torch.accelerator.memory_allocated() == torch.npu.memory_allocated() >= 4 * MIB
    assert torch.accelerator.memory_stats() == torch.npu.memory_stats()
    assert torch.accelerator.get_memory_info() == torch.npu.mem_get_info()
    del kept
    torch.accelerator.empty_cache()
    torch.accelerator.empty_host_cache()
    torch.accelerator.reset_peak_memory_stats()
    assert torch.accelerator.max_memory_allocated() == torch.npu.memory_allocated()


def check_the_graph_holds_memory() -> None:
    """What autograd saved for backward counts until the graph is gone."""
    x = torch.ones(MIB, device="npu", requires_grad=True)
    before = torch.npu.memory_allocated()
    y = x.exp().exp()
    assert torch.npu.memory_allocated() - before == 8 * MIB
    del y
    assert torch.npu.memory_allocated() == before


def check_cycles_and_threads_leave_nothing() -> None:
    """Tensors in reference cycles and in threads are given back."""
    before = torch.npu.memory_allocated()
    cycle: list[object] = [torch.ones(100, device="npu")]
    cycle.append(cycle)
    del cycle
    gc.collect()

    def work() -> None:
        for _ in range(20):
            x = torch.ones(16, 16, device="npu", requires_grad=True)
            (x @ x).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.npu.memory_allocated() == before


def check_memory_runs_out() -> None:
    """At the limit a factory, a copy, an operator and a storage raise torch_npu's own error."""
    half = torch.ones(10 * MIB, device="npu")
    big = torch.ones(8 * MIB)
    ooms = torch.npu.memory_stats()["num_ooms"]
    text = r"NPU out of memory\. Tried to allocate \d+\.\d\d MiB \(NPU 0; 64\.00 MiB total capacity"
    for too_much in (
        lambda: torch.empty(8 * MIB, device="npu"),
        lambda: big.to("npu"),
        lambda: half + 1,
        lambda: torch.UntypedStorage(32 * MIB, device="npu"),
    ):
        with pytest.raises(torch.OutOfMemoryError, match=text):
            too_much()
    assert torch.npu.memory_stats()["num_ooms"] == ooms + 4
    assert torch.ones(MIB, device="npu").sum().item() == MIB


def check_what_the_host_cannot_allocate_is_the_devices_error() -> None:
    """When not even the host has the memory, the error still says NPU."""
    with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
        torch.ones(1, device="npu").expand(1 << 40).contiguous()
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4096\.00 GiB"):
        torch.empty(1 << 40, device="npu")


def check_a_process_can_be_given_less() -> None:
    """set_per_process_memory_fraction lowers the limit, and refuses what is no fraction."""
    torch.npu.set_per_process_memory_fraction(0.25)
    assert torch.npu.get_per_process_memory_fraction() == 0.25
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(5 * MIB, device="npu")
    torch.npu.set_per_process_memory_fraction(1.0)
    with pytest.raises(TypeError):
        torch.npu.set_per_process_memory_fraction(1)
    with pytest.raises(ValueError, match="Allowed range: 0~1"):
        torch.npu.set_per_process_memory_fraction(1.5)


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
