"""Every rule holds what its own examples say; and what is executed gives the same before and after."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from devicekit.codemod.checking import check
from devicekit.codemod.finding import Kind
from devicekit.codemod.module import Module
from devicekit.codemod.page import page
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule
from devicekit.codemod.rules import all_rules
from tests.codemod.examples import NO_CUDA, alike, every, migrated, runnable, value_of, value_or_error

REWRITES = every(Rewrites)
REPORTS = every(Reports)
LEAVES = every(Leaves)


@pytest.mark.parametrize(("rule", "example"), [e[1:] for e in REWRITES], ids=[e[0] for e in REWRITES])
def test_it_is_rewritten_so(rule: Rule, example: Rewrites) -> None:
    """`before` becomes `after`, by this rule, and after that nothing changes any more."""
    found = check(Module(example.before), all_rules())
    assert any(f.rule == rule.name and f.kind is Kind.REWRITE for f in found)
    assert migrated(example.before) == example.after
    assert migrated(example.after) == example.after


@pytest.mark.parametrize(("rule", "example"), [e[1:] for e in REPORTS], ids=[e[0] for e in REPORTS])
def test_it_is_reported_and_stays(rule: Rule, example: Reports) -> None:
    """The places are told with their class; the rule itself changes nothing."""
    said = [f for f in check(Module(example.before), all_rules()) if f.rule == rule.name]
    assert [f.kind for f in said] == [example.kind] * example.count
    assert all(f.message and f.suggestion and not f.edits for f in said)


@pytest.mark.parametrize(("rule", "example"), [e[1:] for e in LEAVES], ids=[e[0] for e in LEAVES])
def test_it_says_nothing(rule: Rule, example: Leaves) -> None:
    """What only looks like the pattern is left alone by this rule."""
    module = Module(example.before)
    assert check(module, [rule]) == []


@pytest.mark.parametrize(("name", "example"), list(runnable()), ids=[n for n, _ in runnable()])
def test_it_means_the_same(name: str, example: Rewrites) -> None:
    """What ran before on the CPU gives the same after; what did not, runs now."""
    after = value_of(example.after, example.gives)
    ran, before = value_or_error(example.before, example.gives)
    if ran:
        assert alike(before, after)
    else:
        assert any(said in str(before) for said in NO_CUDA), before


@pytest.mark.parametrize("rule", all_rules(), ids=lambda r: r.name)
def test_a_rule_is_whole(rule: Rule) -> None:
    """It says what and why, and at least four in ten of its examples are of what must not change."""
    assert type(rule).__doc__
    assert rule.visits
    still = [e for e in rule.examples if not isinstance(e, Rewrites)]
    assert len(still) >= 0.4 * len(rule.examples)
    for example in rule.examples:
        ast.parse(example.before)


def test_the_page_of_the_rules_is_made_of_them() -> None:
    """It is what the rules say today: python -m devicekit.codemod.page > docs/reference/rules.md writes it."""
    written = Path(__file__).parents[2] / "docs" / "reference" / "rules.md"
    assert written.read_text(encoding="utf-8") == page()
