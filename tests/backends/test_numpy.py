"""NumPy: the whole facade on a host without torch."""

from __future__ import annotations

import pickle
import random
import warnings

import numpy as np
import pytest
import torch

import devicekit as dk
from devicekit.testing import simulated_machine


def test_the_whole_facade_without_torch() -> None:
    """Every method of the manager works, and torch is never imported for it."""
    with simulated_machine("no-torch") as host, warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = dk.DeviceManager()
        assert (dm.backend, dm.device, dm.index, dm.warning) == ("numpy", "cpu", None, None)
        assert dm.dtype == np.dtype("float32")
        assert dm.to(np.ones(2), dm.dtype).dtype == np.float32
        assert dm.randn((2, 3), seed=0).shape == (2, 3)
        dm.set_rng_state(dm.rng_state())
        dm.empty_cache()
        dm.synchronize()
        dm.reset_peak_memory()
        dm._backend.verify()
        assert dm.memory_stats().total == 64 << 30
        assert dm.report()["dtype"] == "float32"
        assert pickle.loads(pickle.dumps(dm)).backend == "numpy"
        assert dk.available_backends() == ("numpy",)
        assert "torch" not in host.imports


@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (17,), (3, 16), (5, 7), (0,), (2, 0)])
@pytest.mark.parametrize("seed", [0, 42, -1, 2**32 + 7, 2**64 - 1])
def test_a_seed_gives_torchs_numbers(shape: tuple[int, ...], seed: int) -> None:
    """Hosts with and without torch draw the same, to float32's rounding, on both paths of torch's algorithm."""
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with simulated_machine("no-torch"):
        drawn = dk.DeviceManager().randn(shape, seed=seed)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_without_a_seed_numpys_global_state_is_drawn_from() -> None:
    """np.random.seed is honoured, and two draws differ."""
    with simulated_machine("no-torch"):
        dm = dk.DeviceManager()
        np.random.seed(3)
        first, second = dm.randn(4), dm.randn(4)
        np.random.seed(3)
        assert (dm.randn(4) == first).all()
        assert (first != second).any()


def test_only_floating_arrays_are_cast() -> None:
    """Integers, booleans, texts and objects keep their dtype; no dtype means no copy."""
    with simulated_machine("no-torch"):
        dm = dk.DeviceManager()
        whole = np.arange(3)
        assert dm.to(whole, np.float16) is whole
        assert dm.to({"a": [np.ones(2)]}, np.float16)["a"][0].dtype == np.float16
        double = np.ones(2)
        assert dm.to(double) is double
        assert dm.to("text", np.float16) == "text"


def test_tensors_become_arrays_where_torch_is_there() -> None:
    """Asked for by name beside torch: bfloat16, which NumPy does not have, becomes float32."""
    with simulated_machine("cpu") as host:
        host.torch()
        dm = dk.DeviceManager("numpy", strict=True)
        assert dm.device == "cpu"
        moved = dm.to(torch.ones(2, dtype=torch.bfloat16, requires_grad=True))
        assert (type(moved), moved.dtype) == (np.ndarray, np.float32)


def test_the_random_state_is_pythons_and_numpys() -> None:
    """Both go on where they were; there is no torch in it."""
    with simulated_machine("no-torch"):
        dm = dk.DeviceManager()
        state = dm.rng_state()
        expected = random.random(), np.random.random()
        dm.set_rng_state(pickle.loads(pickle.dumps(state)))
        assert (random.random(), np.random.random()) == expected
        assert (state.torch, state.device) == (None, None)


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1])
def test_generators_take_torchs_seeds(seed: int) -> None:
    """The same range as torch; one seed, one stream."""
    with simulated_machine("no-torch"):
        dm = dk.DeviceManager()
        assert dm.create_generator(seed).random() == dm.create_generator(seed).random()
        with pytest.raises(ValueError, match="between"):
            dm.create_generator(2**64)


def test_the_containers_limit_counts_here_too() -> None:
    """A host without torch in a container of 2 GiB."""
    with simulated_machine("no-torch", container="2GiB"):
        assert dk.DeviceManager().memory_stats().total == 2 << 30


def test_a_host_without_numpy() -> None:
    """Neither torch nor NumPy: the device is the CPU all the same, and the warning says what is missing."""
    with simulated_machine("no-torch", modules=("psutil",)):
        with pytest.warns(dk.DeviceFallbackWarning, match="neither torch nor numpy"):
            dm = dk.DeviceManager()
        assert dm.device == "cpu"
        with pytest.raises(dk.DeviceUnavailableError, match="numpy is not installed"):
            dm.randn(3)
