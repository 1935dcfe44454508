"""The few operators that have no npu tensor among their arguments: making one, and copying to one.

All other factories (zeros, randn, arange, ...) are made of these by torch itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from devicekit.testing.simulated_npu import rules
from devicekit.testing.simulated_npu.machine import machine
from devicekit.testing.simulated_npu.tensor import host, placed

__all__ = ["register_factories"]

# A torch.library.Library takes its registrations back when it is collected.
_libraries: list[torch.library.Library] = []


def register_factories() -> None:
    """Register the kernels at PrivateUse1.

    One by one: a Python fallback for the whole key dies with "func != nullptr INTERNAL ASSERT"
    as soon as an argument is a tensor subclass.
    """
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch's
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("tril_indices", _host_made(torch.tril_indices), "PrivateUse1")
    library.impl("triu_indices", _host_made(torch.triu_indices), "PrivateUse1")
    _libraries.append(library)


def _prepare(elements: int, dtype: torch.dtype | None, layout: torch.layout | None, device: Any) -> None:
    """Raise whatever the device would raise, before the host allocates anything."""
    machine().start()
    if device is not None:
        rules.refuse_index(device)
    rules.refuse_layout(layout)
    dtype = dtype or torch.get_default_dtype()
    rules.refuse_dtype(dtype)
    machine().memory.require(elements * dtype.itemsize)


def _empty(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    memory_format: torch.memory_format | None = None,
    **_: Any,
) -> torch.Tensor:
    _prepare(math.prod(size), dtype, layout, device)
    order = memory_format or torch.contiguous_format
    return placed(torch.empty(size, dtype=dtype, device="cpu", memory_format=order))


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    **_: Any,
) -> torch.Tensor:
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    _prepare(reach if math.prod(size) else 0, dtype, layout, device)
    return placed(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: torch.Tensor, target: torch.Tensor, *_: Any) -> torch.Tensor:
    # torch.tensor(data, device="npu") comes here with __torch_dispatch__ switched off.
    host(target).copy_(host(source))
    return target


def _host_made(make: Any) -> Any:
    """A kernel that lets the host make the numbers, where torch has no kernel to build on."""

    def kernel(*args: Any, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        machine().start()
        return placed(make(*args, dtype=dtype or torch.int64, device="cpu"))

    return kernel
