"""All rules as a list for people: `scan --list-rules`, SARIF and the page of the documentation are made of it."""

from __future__ import annotations

import functools
import inspect
import sys
from dataclasses import dataclass

from devicekit.codemod.rules import all_rules
from devicekit.codemod.text_rules import TEXT_RULES

__all__ = ["Entry", "entries"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule in words."""

    name: str
    title: str
    reason: str


@functools.cache
def entries() -> tuple[Entry, ...]:
    """In the order in which the rules are asked."""
    return (
        *(Entry(rule.name, _title(type(rule).__module__), inspect.getdoc(rule) or "") for rule in all_rules()),
        *(Entry(rule.name, rule.title, rule.message) for rule in TEXT_RULES),
    )


def _title(module: str) -> str:
    return (sys.modules[module].__doc__ or "").partition("\n")[0].rstrip(".")
