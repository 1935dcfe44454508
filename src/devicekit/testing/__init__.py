"""Test device code without devices: machines made from data, and the suite that every backend must pass.

    from devicekit.testing import simulated_machine

    with simulated_machine("mac"):
        assert devicekit.DeviceManager().backend == "mps"

The real backends run there, on the answers of a simulated torch, driver and operating system. What this cannot show is
how fast a device is, and what its own arithmetic gives: tensors stay on the CPU. Importing this package imports neither
torch nor pytest: every name is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devicekit.testing.conformance import BackendConformance
    from devicekit.testing.fake_host import FakeHost
    from devicekit.testing.fake_torch import FakeTorch
    from devicekit.testing.machines import MACHINES, Build, Card, Faults, Machine, machine_named
    from devicekit.testing.simulated_cuda import simulated_cuda
    from devicekit.testing.simulation import simulated_machine

_HOME = {
    "BackendConformance": "conformance",
    "Build": "machines",
    "Card": "machines",
    "FakeHost": "fake_host",
    "FakeTorch": "fake_torch",
    "Faults": "machines",
    "MACHINES": "machines",
    "Machine": "machines",
    "machine_named": "machines",
    "simulated_cuda": "simulated_cuda",
    "simulated_machine": "simulation",
}

__all__ = [
    "BackendConformance",
    "Build",
    "Card",
    "FakeHost",
    "FakeTorch",
    "Faults",
    "MACHINES",
    "Machine",
    "machine_named",
    "simulated_cuda",
    "simulated_machine",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
