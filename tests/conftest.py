"""The profiles of the property tests, and an environment without anybody's pins."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from devicekit.request import PINS
from devicekit.tuning import SWITCH

settings.register_profile("default", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", parent=settings.get_profile("default"), max_examples=10_000)
settings.load_profile("default")

# The tests say themselves what is pinned; what the machine that runs them has pinned is not their matter.
for name in (*PINS, "LOCAL_RANK"):
    os.environ.pop(name, None)
os.environ[SWITCH] = "off"  # nor is what it was tuned to
