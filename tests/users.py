"""Being another user for a moment, so that rights can be tested by root too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["as_a_user"]

NOBODY = 65534


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Root may do anything, so it is nobody meanwhile; everybody else stays who they are."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
