"""torch.mps and torch.backends.mps of a machine that is data: one GPU, few names, no states of starting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devicekit.testing.fake_devices import FakeGenerator
from devicekit.testing.fake_memory import CardMemory
from devicekit.testing.fake_streams import Event

if TYPE_CHECKING:
    from devicekit.testing.fake_torch import FakeTorch

__all__ = ["FakeMps", "FakeMpsBackend"]


class FakeMpsBackend:
    """``torch.backends.mps``."""

    def __init__(self, torch: FakeTorch, real: Any) -> None:
        self._torch = torch
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name == "get_name" and self._torch._build.mps and not self._torch._added_later("backends.mps", name):
            return lambda: self._torch._machine.cards_of("apple")[0].name
        if name in ("get_name", "get_core_count"):  # on a build without MPS they fail like this, too
            raise AttributeError(f"module 'torch.backends.mps' has no attribute {name!r}")
        return getattr(self._real, name)

    def is_built(self) -> bool:
        """Compiled in."""
        return self._torch._build.mps

    def is_available(self) -> bool:
        """Compiled in, an Apple GPU, and macOS 14; torch before 2.12 runs on macOS 13 as well."""
        machine, build = self._torch._machine, self._torch._build
        floor = (13, 0) if build.older_than(2, 12) else (14, 0)
        return build.mps and machine.platform == "darwin" and bool(machine.cards_of("apple")) and self._newer(*floor)

    def is_macos_or_newer(self, major: int, minor: int) -> bool:
        """Raises on a build without MPS."""
        if not self._torch._build.mps:
            raise RuntimeError("Cannot execute isOnMacOSorNewer() without MPS backend.")
        return self._newer(major, minor)

    def _newer(self, *version: int) -> bool:
        return tuple(int(n) for n in self._torch._machine.macos.split(".")) >= version


class FakeMps:
    """``torch.mps``."""

    def __init__(self, torch: FakeTorch, real: Any) -> None:
        self._torch = torch
        self._real = real
        self._generator: FakeGenerator | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _memory(self, what: str = "", device: Any = None) -> CardMemory:
        if not self.is_available():
            raise RuntimeError(f"Cannot execute {what}() without MPS backend.")
        return self._torch._memory_of(self._torch._machine.cards_of("apple")[0])

    def is_available(self) -> bool:
        """There is one GPU."""
        return self.device_count() > 0

    def device_count(self) -> int:
        """0 or 1."""
        return int(self._torch.backends.mps.is_available())

    def current_allocated_memory(self) -> int:
        """Bytes of live tensors."""
        return self._memory("currentAllocatedMemory").allocated.current

    def driver_allocated_memory(self) -> int:
        """Bytes that Metal gave the process, caches included."""
        return self._memory("driverAllocatedMemory").reserved.current

    def recommended_max_memory(self) -> int:
        """Metal's recommended working set."""
        memory = self._memory("recommendedMaxMemory")
        if self._torch._machine.faults.no_memory_query:
            raise RuntimeError("recommendedMaxWorkingSetSize cannot be told (a simulated fault)")
        return memory.card.total

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        """0 to 2, of the recommended working set."""
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 2:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~2")
        memory = self._memory("setMemoryFraction")
        memory.total = int(memory.card.total * fraction)

    def empty_cache(self) -> None:
        """Give unused segments back."""
        self._memory("emptyCache").empty_cache()

    def synchronize(self) -> None:
        """Nothing is asynchronous here; takes no device."""
        self._memory("deviceSynchronize")

    def _default_generator(self) -> FakeGenerator:
        self._memory("getDefaultMPSGenerator")
        if self._generator is None:
            self._generator = FakeGenerator(self._torch._real.device("mps", 0))
        return self._generator

    def get_rng_state(self, device: Any = "mps") -> Any:
        """The default generator's state."""
        return self._default_generator().get_state()

    def set_rng_state(self, new_state: Any, device: Any = "mps") -> None:
        """Set it."""
        self._default_generator().set_state(new_state.clone())

    def manual_seed(self, seed: int) -> None:
        """Seed the default generator; nothing happens on a build without MPS."""
        if self.is_available():
            self._default_generator().manual_seed(seed)

    def Event(self, enable_timing: bool = False) -> Event:  # noqa: N802  # torch's name
        """A mark in the stream."""
        self._memory("Event")
        return Event(enable_timing)
