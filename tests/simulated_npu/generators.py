"""Random numbers on the simulated npu come from npu generators, and from nowhere else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional

from devicekit.testing.simulated_npu import install

install()


def check_generators_say_where_they_are() -> None:
    """torch.Generator makes a generator of the device that it is asked for."""
    for device in ("npu", "npu:0", torch.device("npu")):
        assert torch.Generator(device=device).device == torch.device("npu", 0)
    assert torch.Generator("npu").device.type == "npu"
    assert isinstance(torch.Generator("npu"), torch.Generator)
    assert torch.Generator().device.type == torch.Generator("cpu").device.type == "cpu"
    assert type(torch.Generator()) is torch.Generator


def check_a_cpu_generator_is_refused() -> None:
    """Factories and in-place draws on the npu refuse a CPU generator with torch's own text."""
    there, cpu = torch.ones(3, device="npu"), torch.Generator()
    for draw in (
        lambda: torch.randn(3, device="npu", generator=cpu),
        lambda: torch.randint(5, (3,), device="npu", generator=cpu),
        lambda: torch.randperm(3, device="npu", generator=cpu),
        lambda: there.normal_(generator=cpu),
        lambda: torch.multinomial(there, 1, generator=cpu),
        lambda: torch.bernoulli(there, generator=cpu),
        lambda: torch.poisson(there, generator=cpu),
    ):
        with pytest.raises(RuntimeError, match="Expected a 'npu' device type for generator but found 'cpu'"):
            draw()


def check_the_same_seed_gives_the_same_numbers() -> None:
    """A seeded npu generator repeats itself, and moves on with every draw."""
    generator = torch.Generator("npu").manual_seed(1)
    first = torch.randn(3, device="npu", generator=generator)
    second = torch.randn(3, device="npu", generator=generator)
    assert not torch.equal(first, second)
    again = torch.Generator("npu").manual_seed(1)
    assert torch.equal(torch.randn(3, device="npu", generator=again), first)


def check_generators_can_be_kept() -> None:
    """State, clone, deep copy and pickle of an npu generator continue on the npu as it would."""
    generator = torch.Generator("npu").manual_seed(3)
    torch.rand(5, device="npu", generator=generator)
    state = generator.get_state()
    kept = (
        generator.clone_state(),
        copy.deepcopy(generator),
        pickle.loads(pickle.dumps(generator)),  # our own bytes
        torch.Generator("npu").set_state(state),
    )
    expected = torch.rand(5, device="npu", generator=generator)
    for other in kept:
        assert other.device.type == "npu"
        assert torch.equal(torch.rand(5, device="npu", generator=other), expected)


def check_the_cpu_is_left_alone() -> None:
    """Drawing on the npu, dropout included, does not move the CPU's generator."""
    before = torch.get_rng_state()
    x = torch.ones(64, device="npu")
    torch.randn(3, device="npu")
    functional.dropout(x)
    torch.nn.Dropout()(x.requires_grad_()).sum().backward()
    functional.rrelu(x, training=True)
    torch.rand_like(x)
    assert torch.equal(torch.get_rng_state(), before)


def check_seeding_the_device() -> None:
    """torch.npu.manual_seed repeats draws and dropout, and leaves the CPU's seed as it is."""
    x = torch.ones(64, device="npu")

    def draws() -> list[torch.Tensor]:
        return [torch.randn(3, device="npu"), functional.dropout(x), torch.randperm(9).to("npu")]

    torch.manual_seed(7)
    torch.npu.manual_seed(1)
    first = draws()
    torch.npu.manual_seed(1)
    second = draws()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    assert torch.initial_seed() == 7
    assert torch.npu.initial_seed() == 1


def check_torch_manual_seed_reaches_the_device() -> None:
    """torch.manual_seed seeds the npu too, without a warning."""
    torch.manual_seed(5)
    first = torch.randn(3, device="npu")
    torch.manual_seed(5)
    assert torch.npu.initial_seed() == 5
    assert torch.equal(torch.randn(3, device="npu"), first)


def check_states_can_be_put_back() -> None:
    """get_rng_state and set_rng_state, and fork_rng, bring the numbers back."""
    state, states = torch.npu.get_rng_state(), torch.npu.get_rng_state_all()
    assert (state.device.type, state.dtype, len(states)) == ("cpu", torch.uint8, 1)
    first = torch.rand(4, device="npu")
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="npu"), first)
    torch.npu.set_rng_state_all(states)
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        torch.rand(4, device="npu")
    assert torch.equal(torch.rand(4, device="npu"), first)


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
