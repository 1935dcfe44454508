"""``torch.npu.random``: the device's default generator."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from devicekit.testing.simulated_npu.machine import device_index, machine

__all__ = [
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]

Device = torch.device | str | int


def get_rng_state(device: Device = "npu") -> torch.Tensor:
    """The state as a ByteTensor on the CPU; initialises the device.

    Raises IndexError for a device that does not exist, as torch_npu does.
    """
    machine().start()
    return machine().generators[device_index(device)].get_state()


def get_rng_state_all() -> list[torch.Tensor]:
    """The states of all devices."""
    return [get_rng_state(index) for index in range(machine().settings.count)]


def set_rng_state(new_state: torch.Tensor, device: Device = "npu") -> None:
    """Put back what ``get_rng_state`` gave."""
    machine().generators[device_index(device)].set_state(new_state)


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    """Put back what ``get_rng_state_all`` gave."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def manual_seed(seed: int) -> None:
    """Seed the device; nothing happens without one."""
    if machine().settings.count:
        machine().generator.manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seed all devices; ``torch.manual_seed`` calls this."""
    manual_seed(seed)


def seed() -> None:
    """Seed the device with a number that nobody knows; nothing happens without a device."""
    if machine().settings.count:
        machine().generator.seed()


def seed_all() -> None:
    """Seed all devices with a number that nobody knows."""
    seed()


def initial_seed() -> int:
    """The seed that the device's generator was last given; initialises the device."""
    machine().start()
    return machine().generator.initial_seed()
