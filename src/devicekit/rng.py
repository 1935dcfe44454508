"""All sources of random numbers as one state: what a checkpoint must hold for a run to go on as it would have."""

from __future__ import annotations

import random
from typing import Any

from devicekit.backend import Backend
from devicekit.errors import DeviceKitError
from devicekit.values import RngState

__all__ = ["set_state", "state"]


def state(backend: Backend, index: int) -> RngState:
    """The present state of every source that this process has loaded."""
    numpy = backend.host.loaded("numpy")
    torch = backend.torch if backend.needs_torch else None
    return RngState(
        python=random.getstate(),
        numpy=None if numpy is None else numpy.random.get_state(),
        torch=None if torch is None else torch.get_rng_state(),
        device=backend.rng_state(index),
        device_type=backend.device_type,
    )


def set_state(backend: Backend, index: int, saved: RngState) -> None:
    """Bring a state back. What the state does not hold is left as it is.

    Raises:
        DeviceKitError: the device's part is of another device type; nothing is changed then.
    """
    if not isinstance(saved, RngState):
        raise DeviceKitError(f"{saved!r:.80} is no random state.", try_="what rng_state() returned")
    if saved.device is not None and saved.device_type != backend.device_type:
        raise DeviceKitError(
            f"the random state of {saved.device_type!r} cannot be set on {backend.device_type!r}.",
            why="every device type draws with an algorithm of its own",
            try_="dataclasses.replace(state, device=None), to bring back only Python's, NumPy's and the CPU's",
        )
    random.setstate(saved.python)
    numpy = _numpy_for(backend, saved)
    if numpy is not None:
        numpy.random.set_state(saved.numpy)
    if saved.torch is not None and backend.needs_torch:
        backend.torch.set_rng_state(saved.torch)
    if saved.device is not None:
        backend.set_rng_state(saved.device, index)


def _numpy_for(backend: Backend, saved: RngState) -> Any | None:
    return None if saved.numpy is None else backend.host.module("numpy")
