"""What a real backend does differently on a simulated machine: its tensors stay on the CPU, and a card counts them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from devicekit.backend import Backend
from devicekit.staging import Staging
from devicekit.values import Availability

if TYPE_CHECKING:
    from devicekit.testing.fake_host import FakeHost

__all__ = ["adopted"]


class SimulatedMoves(Backend):
    """Stands before a backend's own class, so that all else is the backend's own."""

    host: FakeHost

    def probe(self) -> Availability:
        """The backend's own answer, after the faults of its driver."""
        simulated = self.host.simulated
        if self.name == simulated.accelerator:
            if simulated.faults.abort:
                os.abort()
            self.host.ended.wait(simulated.faults.hang)
        return super().probe()  # type: ignore[safe-super]  # the backend's class stands behind this one

    def move(self, tensor: Any, device: Any, dtype: Any) -> Any:
        """A counted copy on the CPU, in the dtype that the device would have it in."""
        memory = self.torch._start(device)
        if memory is None:
            return tensor.to(dtype=dtype, copy=True)
        moved = memory.copy(tensor, dtype)
        if self.host.simulated.faults.wrong_numbers and moved is not tensor and moved.is_floating_point():
            moved.detach().add_(1)
        return moved

    def holds(self, tensor: Any, device: Any) -> bool:
        """Its card counts it; all tensors say that they are on the CPU."""
        memory = self.torch._start(device)
        return memory is not None and not tensor.is_meta and memory.holds(tensor.untyped_storage())

    def move_object(self, x: Any, device: Any, dtype: Any) -> Any:
        """The object's own ``to``; what it asks of tensors is answered by :meth:`move`."""
        from devicekit.testing.interception import TensorMoves

        place = self.torch._real.device("privateuseone", device.index) if device.type == "npu" else device
        with TensorMoves(place, lambda tensor, into: self.move(tensor, device, into)):
            return super().move_object(x, place, dtype)

    def allocate(self, count: int, dtype: Any, device: Any) -> Any:
        """Counted memory on the CPU."""
        memory = self.torch._start(device)
        if memory is not None:
            memory.require(count * dtype.itemsize)
        made = self.torch.empty(count, dtype=dtype, device="cpu")
        if memory is not None:
            memory.take(made.untyped_storage())
        return made

    def staging(self, device: Any, nbytes: int) -> Staging:
        """The backend's own; its pinned memory is ordinary memory, whatever this process's torch has."""
        made = super().staging(device, nbytes)
        made.torch = _Unpinned(made.torch)
        return made

    def product(self, form: str, a: Any, b: Any, index: int = 0) -> Callable[[], Any]:
        """The card's, where the build has kernels for it and the card has the format."""
        from devicekit.testing import fake_cuda, fake_products

        device = self.device(index)
        memory = self.torch._start(device)
        self.torch._launch(device)
        if memory is None:
            if form == "float32":
                return super().product(form, a, b, index)
            raise RuntimeError(f"{device} computes float32 only (a simulated refusal)")
        card = memory.card
        override = self.torch._env.get("HSA_OVERRIDE_GFX_VERSION") if card.vendor == "amd" else None
        arch = fake_cuda.gfx_seen(card, override)
        return fake_products.product(card, form, arch, self.torch._build.hip, a, b)

    def verify(self, index: int = 0) -> None:
        """The backend's own, where the build has kernels for the card."""
        self.torch._launch(self.device(index))
        super().verify(index)


class _Unpinned:
    """torch, but for ``pin_memory``, which would start the accelerator of this process or fail without one."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def empty(self, *size: Any, pin_memory: bool = False, **options: Any) -> Any:
        """Ordinary memory."""
        return self._torch.empty(*size, **options)


@functools.cache
def _with_moves(kind: type[Backend]) -> type[Backend]:
    return type(kind.__name__, (SimulatedMoves, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def adopted(backend: Backend) -> Backend:
    """The same backend with simulated moves; one that is not devicekit's own has a device of its own, and keeps it."""
    ours = type(backend).__module__.startswith("devicekit.backends.")
    if ours and backend.accelerator:
        backend.__class__ = _with_moves(type(backend))
    return backend
