"""The facade runs end to end on an npu that is registered with torch: no fake of ours stands between."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

import devicekit as dk
from devicekit.testing.simulated_npu import install

install(memory="64MiB", soc="Ascend910B3")

dm = dk.DeviceManager()


def check_auto_takes_the_npu() -> None:
    """It is preferred to the CPU, by its own name, by index, and as the best accelerator."""
    assert (str(dm.device), dm.backend, dm.index, dm.warning) == ("npu:0", "npu", 0, None)
    assert dk.available_backends()[0] == "npu"
    for asked in ("npu", "npu:0", "gpu", 0, torch.device("npu", 0)):
        assert dk.resolve_device(asked, strict=True) == dm.device


def check_the_chip_decides_the_dtype() -> None:
    """910B3 is number 223, which has bfloat16."""
    assert dm.dtype is torch.bfloat16
    assert dm._backend.describe(0).bfloat16 is True


def check_a_module_trains_on_it() -> None:
    """Moved, run forward and backward, and improved, all on the device."""
    torch.manual_seed(0)
    model = dm.to(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)))
    batch = dm.to({"x": torch.randn(32, 8), "y": torch.randn(32, 1)})
    assert {t.device.type for t in (*model.parameters(), *batch.values())} == {"npu"}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    dm.synchronize()


def check_generators_are_the_devices() -> None:
    """Its factories accept them and repeat for a seed; a CPU generator is refused, as on the real thing."""
    first, second = (torch.rand(8, device=dm.device, generator=dm.create_generator(3)) for _ in range(2))
    assert torch.equal(first.cpu(), second.cpu())
    with pytest.raises(RuntimeError, match="Expected a 'npu' device type"):
        torch.rand(8, device=dm.device, generator=torch.Generator("cpu"))


def check_the_same_seed_gives_the_cpus_numbers() -> None:
    """`dm.randn` means the same here as on the CPU."""
    drawn = dm.randn((4, 5), seed=11)
    assert drawn.device.type == "npu"
    assert torch.equal(drawn.cpu(), dk.DeviceManager("cpu").randn((4, 5), seed=11))


def check_the_random_state_comes_back() -> None:
    """Device numbers repeat after a state was pickled and set."""
    state = pickle.loads(pickle.dumps(dm.rng_state()))
    assert state.device_type == "npu"
    first = torch.rand(4, device=dm.device)
    dm.set_rng_state(state)
    assert torch.equal(first.cpu(), torch.rand(4, device=dm.device).cpu())
    with pytest.raises(dk.DeviceKitError, match="'npu' cannot be set on 'cpu'"):
        dk.DeviceManager("cpu").set_rng_state(state)
    dk.DeviceManager("cpu").set_rng_state(dataclasses.replace(state, device=None))


def check_memory_is_counted() -> None:
    """What is put there counts, what is dropped does not, and the peak remembers until it is reset."""
    before = dm.memory_stats()
    kept = dm.to(torch.ones(1 << 20))
    during = dm.memory_stats()
    assert during.allocated - before.allocated == kept.nbytes
    assert during.total == 64 << 20
    assert during.available < before.available
    del kept
    dm.empty_cache()
    after = dm.memory_stats()
    assert after.allocated == before.allocated
    assert after.peak >= during.allocated
    dm.reset_peak_memory()
    assert dm.memory_stats().peak == dm.memory_stats().allocated


def check_memory_runs_out() -> None:
    """Beyond the device's memory there is torch's own error, and afterwards the device still works."""
    with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
        dm.to(torch.ones(32 << 20))
    assert dm.to(torch.ones(4)).sum().item() == 4


def check_float64_becomes_float32() -> None:
    """The AI core has no double precision: tensors, arrays and modules come as float32, with one warning."""
    fresh = dk.DeviceManager("npu")
    fresh._backend._told.clear()
    mixed = {"t": torch.ones(2, dtype=torch.float64), "n": torch.ones(2).double().numpy()}
    with pytest.warns(UserWarning, match=r"npu has no torch.float64: torch.float32 is used instead") as caught:
        moved = fresh.to(mixed)
    module = fresh.to(torch.nn.Linear(2, 2).double())
    assert len(caught) == 1
    assert {t.dtype for t in (*moved.values(), *module.parameters())} == {torch.float32}
    assert moved["t"].device.type == "npu"


def check_code_without_a_number_runs() -> None:
    """A manager of the current device puts tensors there and counts them, and its device has no number."""
    here = dk.DeviceManager.current()
    assert (str(here.device), here.index, here.is_accelerator, here.device_count) == ("npu", None, True, 1)
    assert here.name == "Ascend NPU"
    here.set_device(0)
    with here.device_index(0):
        before = here.memory_stats().allocated
        kept = here.to(torch.nn.Linear(64, 64))
        assert here.memory_stats().allocated > before
        assert kept(here.to(torch.ones(1, 64))).device == here.device_at(0) == torch.device("npu", 0)
    assert torch.zeros(1, device=here.device_at("cuda")).device == torch.device("npu", 0)
    with pytest.raises(dk.DeviceUnavailableError, match="the only one is 0"):
        here.set_device(1)


def check_the_device_is_seeded_alone() -> None:
    """A seed repeats the npu's draws, and leaves the CPU's generator alone."""
    here, cpu = dk.DeviceManager.current(), torch.get_rng_state()
    here.manual_seed(5)
    first = torch.rand(4, device=here.device)
    here.manual_seed(5)
    assert torch.equal(first.cpu(), torch.rand(4, device=here.device).cpu())
    assert torch.equal(torch.get_rng_state(), cpu)


def check_autocast_can_be_switched_off_inside() -> None:
    """torch's own autocast of the npu is off inside of the inner block, and on again after it."""
    x = dm.to(torch.ones(4, 4))
    with dm.autocast():
        with dm.autocast(enabled=False):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def check_streams_are_torch_npus() -> None:
    """They are its own classes, the one that is chosen is current while it is, and events measure."""
    main, side = dm.current_stream(), dm.create_stream()
    assert (type(side), main) == (torch.npu.Stream, dm.default_stream())
    side.wait_stream(main)
    with dm.stream(side):
        assert torch.npu.current_stream() == side
    dm.set_stream(side)
    assert torch.npu.current_stream() == dm.current_stream() == side
    dm.set_stream(main)
    start, end = dm.create_event(enable_timing=True, blocking=True), dm.create_event(enable_timing=True)
    assert type(start) is torch.npu.Event
    start.record()
    end.record(dm.current_stream())
    assert start.elapsed_time(end) >= 0


def check_a_real_kernel_is_verified() -> None:
    """What doctor runs passes here."""
    dm._backend.verify(0)


def check_the_report_is_complete() -> None:
    """Device, memory and the plugin's version are in it."""
    report = dm.report()
    assert report["device"] == "npu:0"
    assert report["memory"]["total"] == 64 << 20
    assert report["versions"]["torch_npu"].startswith(torch.__version__.partition("+")[0])


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
