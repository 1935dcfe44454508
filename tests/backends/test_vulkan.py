"""Vulkan: experimental, so nobody gets it who has not asked for it by name."""

from __future__ import annotations

import pytest
import torch

import devicekit as dk
from devicekit.testing import simulated_machine


def _verdict(backend: str = "vulkan") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


@pytest.mark.parametrize("asked", [None, "auto", "cpu"])
def test_it_is_not_taken_unasked(asked: str | None) -> None:
    """A torch that has it still runs on the CPU by default."""
    with simulated_machine("vulkan"):
        assert str(dk.resolve_device(asked)) == "cpu"
        assert _verdict().usable
        assert not _verdict().chosen


@pytest.mark.parametrize("asked", ["gpu", 0])
def test_it_is_nobodys_best_accelerator(asked: object) -> None:
    """The best accelerator never is an experimental one."""
    with simulated_machine("vulkan"), pytest.warns(dk.DeviceFallbackWarning):
        assert str(dk.resolve_device(asked)) == "cpu"


def test_by_name_it_is_taken() -> None:
    """float32 for every floating type, a CPU generator, no memory figures, nothing to empty."""
    with simulated_machine("vulkan"):
        dm = dk.DeviceManager("vulkan", strict=True)
        assert (str(dm.device), dm.index, dm.dtype) == ("vulkan", None, torch.float32)
        with pytest.warns(UserWarning, match=r"vulkan has no torch\.float16: torch\.float32 is used instead"):
            assert dm.to(torch.ones(2, dtype=torch.float16)).dtype is torch.float32
        assert dm.to(torch.arange(2)).dtype is torch.int64
        assert dm.create_generator(1).device == torch.device("cpu")
        assert dm.memory_stats() == dk.MemoryStats(source="torch's Vulkan backend counts no memory")
        dm.empty_cache()
        dm.synchronize()
        assert dm.rng_state().device is None


def test_published_builds_do_not_have_it() -> None:
    """The reason says that it has to be built, and the fix what to use instead."""
    with simulated_machine("cpu"):
        verdict = _verdict()
        with pytest.raises(dk.DeviceUnavailableError, match="no published build has it"):
            dk.resolve_device("vulkan", strict=True)
    assert "ExecuTorch" in verdict.fix
