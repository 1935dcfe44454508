"""The pytest plugin, used as a user would: it comes with the installed package and needs no import."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import devicekit as dk
from devicekit.host import Host, current
from devicekit.testing import simulated_machine
from devicekit.testing.plugin import usable_devices


def test_each_device_is_a_manager(each_device: dk.DeviceManager) -> None:
    """The test runs on a device of this machine, and what it moves there computes."""
    x = each_device.to(torch.ones(2, 2))
    assert float((x @ x).sum()) == 8.0
    assert each_device.warning is None


def test_a_simulated_machine_lasts_for_the_test(simulate: Callable[..., Host]) -> None:
    """From the call on, everything sees the machine; a second call changes it again."""
    simulate("two-gpus")
    assert str(dk.resolve_device()) == "cuda:0"
    simulate(npu=1, memory="32GiB")
    assert str(dk.resolve_device()) == "npu:0"


def test_a_simulated_machine_ends_with_the_test(request: pytest.FixtureRequest) -> None:
    """The real host is back in the next test."""
    assert type(current()) is Host


def test_every_device_gets_a_run_of_its_own() -> None:
    """Several devices are several runs, named after them; NumPy's CPU is one only where there is no torch."""
    with simulated_machine("two-gpus"):
        assert usable_devices() == ["cuda:0", "cuda:1", "cpu"]
    with simulated_machine("mac"):
        assert usable_devices() == ["mps", "cpu"]
    with simulated_machine("no-torch"):
        assert usable_devices() == ["numpy"]


def test_the_runs_are_named_after_the_devices(pytester: pytest.Pytester) -> None:
    """A failing device can be read off the test's name, and be chosen with -k."""
    pytester.makepyfile(
        """
        def test_mine(each_device):
            assert each_device.device.type == "cpu"

        def test_other():
            import sys
            assert "devicekit" in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_mine?cpu? PASSED*"])
