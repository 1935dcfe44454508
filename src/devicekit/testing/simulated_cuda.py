"""A GPU that is not there: tensors look as if they were on CUDA, and are as hard to mix with the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.host import current

if TYPE_CHECKING:
    from devicekit.redirect.redirect import Redirect

__all__ = ["simulated_cuda"]


def simulated_cuda(
    count: int = 1, memory: int | str = "24GiB", capability: tuple[int, int] = (8, 6), *, report: bool = False
) -> Redirect:
    """A context in which this process seems to have NVIDIA GPUs, on the processor.

        with simulated_cuda(count=2, memory="24GiB"):
            model.cuda()(torch.ones(1))     # RuntimeError: Expected all tensors to be on the same device ...

    ``.cuda()`` and ``.cpu()`` copy; ``x.numpy()`` and mixing devices raise what CUDA raises; memory is counted, and
    runs out at the limit. Numbers are the processor's, so they are not a card's to the last bit, and both share
    torch's default generator. torch's own code is told the truth. Threads that run already are not reached.

    Args:
        count: how many.
        memory: of each: bytes, or as ``"24GiB"``. The host must have as much as is really used.
        capability: the compute capability that they report.
        report: count what was redirected, and where, in ``record`` of what the context gives.

    Returns:
        A context manager; it is undone at its end, also after an error.

    Raises:
        DeviceKitError: a wrong argument, or there is no torch here.
    """
    from devicekit.redirect.recording import Record
    from devicekit.redirect.redirect import Redirect
    from devicekit.redirect.simulated import SimulatedTarget, in_bytes

    target = SimulatedTarget(current().torch(), count, in_bytes(memory), capability)
    return Redirect(target, strict=True, record=Record() if report else None)
