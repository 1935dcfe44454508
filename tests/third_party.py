"""Backends of third parties, well-behaved and hostile, as their packages would declare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from devicekit.backend import Backend, seeded
from devicekit.host import Host
from devicekit.testing import FakeHost
from devicekit.values import Availability, DeviceInfo, MemoryStats


class Entry:
    """An entry point, as importlib.metadata gives it."""

    def __init__(self, name: str, value: str, dist: str = "acme-devices") -> None:
        self.name = name
        self.value = value
        self.dist = type("Distribution", (), {"name": dist})()


class HostWithPlugins(FakeHost):
    """A plain CPU machine with plugins."""

    def __init__(self, *entries: Entry) -> None:
        super().__init__("cpu")
        self.entries = entries

    def entry_points(self, group: str) -> Sequence[Any]:
        return self.entries if group == "devicekit.backends" else ()


class Acme(Backend):
    """A device that is well-behaved; torch knows it under another word (as with DirectML)."""

    name = "acme"
    device_type = "meta"

    def probe(self) -> Availability:
        return Availability.yes([DeviceInfo(0, "Acme One", free_memory=1 << 30), DeviceInfo(1, "Acme One")])

    def preferred_dtype(self, index: int = 0) -> Any:
        return self.torch.bfloat16

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        return seeded(self.torch.Generator("cpu"), seed)

    def memory_stats(self, index: int = 0) -> MemoryStats:
        return MemoryStats(total=1 << 30, source="Acme's manual")

    def empty_cache(self, index: int = 0) -> None:
        pass


class RaisesWhenMade(Acme):
    def __init__(self, host: Host) -> None:
        raise RuntimeError("no licence key")


class RaisesInProbe(Acme):
    def probe(self) -> Availability:
        raise OSError("libacme.so.3: cannot open shared object file")


class ExitsInProbe(Acme):
    def probe(self) -> Availability:
        raise SystemExit(3)


class HangsInProbe(Acme):
    def probe(self) -> Availability:
        assert isinstance(self.host, HostWithPlugins)
        self.host.ended.wait(60)
        raise AssertionError("nobody waits this long")


class AnswersNothing(Acme):
    def probe(self) -> Any:
        return None


class AnswersWords(Acme):
    def probe(self) -> Any:
        return "sure"


class AnswersOddDevices(Acme):
    def probe(self) -> Availability:
        return Availability(True, "fine", devices=("card",))  # type: ignore[arg-type]


class AnswersOneIndexTwice(Acme):
    def probe(self) -> Availability:
        return Availability.yes([DeviceInfo(0), DeviceInfo(0)])


class AnswersYesWithoutDevices(Acme):
    def probe(self) -> Availability:
        return Availability(True, "trust me")


class CannotNameItsDevice(Acme):
    def device(self, index: int | None = None) -> Any:
        raise ValueError("which one?")


class RaisesInMemory(Acme):
    def memory_stats(self, index: int = 0) -> MemoryStats:
        raise RuntimeError("counter lost")


class AnswersOddMemory(Acme):
    def memory_stats(self, index: int = 0) -> Any:
        return {"total": "plenty"}


class NotABackend:
    """Somebody declared the wrong class."""

    def __init__(self, host: Host) -> None:
        pass
