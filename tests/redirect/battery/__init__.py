"""The battery: idioms of CUDA programs, each with what a real GPU answers, to be run natively and under each policy."""

from __future__ import annotations

import importlib

from tests.redirect.battery.checking import CHECKS, POLICIES, Check, Outcome, Raises, entered, run

__all__ = ["CHECKS", "GROUPS", "POLICIES", "Check", "Outcome", "Raises", "entered", "run"]

GROUPS = (
    "namespace", "devices", "factories", "moving", "host", "mixing", "allowed", "operations", "autograd", "modules",
    "optimizers", "amp", "numbers", "streams", "memory", "typed", "saving", "loaders", "parallel", "processes",
    "compiling", "transforms",
)  # fmt: skip
for _name in GROUPS:
    importlib.import_module(f"tests.redirect.battery.{_name}")
