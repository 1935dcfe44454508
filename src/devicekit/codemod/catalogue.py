"""All rules as a list for people: `scan --list-rules`, SARIF and the page of the documentation are made of it."""

from __future__ import annotations

import functools
import inspect
import sys
from dataclasses import dataclass

from devicekit.codemod.rule import Rule
from devicekit.codemod.rules import all_rules
from devicekit.codemod.text_rules import TEXT_RULES

__all__ = ["Entry", "entries"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule in words."""

    name: str
    title: str
    reason: str
    sources: str = ""
    """Where its facts were read."""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """In the order in which the rules are asked."""
    return (
        *(_entry(rule) for rule in all_rules()),
        *(Entry(rule.name, rule.title, rule.message) for rule in TEXT_RULES),
    )


def _entry(rule: Rule) -> Entry:
    title, _, rest = (sys.modules[type(rule).__module__].__doc__ or "").partition("\n")
    return Entry(rule.name, title.rstrip("."), inspect.getdoc(rule) or "", rest.strip())
