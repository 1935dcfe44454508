"""The rules, one file each, in the order in which they are asked: of two that would write the same, the first does."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable

from devicekit.codemod.rule import Rule
from devicekit.codemod.text_rules import TEXT_RULES
from devicekit.errors import DeviceKitError

__all__ = ["NAMES", "all_rules", "chosen_rules"]

NAMES = (
    # mixed precision: before the rule on `device_type=`, for it has to stay off on the CPU
    "autocast",
    "grad-scaler",
    "custom-fwd",
    "autocast-query",
    # expressions for the device, the specific before the general
    "cuda-method",
    "device-choice",
    "generator",
    "safetensors-load",
    "set-default-device",
    "default-tensor-type",
    "torch-device",
    "to-device",
    "torch-load",
    "device-argument",
    "cli-option",
    "device-default",
    "device-assignment",
    "device-entry",
    # questions about the device
    "is-available",
    "cuda-comparison",
    "is-cuda",
    "typed-tensor",
    # torch.cuda
    "cuda-memory",
    "cuda-synchronize",
    "cuda-index",
    "cuda-seed",
    "cuda-properties",
    "cuda-stream",
    "cuda-graph",
    "cuda-error",
    "cuda-other",
    "import-torch-cuda",
    # several processes, and the environment
    "ddp",
    "process-group",
    "visible-devices",
    # what no rewrite helps
    "triton",
    "vendor-package",
    "native-extension",
    "nvidia-smi",
    "torch-version",
    # what does nothing elsewhere
    "cudnn-settings",
    "pin-memory",
    "profiler",
    # mistakes
    "empty-cache-in-loop",
    "float64",
    "late-fallback",
    "unsafe-load",
    # the rest
    "cuda-string",
)
"""A rule's name is its file's, with hyphens."""


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """One of each."""
    return tuple(_load(name) for name in NAMES)


def _load(name: str) -> Rule:
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Rule) and kind.__module__ == module.__name__
    ]
    rule: Rule = found[0]()
    assert rule.name == name, f"{module.__name__} has the rule {rule.name!r}"
    return rule


def chosen_rules(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> tuple[Rule, ...]:
    """Those selected, or all, without those ignored.

    Raises:
        DeviceKitError: a name is no rule's.
    """
    wanted, unwanted = set(select), set(ignore)
    for name in [*sorted(wanted), *sorted(unwanted)]:
        if name not in NAMES and name not in {rule.name for rule in TEXT_RULES}:
            raise DeviceKitError(f"{name!r} is no rule.", try_="devicekit scan --list-rules")
    return tuple(rule for rule in all_rules() if (not wanted or rule.name in wanted) and rule.name not in unwanted)
