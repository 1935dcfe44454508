"""Where a tensor lies as the program sees it, where the real device does not tell: kept on its storage.

On a processor that stands for a GPU both sides of a copy lie in the same memory. All views of a tensor share its
storage, and torch keeps one Python object for a storage as long as it lives; so a mark there is right for views,
``.data``, parameters and what autograd saved. It is no part of the tensor: nothing that pickles or copies a tensor
sees it, and it dies with the memory.
"""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["HOST", "NAME", "WILD", "mark", "mark_of"]

HOST = "host"
"""The mark of what is known to lie on the host. No mark: it is not known."""

WILD = "wild"
"""Masquerade's mark of what torch has made for itself on the real device: it goes with any."""

NAME = "_devicekit_place"
"""The attribute of the storage. The method that gives the storage is taken from the class: what stands for a tensor
while torch.fx traces a function would write its call down.
"""

_NO_STORAGE = (NotImplementedError, RuntimeError, AttributeError, ValueError)


def mark_of(tensor: Any) -> Any:
    """The mark, or None. Without a storage there is none: sparse tensors, what transforms wrap, lazy parameters."""
    try:
        return type(tensor).untyped_storage(tensor).__dict__.get(NAME)
    except _NO_STORAGE:
        return None


def mark(tensor: Any, place: Any) -> Any:
    """Mark the storage, and return the tensor."""
    with contextlib.suppress(*_NO_STORAGE):  # as above
        setattr(type(tensor).untyped_storage(tensor), NAME, place)
    return tensor
