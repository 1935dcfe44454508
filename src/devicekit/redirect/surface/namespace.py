"""``torch.cuda``: which devices there are, which one is current, and what is known about them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from devicekit.errors import DeviceUnavailableError
from devicekit.redirect.marks import mark_of
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import EVERYONE, Answers, answer

__all__ = ["install"]

SUCCESS = 0
"""cudaSuccess, of driver_types.h."""


def install(redirect: Redirect) -> None:
    """Replace the questions, and where the contexts go."""
    cuda, answers = redirect.torch.cuda, Devices(redirect)
    answer(redirect, cuda, answers._all())
    answer(redirect, cuda, {"_lazy_init": answers.init, "_lazy_call": _at_once})  # libraries call these as well
    _contexts(redirect, answers)
    answer(redirect, redirect.module("torch.cuda.nvtx"), MARKS, EVERYONE)
    answer(redirect, redirect.module("torch.cuda.profiler"), {"start": _nothing, "stop": _nothing}, EVERYONE)
    answer(redirect, redirect.module("torch.cuda.nccl"), {"version": _no_version, "is_available": _no})
    answer(redirect, redirect.module("torch.cuda.tunable"), TUNING)


class Devices(Answers):
    """The target's own truth. A figure that nobody knows is 0, because programs calculate with it."""

    def __init__(self, redirect: Redirect) -> None:
        super().__init__(redirect)
        self._debug_mode = 0

    # -- is there one ------------------------------------------------------------------------------
    def is_available(self) -> bool:
        """True: "cuda" means the target, and the target is here."""
        return True

    def is_initialized(self) -> bool:
        """True, so that nobody queues what is to be done later."""
        return True

    def init(self) -> None:
        """Nothing: the target starts when it is used."""

    def device_count(self) -> int:
        """At least one."""
        return self._target.count

    # -- which one ---------------------------------------------------------------------------------
    def current_device(self) -> int:
        """In this thread."""
        return self._target.current

    def set_device(self, device: Any) -> None:
        """Nothing for a negative number."""
        if self._named(device) >= 0:
            self._target.make_current(self._at(device))

    def can_device_access_peer(self, device: Any, peer_device: Any) -> bool:
        """False: copies go through the host."""
        self._known(device)
        self._known(peer_device, "peer device")
        return False

    # -- what it is --------------------------------------------------------------------------------
    def get_device_name(self, device: Any = None) -> str:
        """``CPU``, or what the runtime calls it."""
        return self._target.card(self._known(device)).name

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        """(0, 0) for what is no NVIDIA GPU."""
        return self._target.card(self._known(device)).capability

    def get_device_properties(self, device: Any = None) -> Properties:
        """All that programs read off torch's own; see :class:`Properties`."""
        index = self._known(device)
        return Properties(index, self._target.card(index))

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        """Whether it computes bfloat16 natively, or at all."""
        how = self._target.bfloat16(self._target.current)
        return how == "native" or (how == "emulated" and including_emulation)

    def is_tf32_supported(self) -> bool:
        """As torch has it: with the capability 8.0, and so not on what is no NVIDIA GPU."""
        return self._target.card(self._target.current).capability >= (8, 0)

    def utilization(self, device: Any = None) -> int:
        """0, as all figures of the driver: of how busy it is, its clock, its temperature and its power."""
        self._at(device)
        return 0

    memory_usage = temperature = power_draw = clock_rate = utilization

    # -- work --------------------------------------------------------------------------------------
    def synchronize(self, device: Any = None) -> None:
        """Wait for the target."""
        self._target.synchronize(self._at(device))

    def ipc_collect(self) -> None:
        """Nothing: no memory of the target is shared between processes."""

    def is_current_stream_capturing(self) -> bool:
        """False: there are no CUDA graphs."""
        return False

    def get_sync_debug_mode(self) -> int:
        """What was set."""
        return self._debug_mode

    def set_sync_debug_mode(self, debug_mode: int | str) -> None:
        """Only remembered."""
        modes: dict[Any, int] = {"default": 0, "warn": 1, "error": 2, 0: 0, 1: 1, 2: 2}
        if debug_mode not in modes:
            raise RuntimeError("invalid value of debug_mode, expected one of `default`, `warn`, `error`")
        self._debug_mode = modes[debug_mode]

    # -- the runtime's own library -----------------------------------------------------------------
    def cudart(self) -> Any:
        """The few functions of CUDA's runtime that programs call, and that can be answered."""
        return Runtime(self)

    def check_error(self, res: int) -> None:
        """Raise torch.cuda.CudaError for what is not cudaSuccess."""
        if res != SUCCESS:
            kind = self._torch.cuda.CudaError
            error = kind.__new__(kind)  # its own __init__ asks the library for words
            error.args = (f"CUDA error ({res})",)
            raise error

    def _known(self, device: Any, what: str = "device") -> int:
        """The number of a device that exists, with torch's own error for one that does not."""
        index = self._named(device)
        if index < 0 or not self._target.exists(index):
            raise AssertionError(f"Invalid {what} id")
        return index


class Properties:
    """The attributes of torch's ``_CudaDeviceProperties``. Memory is in bytes; 0 is what nobody knows."""

    def __init__(self, index: int, card: Any) -> None:
        self.name: str = card.name
        self.major, self.minor = card.capability
        self.total_memory: int = card.total_memory
        self.multi_processor_count: int = card.multi_processor_count
        self.uuid = uuid.UUID(int=index)
        self.is_integrated = self.is_multi_gpu_board = 0
        self.gcnArchName = ""
        self.warp_size = 32  # of every NVIDIA GPU so far; programs divide by it
        self.L2_cache_size = 0
        self.max_threads_per_multi_processor = self.max_threads_per_block = self.regs_per_multiprocessor = 0
        self.shared_memory_per_block = self.shared_memory_per_block_optin = self.shared_memory_per_multiprocessor = 0
        self.clock_rate = self.memory_clock_rate = self.memory_bus_width = 0
        self.pci_domain_id = self.pci_bus_id = self.pci_device_id = 0

    def __repr__(self) -> str:
        return (
            f"_CudaDeviceProperties(name={self.name!r}, major={self.major}, minor={self.minor}, "
            f"total_memory={self.total_memory >> 20}MB, multi_processor_count={self.multi_processor_count})"
        )


class NoFunctionError(DeviceUnavailableError, AttributeError):
    """A function of CUDA's library that nobody can answer."""


class Runtime:
    """What ``torch.cuda.cudart()`` gives: marks for a profiler do nothing, and memory is told."""

    cudaError = SimpleNamespace(success=SUCCESS)  # noqa: N815  # the names are CUDA's

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def cudaProfilerStart(self) -> int:  # noqa: N802
        """Nothing."""
        return SUCCESS

    cudaProfilerStop = cudaProfilerStart  # noqa: N815

    def cudaGetErrorString(self, code: int) -> str:  # noqa: N802
        """There are no words for it."""
        return f"CUDA error {int(code)}"

    def cudaMemGetInfo(self, device: int) -> tuple[int, int]:  # noqa: N802
        """Free and total memory, in bytes."""
        stats = self._devices._target.memory_stats(self._devices._at(device))
        return stats.available or 0, stats.total or 0

    def __getattr__(self, name: str) -> Any:
        why = f"torch.cuda.cudart() is CUDA's own library, and there is none for {self._devices._target.device_type}"
        raise NoFunctionError(f"{name} cannot be called here.", why=why, try_="a function of torch that does the same")


def _contexts(redirect: Redirect, answers: Devices) -> None:
    """``torch.cuda.device`` and ``device_of`` stay the classes that they are, and change the target's device."""
    torch, layer, target = redirect.torch, redirect.layer, redirect.target
    cuda = torch.cuda

    def of_device(real: Any) -> Any:
        def __init__(self: Any, device: Any) -> Any:  # noqa: N807
            if not layer.on:
                return real(self, device)
            self.idx, self.prev_idx = -1 if device is None else answers._named(device), -1
            return None

        return __init__

    def of_object(real: Any) -> Any:
        def __init__(self: Any, obj: Any) -> Any:  # noqa: N807
            if not layer.on:
                return real(self, obj)
            place = mark_of(obj)
            if not isinstance(place, int):
                place = obj.device.index if obj.device.type == target.device_type else None
            self.idx, self.prev_idx = -1 if place is None else place, -1
            return None

        return __init__

    layer.wrap(cuda.device, "__init__", of_device)
    layer.wrap(cuda.device_of, "__init__", of_object)
    entering(redirect, cuda.device, answers, "torch.cuda.device")


def entering(redirect: Redirect, kind: Any, answers: Answers, what: str) -> None:
    """Have a context of torch that has ``idx`` and ``prev_idx`` make the target's device the current one."""
    layer, target = redirect.layer, redirect.target

    def enter(real: Any) -> Any:
        def __enter__(self: Any) -> None:  # noqa: N807
            if not layer.on:
                real(self)
            elif self.idx is not None and self.idx >= 0:
                redirect.note(what)
                self.prev_idx = target.current
                target.make_current(answers._at(self.idx))

        return __enter__

    def leave(real: Any) -> Any:
        def __exit__(self: Any, *exc: Any) -> Any:  # noqa: N807
            if not layer.on:
                return real(self, *exc)
            if self.prev_idx >= 0:
                target.make_current(self.prev_idx)
            return False

        return __exit__

    layer.wrap(kind, "__enter__", enter)
    layer.wrap(kind, "__exit__", leave)


def _at_once(callable: Callable[[], Any], **_: Any) -> None:  # noqa: A002  # torch's name
    callable()


def _nothing(*_: Any, **__: Any) -> int:
    return SUCCESS


def _no(*_: Any) -> bool:
    return False


def _no_version() -> tuple[int, int, int]:
    """(0, 0, 0): there is no NCCL, and programs ask for "at least 2.10"."""
    return (0, 0, 0)


MARKS = dict.fromkeys(("range_push", "range_pop", "range_start", "range_end", "mark"), _nothing)
"""For a profiler that is not there."""

SETTINGS = ("enable", "tuning_enable", "record_untuned_enable", "set_max_tuning_duration", "set_max_tuning_iterations")
SWITCHES = ("is_enabled", "tuning_is_enabled", "record_untuned_is_enabled")
TUNING = {**dict.fromkeys(SETTINGS, _nothing), **dict.fromkeys(SWITCHES, _no)}
"""torch.cuda.tunable chooses among CUDA's libraries: there is nothing to choose from."""
