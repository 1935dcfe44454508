"""The door: ``devicekit.redirect_cuda``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from devicekit.errors import DeviceKitError
from devicekit.redirect.children import Settings
from devicekit.redirect.recording import Record
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import Decision, resolver, warn

if TYPE_CHECKING:
    import torch

__all__ = ["redirect_cuda"]


def redirect_cuda(
    device: object = "auto",
    *,
    count: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    strict: bool = False,
    report: bool = False,
    children: bool = False,
    shims: Sequence[str] = (),
) -> Redirect:
    """A context in which code written for CUDA runs on another device, unchanged.

        with devicekit.redirect_cuda():
            model.cuda()            # onto the device that devicekit.resolve_device() would choose

    "cuda" becomes the device everywhere, and tensors say where they are. All of it is taken back at the end, also after
    an error. It holds for all threads of this process; it can be entered inside another one. Where the device is CUDA
    itself, nothing is replaced.

    Args:
        device: as for :func:`devicekit.resolve_device`.
        count: how many CUDA devices a processor stands for: by default one for each process that a launcher started.
            A device that has numbers has as many as there are.
        autocast_dtype: what ``torch.autocast("cuda")`` computes in where it would take float16; by default float16.
        strict: raise instead of taking another device than the one asked for.
        report: count what was redirected, and where, in ``record`` of what the context gives.
        children: redirect the processes that are started inside as well, by an environment variable that they read
            when they import torch. Those that are forked always are.
        shims: packages made for CUDA that are imported as stand-ins in plain torch: ``["flash-attn"]``.

    Returns:
        A context manager; inside, ``device`` is where tensors of "cuda" go.

    Raises:
        UnknownDeviceError: the word, or the pin that stands in for it, is no device.
        DeviceUnavailableError: only with ``strict``.
        DeviceKitError: there is no torch here, ``count`` is less than one, or there is no stand-in for a package.
    """
    decision = _decided(device, count, strict)
    dtype = None if autocast_dtype is None else str(autocast_dtype).removeprefix("torch.")
    told = Settings(device=decision.name, count=count, autocast_dtype=dtype, shims=tuple(shims))
    return Redirect(
        DecidedTarget(decision, count),
        record=Record() if report else None,
        autocast_dtype=autocast_dtype,
        shims=shims,
        children=told if children else None,
    )


def _decided(device: object, count: int | None, strict: bool) -> Decision:
    """The device that tensors of "cuda" go to, with a warning where it is not the one that was asked for."""
    if count is not None and count < 1:
        raise DeviceKitError(f"count={count} is no number of devices.", try_="1 or more")
    decision = resolver().decide(device, strict=strict)
    if not decision.backend.needs_torch:
        why = f"the device is {decision.name}, which works without torch"
        raise DeviceKitError("CUDA can be redirected only where torch is installed.", why=why, try_='device="cpu"')
    if decision.warning:
        warn(decision.warning)
    return decision
