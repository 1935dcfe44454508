"""Devices and generators that this torch has no code for: what stands in for them, and the doors they come in by.

``torch.device`` and ``torch.Generator`` are classes that one calls and asks ``isinstance`` about. A :class:`Door` does
both for the real class and its stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Door", "FakeGenerator", "NpuDevice"]


@dataclass(frozen=True, repr=False)
class NpuDevice:
    """``torch.device("npu", index)``: the real class refuses the word until a plugin has registered it."""

    index: int | None = None
    type: str = "npu"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _npu_device, (self.index,)


# devicekit tells a torch.device by the name of its class, so that it need not import torch to see that it is none.
NpuDevice.__name__ = NpuDevice.__qualname__ = "device"
NpuDevice.__module__ = "torch"


def _npu_device(index: int | None) -> NpuDevice:
    return NpuDevice(index)


class FakeGenerator(torch.Generator):
    """A CPU generator (mt19937, a state of 5056 bytes) that says it is on another device."""

    _place: Any

    def __new__(cls, device: Any) -> FakeGenerator:
        """Made by the C++ class, which knows only the CPU here."""
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]  # the stub has no __new__
        made._place = device
        return made

    def __init__(self, device: Any) -> None:
        """All is done by ``__new__``."""

    @property
    def device(self) -> Any:  # type: ignore[override]  # read-only in C as well
        """Where it says that it draws."""
        return self._place

    def clone_state(self) -> FakeGenerator:
        """A new generator that will draw the same numbers."""
        made = FakeGenerator(self.device)
        made.set_state(self.get_state())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _generator, (self.device, self.get_state())


def _generator(device: Any, state: Any) -> FakeGenerator:
    made = FakeGenerator(device)
    made.set_state(state)
    return made


class Door:
    """Stands where torch has a class: calling it may make a stand-in, ``isinstance`` accepts both."""

    def __init__(self, make: Callable[..., Any], *classes: type) -> None:
        self._make = make
        self._classes = classes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the real class, or the stand-in, makes of the arguments."""
        return self._make(*args, **kwargs)

    def __instancecheck__(self, thing: object) -> bool:
        return isinstance(thing, self._classes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classes[0], name)
