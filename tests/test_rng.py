"""Random numbers: the same everywhere for the same seed, and a state that brings a run back to where it was."""

from __future__ import annotations

import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devicekit import DeviceKitError, DeviceManager


def test_one_seed_gives_one_array() -> None:
    """The same seed draws the same numbers again, another seed others."""
    dm = DeviceManager("cpu")
    assert torch.equal(dm.randn((3, 5), seed=1), dm.randn((3, 5), seed=1))
    assert not torch.equal(dm.randn((3, 5), seed=1), dm.randn((3, 5), seed=2))


def test_the_numbers_are_those_of_the_cpu_generator() -> None:
    """A seed means what it means to torch on the CPU, in float32, and is rounded to the dtype that is asked for."""
    dm = DeviceManager("cpu")
    expected = torch.randn((4, 4), generator=torch.Generator().manual_seed(9))
    assert torch.equal(dm.randn((4, 4), seed=9), expected)
    assert torch.equal(dm.randn((4, 4), seed=9, dtype=torch.bfloat16), expected.bfloat16())


@settings(deadline=None)
@given(seed=st.integers(-(2**63), 2**64 - 1), count=st.integers(1, 200))
def test_numpy_draws_what_torch_draws(seed: int, count: int) -> None:
    """The numpy backend gives torch's numbers to float32 rounding, at every size and seed."""
    ours = DeviceManager("numpy").randn((count,), seed=seed)
    theirs = DeviceManager("cpu").randn((count,), seed=seed).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_without_a_seed_the_global_generator_decides() -> None:
    """torch.manual_seed governs what is drawn without a seed."""
    dm = DeviceManager("cpu")
    torch.manual_seed(4)
    first = dm.randn((6,))
    torch.manual_seed(4)
    assert torch.equal(first, dm.randn((6,)))


def test_a_whole_number_is_a_shape() -> None:
    """A shape of one dimension can be said as a number."""
    assert DeviceManager("cpu").randn(3, seed=0).shape == (3,)


def test_a_generator_without_a_seed_is_not_the_default_one() -> None:
    """torch starts every generator at one fixed seed; ours starts at another each time."""
    dm = DeviceManager("cpu")
    assert dm.create_generator().initial_seed() != dm.create_generator().initial_seed()


def test_numpy_integers_are_seeds() -> None:
    """torch refuses them; a seed that comes out of an array is a seed all the same."""
    dm = DeviceManager("cpu")
    assert dm.create_generator(np.int64(3)).initial_seed() == 3


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_the_state_brings_every_source_back(backend: str) -> None:
    """Python's, NumPy's and torch's numbers repeat after a state is set, also one that was pickled."""
    dm = DeviceManager(backend)
    state = pickle.loads(pickle.dumps(dm.rng_state()))
    drawn = (random.random(), np.random.rand(), dm.randn((2,)).tolist())
    dm.set_rng_state(state)
    assert drawn == (random.random(), np.random.rand(), dm.randn((2,)).tolist())


def test_another_device_types_state_is_refused_whole() -> None:
    """A state of another device type is an error that names the way out, and nothing is changed."""
    dm = DeviceManager("cpu")
    foreign = dataclasses.replace(dm.rng_state(), device=torch.zeros(16, dtype=torch.uint8), device_type="cuda")
    before = random.getstate()
    random.random()
    moved = random.getstate()
    with pytest.raises(DeviceKitError, match="'cuda' cannot be set on 'cpu'"):
        dm.set_rng_state(foreign)
    assert random.getstate() == moved != before


def test_what_is_no_state_is_refused() -> None:
    """A byte tensor, torch's own kind of state, is not ours."""
    with pytest.raises(DeviceKitError, match="is no random state"):
        DeviceManager("cpu").set_rng_state(torch.get_rng_state())  # type: ignore[arg-type]


def test_a_device_without_a_state_refuses_one() -> None:
    """The CPU's state is torch's; a device state for it has no place to go."""
    dm = DeviceManager("cpu")
    with pytest.raises(DeviceKitError, match="no random state of its own"):
        dm.set_rng_state(dataclasses.replace(dm.rng_state(), device=torch.zeros(1, dtype=torch.uint8)))
