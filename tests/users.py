"""Being another user for a moment: one with fewer rights than root, or one without a home folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from devicekit import host as hosts
from devicekit.testing import FakeHost

__all__ = ["as_a_user", "without_a_home"]

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


class _Homeless(FakeHost):
    def config_file(self, name: str) -> Path:
        raise RuntimeError("Could not determine home directory.")


@contextlib.contextmanager
def without_a_home() -> Iterator[FakeHost]:
    """On a machine with nothing but a processor; platformdirs raises there."""
    host = _Homeless("cpu")
    try:
        with hosts.use(host):
            yield host
    finally:
        host.close()
