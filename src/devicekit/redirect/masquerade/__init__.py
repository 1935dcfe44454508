"""Masquerade: tensors that lie on the processor look to the program as if they were on CUDA, and are as hard to mix.

For finding a forgotten ``.to(device)`` or ``.cpu()`` where there is no GPU. torch's own code is told the truth.
"""

from __future__ import annotations

from devicekit.redirect.masquerade import (
    answers,
    autograd,
    defaults,
    factories,
    mode,
    moving,
    optimizers,
    scripts,
    sequences,
    threads,
)
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Put the mode in force for this thread, and for all that start meanwhile."""
    masquerade = mode.Masquerade(redirect)
    redirect.settler = masquerade.places.settle
    for part in (factories, moving, answers, autograd):
        part.install(masquerade)
    defaults.install(redirect)
    optimizers.install(masquerade)
    scripts.install(masquerade)
    sequences.install(masquerade)
    threads.install(masquerade)
