"""What the tests of a redirect share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")


@pytest.fixture
def redirect() -> Iterator[Redirect]:
    """CUDA means the processor, until the test ends."""
    with Redirect(DecidedTarget(resolver().decide("cpu"))) as redirect:
        yield redirect
