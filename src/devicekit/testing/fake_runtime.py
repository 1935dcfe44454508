"""torch.cuda, torch.xpu and torch.npu of a machine that is data.

What is imitated is when each question starts the runtime, poisons a later fork, answers 0 or raises; the sources are
the Python files of torch 2.13.0 (torch/cuda/__init__.py, cuda/memory.py, xpu/__init__.py) and of torch_npu 2.13.0.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from devicekit.testing import fake_streams
from devicekit.testing.fake_devices import FakeGenerator
from devicekit.testing.fake_memory import CardMemory
from devicekit.testing.machines import Card

if TYPE_CHECKING:
    from devicekit.testing.fake_torch import FakeTorch

__all__ = ["FakeRuntime"]


class _OfThread(threading.local):
    """Every thread has a current device of its own, and current streams; it starts with the first device."""

    def __init__(self) -> None:
        self.current = 0
        self.streams: dict[int, fake_streams.Stream] = {}


class FakeRuntime:
    """What the three have in common; whatever is not here is the real module's, and what is not torch's has a ``_``."""

    _name = "cuda"
    _label = "CUDA"

    def __init__(self, torch: FakeTorch, real: Any) -> None:
        self._torch = torch
        self._real = real
        self._machine = torch._machine
        self._asked_in: int | None = None
        self._initialized = False
        self._of_thread = _OfThread()
        self._started_with: tuple[Card, ...] = ()
        self._waiting: list[Callable[[], object]] = []
        self.default_generators: tuple[FakeGenerator, ...] = ()
        self._contexts: set[int] = set()
        """Devices that were given a context; on a real one that takes about half a GB each."""

    def __getattr__(self, name: str) -> Any:
        since = self._torch._added_later(self._name, name)
        if self._real is None or since:
            raise AttributeError(f"module 'torch.{self._name}' has no attribute {name!r}")
        return getattr(self._real, name)

    # -- what is there ----------------------------------------------------------------------------
    def _is_compiled(self) -> bool:
        raise NotImplementedError

    def _visible(self) -> tuple[Card, ...]:
        """The cards that the masks leave, in this runtime's order."""
        raise NotImplementedError

    def _count_by_driver(self) -> int:
        """The runtime's own count: it starts the driver, so a child forked later cannot use the device."""
        self._mark()
        return len(self._cards())

    def _mark(self) -> None:
        if self._asked_in is None:
            self._asked_in = os.getpid()

    def _cards(self) -> tuple[Card, ...]:
        return self._started_with if self._initialized else self._visible()

    def is_available(self) -> bool:
        """Never raises; marks the process."""
        return self._is_compiled() and self._count_by_driver() > 0

    def device_count(self) -> int:
        """Marks the process, where nothing weaker can be asked."""
        return self._count_by_driver() if self._is_compiled() else 0

    def _is_in_bad_fork(self) -> bool:
        return self._machine.forked or self._asked_in not in (None, os.getpid())

    # -- starting --------------------------------------------------------------------------------
    def is_initialized(self) -> bool:
        """The runtime was started, in this process."""
        return self._initialized and not self._is_in_bad_fork()

    def init(self) -> None:
        """Start the runtime."""
        self._lazy_init()

    def _lazy_init(self) -> None:
        if self.is_initialized():
            return
        if self._is_in_bad_fork():
            raise RuntimeError(
                f"Cannot re-initialize {self._label} in forked subprocess. To use {self._label} with multiprocessing, "
                "you must use the 'spawn' start method"
            )
        if not self._is_compiled():
            raise AssertionError(f"Torch not compiled with {self._label} enabled")
        self._refuse_missing_driver()
        if self._count_by_driver() == 0:
            raise RuntimeError(f"No {self._label} GPUs are available")
        self._started_with = self._visible()
        self._initialized = True
        places = (self._torch.device(self._name, i) for i in range(len(self._started_with)))
        self.default_generators = tuple(FakeGenerator(place) for place in places)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def _refuse_missing_driver(self) -> None:
        """Raise where not even a count can be had."""

    def _lazy_call(self, call: Callable[[], object]) -> None:
        if self.is_initialized():
            call()
        else:
            self._waiting.append(call)

    # -- which device ----------------------------------------------------------------------------
    @property
    def _current(self) -> int:
        return self._of_thread.current

    def _index(self, device: Any) -> int:
        if device is None:
            return self._current
        if isinstance(device, int):
            return device
        digits = str(device).partition(":")[2]
        return int(digits) if digits else self._current

    def current_device(self) -> int:
        """The device that is current in this thread; starts the runtime."""
        self._lazy_init()
        return self._current

    def set_device(self, device: Any) -> None:
        """Make a device current, with a context; starts the runtime."""
        index = self._index(device)
        if index >= 0:
            self._lazy_init()
            self._context(index)
            self._of_thread.current = index

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Make a device current for a while; starts the runtime."""
        before = self._current
        self.set_device(device)
        try:
            yield
        finally:
            self._of_thread.current = before

    def _context(self, index: int) -> None:
        if not 0 <= index < len(self._cards()):
            raise self._failure("invalid device ordinal")
        self._contexts.add(index)

    def _failure(self, words: str) -> RuntimeError:
        kind = getattr(self._torch._real, "AcceleratorError", RuntimeError)  # torch 2.8 and later
        made: RuntimeError = kind(f"{self._label} error: {words}")
        return made

    def get_device_properties(self, device: Any = None) -> Any:
        """What the driver says about the chip; starts the runtime."""
        self._lazy_init()
        index = self._index(device)
        if not 0 <= index < len(self._cards()):
            raise AssertionError("Invalid device id")
        return self._properties(self._cards()[index])

    def _properties(self, card: Card) -> Any:
        raise NotImplementedError

    def get_device_name(self, device: Any = None) -> str:
        """The chip's name; starts the runtime."""
        return str(self.get_device_properties(device).name)

    def synchronize(self, device: Any = None) -> None:
        """Nothing is asynchronous here; starts the runtime all the same."""
        self._lazy_init()
        self._context(self._index(device))

    # -- memory ----------------------------------------------------------------------------------
    def _memory(self, device: Any = None) -> CardMemory:
        index = self._index(device)
        memory = self._torch._memory_of(self._cards()[index])
        memory.index = index
        return memory

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """Free and total bytes of the card; starts the runtime."""
        self._lazy_init()
        self._context(self._index(device))
        if self._machine.faults.no_memory_query:
            raise self._failure("operation not supported")
        memory = self._memory(device)
        return memory.free, memory.total

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        """The allocator's figures; empty before the start."""
        if not self.is_initialized():
            return {}
        told = self._memory(device).as_dict()
        names = ("allocation", "allocated_bytes", "active_bytes", "reserved_bytes")
        return {f"{name}.all.{key}": value for name in names for key, value in told[name]["all"].items()}

    def memory_allocated(self, device: Any = None) -> int:
        """Bytes of live tensors; 0 before the start."""
        return self.memory_stats(device).get("allocated_bytes.all.current", 0)

    def max_memory_allocated(self, device: Any = None) -> int:
        """The peak of live tensors; 0 before the start."""
        return self.memory_stats(device).get("allocated_bytes.all.peak", 0)

    def memory_reserved(self, device: Any = None) -> int:
        """Bytes that the allocator holds; 0 before the start."""
        return self.memory_stats(device).get("reserved_bytes.all.current", 0)

    def max_memory_reserved(self, device: Any = None) -> int:
        """The peak of what the allocator holds; 0 before the start."""
        return self.memory_stats(device).get("reserved_bytes.all.peak", 0)

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Start the peaks anew; raises before the start, unlike its neighbours."""
        if not self.is_initialized():
            raise RuntimeError("invalid argument to reset_peak_memory_stats")
        self._memory(device).reset_peak()

    def empty_cache(self) -> None:
        """Free unused segments on every device, with a context on the current one; silent before the start."""
        if self.is_initialized():
            self._context(self._current)
            for index in range(len(self._cards())):
                self._memory(index).empty_cache()

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        """Let this process have a part of the card; starts the runtime."""
        self._lazy_init()
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        self._memory(device).fraction = fraction

    # -- random numbers --------------------------------------------------------------------------
    def get_rng_state(self, device: Any = None) -> Any:
        """The default generator's state; starts the runtime."""
        self._lazy_init()
        return self.default_generators[self._index(device)].get_state()

    def set_rng_state(self, new_state: Any, device: Any = None) -> None:
        """Set it, or let it be set when the runtime starts."""
        kept = new_state.clone()
        self._lazy_call(lambda: self.default_generators[self._index(device)].set_state(kept))

    def manual_seed(self, seed: int) -> None:
        """Seed the current device, or let it be seeded when the runtime starts."""
        self._lazy_call(lambda: self.default_generators[self._current].manual_seed(seed))

    def manual_seed_all(self, seed: int) -> None:
        """Seed every device, or let them be seeded when the runtime starts."""
        self._lazy_call(lambda: [g.manual_seed(seed) for g in self.default_generators])

    # -- streams ---------------------------------------------------------------------------------
    def Event(self, enable_timing: bool = False, blocking: bool = False) -> fake_streams.Event:  # noqa: N802  # torch's
        """A mark in the stream; starts the runtime."""
        self._lazy_init()
        return fake_streams.Event(enable_timing)

    def Stream(self, device: Any = None, priority: int = 0, **_: Any) -> fake_streams.Stream:  # noqa: N802  # torch's name
        """A queue of work, with a context on its device."""
        with self.device(self._index(device)):
            return fake_streams.Stream(self._torch.device(self._name, self._current))

    def current_stream(self, device: Any = None) -> fake_streams.Stream:
        """The one that was set in this thread for the device, or the default one; starts the runtime."""
        default = self._default_stream(device)
        return self._of_thread.streams.get(default.device_index) or default

    def _default_stream(self, device: Any = None) -> fake_streams.Stream:
        """The one with which a thread starts; starts the runtime. Not all of them tell it."""
        self._lazy_init()
        return fake_streams.Stream(self._torch.device(self._name, self._index(device)), default=True)

    def set_stream(self, stream: fake_streams.Stream | None) -> None:
        """Make a stream the current one of its device, and where that is another one, the device too: with a context
        (THCPModule_setStream_wrap in torch/csrc/cuda/Module.cpp).
        """
        if stream is not None:
            if stream.device.index != self._current:
                self.set_device(stream.device)
            self._of_thread.streams[stream.device.index] = stream

    @contextlib.contextmanager
    def stream(self, stream: fake_streams.Stream | None) -> Iterator[None]:
        """Make a stream the current one for a while; it ends with ``set_stream``, which may make a context."""
        before = self.current_stream()
        there = before if stream is None else self.current_stream(stream.device)
        self.set_stream(stream)
        try:
            yield
        finally:
            if stream is not None:
                self.set_stream(there)
                self.set_stream(before)
