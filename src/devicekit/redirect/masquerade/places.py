"""Where a tensor is, as the program sees it: marks on storages, with the memory that they take on the device."""

from __future__ import annotations

from typing import Any

import torch

from devicekit.redirect.marks import NAME, WILD
from devicekit.redirect.simulated import CardMemory

__all__ = ["Places", "size", "storages", "unwrapped"]

_MEMORY = "_devicekit_memory"


class Places:
    """Reads and writes the marks. No mark: the host.

    Args:
        memory: of each device; empty where nothing is counted.
    """

    def __init__(self, memory: list[CardMemory]) -> None:
        self.memory = memory

    def of(self, tensor: torch.Tensor) -> Any:
        """The number of the device, WILD, or None for the host."""
        for storage in storages(tensor):
            return storage.__dict__.get(NAME)
        return None

    def index(self, tensor: torch.Tensor) -> int | None:
        """The number of the device; None where it is not known to be on one."""
        place = self.of(tensor)
        return None if place is WILD else place

    def settle(self, tensor: Any, index: Any) -> Any:
        """From now on the tensor's memory is the device's.

        Raises:
            torch.OutOfMemoryError: the device has not so much left.
        """
        for storage in storages(tensor):
            known = storage.__dict__
            if known.get(NAME) != index:
                if self.memory and index is not WILD:
                    known[_MEMORY] = self.memory[index].take(storage.nbytes())
                known[NAME] = index
        return tensor

    def settle_all(self, out: Any, index: Any, host: frozenset[int] = frozenset()) -> None:
        """What an operation returned, but for what is only another view of a tensor of the host.

        Args:
            out: a tensor, or tuples and lists that have some.
            index: the device's number, or WILD.
            host: the addresses of such storages.
        """
        if isinstance(out, torch.Tensor):
            if not host or all(storage._cdata not in host for storage in storages(out)):
                self.settle(out, index)
        elif isinstance(out, (tuple, list)):
            for each in out:
                self.settle_all(each, index, host)

    def require(self, index: int, nbytes: int) -> None:
        """Raise torch.OutOfMemoryError before the host is asked for memory that the device would not have."""
        if self.memory:
            self.memory[index].require(nbytes)


def storages(tensor: Any) -> tuple[Any, ...]:
    """Where its numbers lie: one storage; several for sparse tensors; those of what a transform has wrapped."""
    try:
        return (tensor.untyped_storage(),)
    except (NotImplementedError, RuntimeError):
        inner = unwrapped(tensor)
    return tuple(storage for part in inner for storage in storages(part))


def size(tensor: Any) -> int:
    """Its numbers, in bytes; torch itself does not tell it of sparse tensors."""
    return sum(int(part.nbytes) for part in unwrapped(tensor) or (tensor,))


def unwrapped(tensor: Any) -> tuple[Any, ...]:
    """The tensors that one without a storage is made of."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return (torch._C._functorch.get_unwrapped(tensor),)
    if tensor.layout is torch.sparse_coo:
        return tensor._values(), tensor._indices()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.values(), tensor.crow_indices(), tensor.col_indices()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.values(), tensor.ccol_indices(), tensor.row_indices()
    return ()
