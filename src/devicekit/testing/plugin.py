"""The pytest plugin: run a test on every usable device, or on a machine that is not there.

Installed with devicekit (entry point ``pytest11``). Nothing is imported, and no device asked, before a test wants one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from devicekit.host import Host
    from devicekit.manager import DeviceManager
    from devicekit.redirect.redirect import Redirect

EACH_DEVICE = "each_device"


@pytest.fixture
def simulate() -> Iterator[Callable[..., Host]]:
    """Simulate a machine until the test ends: ``simulate("mac")``, ``simulate(cuda=2, memory="24GiB")``.

    The arguments are those of :func:`devicekit.testing.simulated_machine`.
    """
    from devicekit.testing import simulated_machine

    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(simulated_machine(*args, **kwargs))


@pytest.fixture
def simulated_cuda(request: pytest.FixtureRequest) -> Iterator[Redirect]:
    """An NVIDIA GPU that is not there, until the test ends; or several: ``@pytest.mark.simulated_cuda(count=2)``.

    The marker's arguments are those of :func:`devicekit.testing.simulated_cuda`.
    """
    from devicekit.testing.simulated_cuda import simulated_cuda

    marker = request.node.get_closest_marker("simulated_cuda")
    args, kwargs = ((), {}) if marker is None else (marker.args, marker.kwargs)
    with simulated_cuda(*args, **kwargs) as redirect:
        yield redirect


@pytest.fixture
def each_device(request: pytest.FixtureRequest) -> DeviceManager:
    """A :class:`devicekit.DeviceManager`; the test runs once for every usable device of this machine."""
    from devicekit.manager import DeviceManager

    return DeviceManager(request.param, strict=True)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    line = "simulated_cuda(count, memory, capability): the GPUs of the fixture of this name"
    config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: Any) -> None:
    """Give a test that wants each device one run per device."""
    if EACH_DEVICE in metafunc.fixturenames:
        metafunc.parametrize(EACH_DEVICE, usable_devices(), indirect=True)


def usable_devices() -> list[str]:
    """Every usable device as one spells it; NumPy's only where there is no torch to test."""
    from devicekit.resolve import resolver

    here = resolver()
    usable = [row for row in here.usable_rows() if row.automatic]
    with_torch = [row for row in usable if here.backend(row).needs_torch]
    found = []
    for row in with_torch or usable:
        devices = [device for device in here.probe(row).devices if device.usable]
        several = here.backend(row).indexed
        found += [f"{row.name}:{device.index}" if several else row.name for device in devices]
    return found
