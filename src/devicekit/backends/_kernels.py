"""Whether this build of torch has a kernel of its own for an operation: its dispatcher knows, whatever the version."""

from __future__ import annotations

from typing import Any


def registered(torch: Any, operation: str, key: str) -> bool:
    """There is a kernel for ``aten::operation`` under a dispatch key, such as ``CPU`` or ``XPU``."""
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operation}", key))
    except RuntimeError:  # an operation that this torch does not have at all
        return False
