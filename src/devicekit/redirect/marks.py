"""Where a tensor lies as the program sees it, where the real device does not tell: kept on its storage.

On a processor that stands for a GPU both sides of a copy lie in the same memory. All views of a tensor share its
storage, and torch keeps one Python object for a storage as long as it lives; so a mark there is right for views,
``.data``, parameters and what autograd saved. It is no part of the tensor: nothing that pickles or copies a tensor
sees it, and it dies with the memory.
"""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["HOST", "mark", "mark_of"]

HOST = "host"
"""The mark of what is known to lie on the host. No mark: it is not known."""

_NAME = "_devicekit_place"


def mark_of(tensor: Any) -> Any:
    """The mark, or None. What has no storage of its own has none: sparse tensors, and those that transforms wrap."""
    try:
        return tensor.untyped_storage().__dict__.get(_NAME)
    except (NotImplementedError, RuntimeError, AttributeError):
        return None


def mark(tensor: Any, place: Any) -> Any:
    """Mark the storage, and return the tensor."""
    with contextlib.suppress(NotImplementedError, RuntimeError, AttributeError):  # as above
        setattr(tensor.untyped_storage(), _NAME, place)
    return tensor
