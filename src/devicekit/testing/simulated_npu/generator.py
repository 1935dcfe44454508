"""A generator of the simulated device, and the two rules that random numbers on it obey.

1. Random operators on npu tensors accept an npu generator and refuse any other.
2. Without a generator they draw from the device's own one, never from that of the CPU.

Below, every npu generator is a CPU generator (mt19937, a state of 5056 bytes; a real one has 16).
So an operator on *CPU* tensors does not notice that it is given an npu generator.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from devicekit.testing.simulated_npu.machine import NAME, device_index, machine

__all__ = ["NpuGenerator", "answer_torch_generator", "borrowed_by_cpu", "refuse_foreign"]

# torch hands operators a new Python object for the same C++ generator, so its address is the key.
_alive: weakref.WeakValueDictionary[int, NpuGenerator] = weakref.WeakValueDictionary()


class NpuGenerator(torch.Generator):
    """A generator that says it is on ``npu:0``."""

    def __new__(cls, device: torch.device | str = NAME) -> NpuGenerator:
        """Make one; RuntimeError for a device that does not exist."""
        index = device_index(device)
        if not 0 <= index < machine().settings.count:
            raise RuntimeError(f"Invalid device ID: there is no {NAME}:{index} for a generator")
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]  # the stub has no __new__
        _alive[_address(made)] = made
        return made

    def __init__(self, device: torch.device | str = NAME) -> None:
        """Take the device in; all is done by ``__new__``."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # read-only in C as well
        """Where it draws, as far as a caller can tell."""
        return torch.device(NAME, 0)

    def clone_state(self) -> NpuGenerator:
        """A new generator that will draw the same numbers."""
        made = NpuGenerator()
        made.set_state(self.get_state())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        # The inherited one names the C++ device, which is the CPU.
        return torch.Generator, (self.device,), (self.initial_seed(), None, self.get_state())


def refuse_foreign(generator: torch.Generator) -> None:
    """Raise what ATen's check_generator raises for a generator of another device."""
    if _address(generator) not in _alive:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")


@contextlib.contextmanager
def borrowed_by_cpu(generator: torch.Generator) -> Iterator[None]:
    """Let operators that take no generator (dropout) draw from this one, not from the CPU's."""
    cpu = torch.default_generator
    kept = cpu.get_state()
    cpu.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(cpu.get_state())
        cpu.set_state(kept)


def answer_torch_generator() -> None:
    """Make ``torch.Generator("npu")`` return an NpuGenerator.

    A C++ generator for a Python backend cannot be had, and torch.Generator cannot be given a new
    ``__new__``; its metaclass is a Python class, though. torch.Generator stays the class it was.
    """
    plain = torch.Generator  # kept, because a redirect puts another class there
    maker: Any = type(plain)

    def call(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is plain and _is_for_npu(*args, **kwargs):
            return NpuGenerator(*args, **kwargs)
        return super(maker, cls).__call__(*args, **kwargs)

    maker.__call__ = call


def _is_for_npu(device: Any = None, *_: Any, **__: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == NAME


def _address(generator: torch.Generator) -> int:
    address: int = generator._cdata  # type: ignore[attr-defined]  # not in torch's stubs
    return address
