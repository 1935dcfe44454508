"""What cuda, rocm, xpu and npu share: a torch module with torch.cuda's names.

Which names each module really has: the parity table of ``dir()`` over torch.cuda, torch.xpu and torch.npu of 2.13;
``torch.accelerator`` is not used here, because it answers for *the* accelerator of the process and needs torch 2.9.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

from devicekit.backend import Backend, seeded
from devicekit.errors import first_line
from devicekit.staging import Staging, StreamStaging
from devicekit.values import MemoryStats


class CudaLike(Backend):
    """A device whose torch module answers like torch.cuda."""

    driver_source: ClassVar[str] = "mem_get_info"
    """Where total and available memory come from, in the words of ``MemoryStats.source``."""

    @property
    def runtime(self) -> Any:
        """``torch.cuda``, ``torch.xpu`` or ``torch.npu``."""
        return getattr(self.torch, self.device_type)

    def current_index(self) -> int | None:
        """The device set by ``set_device``; device 0 counts as not chosen, for it is where everyone starts."""
        if not self.runtime.is_initialized():
            return None
        return int(self.runtime.current_device()) or None

    def make_current(self, index: int = 0) -> None:
        """Starts the runtime, with a context on this device."""
        self.runtime.set_device(index)

    @contextlib.contextmanager
    def being_current(self, index: int = 0) -> Iterator[None]:
        """The runtime's own: torch.cuda's and torch.xpu's go back without starting a device that had no context."""
        with self.runtime.device(index):
            yield

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A generator on this device."""
        return seeded(self.torch.Generator(device=self.device(index)), seed)

    def memory_stats(self, index: int = 0) -> MemoryStats:
        """Driver figures for the whole card, allocator figures for this process."""
        runtime, source = self.runtime, self.driver_source
        try:
            free, total = runtime.mem_get_info(index)
        except Exception as exc:  # XPU on integrated GPUs and WSL2, NVML on unified memory
            free, total = None, self._total_from_properties(index)
            source = f"device properties; free memory unknown: {first_line(exc) or type(exc).__name__}"
        return MemoryStats(
            total=total,
            available=free,
            allocated=int(runtime.memory_allocated(index)),
            reserved=int(runtime.memory_reserved(index)),
            peak=int(runtime.max_memory_allocated(index)),
            unified=self._integrated(index),
            source=source,
        )

    def _total_from_properties(self, index: int) -> int | None:
        total = getattr(self.runtime.get_device_properties(index), "total_memory", None)
        return int(total) if total else None

    def _integrated(self, index: int) -> bool | None:
        flag = getattr(self.runtime.get_device_properties(index), "is_integrated", None)
        return None if flag is None else bool(flag)

    def empty_cache(self, index: int = 0) -> None:
        """Free the caching allocator's unused blocks on this device.

        Only where the runtime has started: it would make a context (about 0.5 GB) on device 0 otherwise
        (pytorch/pytorch#25752).
        """
        if self.runtime.is_initialized():
            with self.runtime.device(index):
                self.runtime.empty_cache()

    def synchronize(self, index: int = 0) -> None:
        """Wait for this device; nothing to wait for before the runtime has started."""
        if self.runtime.is_initialized():
            self.runtime.synchronize(index)

    def reset_peak_memory(self, index: int = 0) -> None:
        """Reset the allocator's peak; before the start there is none (torch.cuda raises there)."""
        if self.runtime.is_initialized():
            self.runtime.reset_peak_memory_stats(index)

    def rng_state(self, index: int = 0) -> Any:
        """The default generator's state of this device, a byte tensor on the CPU."""
        return self.runtime.get_rng_state(self.device(index))

    def set_rng_state(self, state: Any, index: int = 0) -> None:
        """Bring that state back."""
        self.runtime.set_rng_state(state, self.device(index))

    def autocast_dtypes(self, index: int = 0) -> tuple[Any, ...]:
        """float16 on all of them, and bfloat16 where it is preferred, and so native."""
        torch = self.torch
        native = self.preferred_dtype(index) is torch.bfloat16
        return (torch.bfloat16, torch.float16) if native else (torch.float16,)

    def triton_problem(self) -> str:
        """Inductor writes Triton for CUDA, ROCm and XPU, and torch depends on it only where wheels of it exist."""
        return "" if self.host.installed("triton") else "triton is not installed: pip install triton"

    def staging(self, device: Any, nbytes: int) -> Staging:
        """Pinned buffers and a stream of their own."""
        return StreamStaging(self.torch, nbytes, self.runtime, device, self.allocate)

    def forked(self) -> bool:
        """This process was forked from one that had started the runtime, so it can never use the device."""
        asked = getattr(self.runtime, "_is_in_bad_fork", None)
        return bool(asked()) if asked is not None else False


FORKED = "the runtime was started before this process was forked, so it cannot be used here"
FORK_FIX = 'multiprocessing.set_start_method("spawn"), or probe with devicekit, which starts nothing'
