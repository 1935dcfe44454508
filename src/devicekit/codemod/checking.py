"""Ask every rule about every node of a file, and settle what they say of the same place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from devicekit.codemod.finding import Finding, Kind, for_review
from devicekit.codemod.imports import unused
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Rule

__all__ = ["check"]

IGNORE = re.compile(r"#\s*devicekit:\s*ignore(?P<file>-file)?(?:\[(?P<rules>[\w\s,-]*)\])?")


def check(module: Module, rules: Sequence[Rule]) -> list[Finding]:
    """The findings of a file, by line and column; each place is spoken of once.

    What the file's comments silence is left out: ``# devicekit: ignore``, ``# devicekit: ignore[rule, rule]`` on a line
    of the place, ``# devicekit: ignore-file`` anywhere.
    """
    said = _not_ignored(_ask(module, rules), module)
    settled = _with_imports(_keep_guards(_outermost(said)), module)
    return sorted(settled, key=lambda f: (f.line, f.column, f.rule))


def _ask(module: Module, rules: Sequence[Rule]) -> list[Finding]:
    """What the rules say, in the order of the rules."""
    return [
        finding if node not in module.misplaced or not finding.edits else for_review(finding)
        for rule in rules
        if any(hint in module.text for hint in rule.hints)
        for node in module.every(*rule.visits)
        for finding in rule.check(node, module)
    ]


def _outermost(findings: list[Finding]) -> list[Finding]:
    """Of two that want to write the same characters the outer one, else the earlier rule's."""
    written: list[Finding] = []
    for finding in sorted((f for f in findings if f.edits), key=lambda f: -max(e.end - e.start for e in f.edits)):
        if not any(_clash(finding, other) for other in written):
            written.append(finding)
    kept = set(map(id, written))
    quiet = [f for f in findings if not f.edits and (f.besides or not any(_covers(other, f) for other in written))]
    kept |= {id(f) for f in quiet if not f.residual or not _is_covered(f, quiet if f.besides else [*written, *quiet])}
    return [f for f in findings if id(f) in kept]


def _clash(one: Finding, other: Finding) -> bool:
    """What is inserted at the edge of what another one replaces is no clash."""
    return any(a == b or (a.start < b.end and b.start < a.end) for a in one.edits for b in other.edits)


def _covers(writer: Finding, finding: Finding) -> bool:
    return any(edit.holds(*finding.place) for edit in writer.edits)


def _is_covered(finding: Finding, others: Iterable[Finding]) -> bool:
    start, end = finding.place
    return any(
        other.place[0] <= start and end <= other.place[1]
        for other in others
        if not other.residual or other.place != finding.place
    )


def _keep_guards(findings: list[Finding]) -> list[Finding]:
    """What guards code that has to stay CUDA's keeps guarding it."""
    stays = [f for f in findings if f.stays]
    settled = []
    for finding in findings:
        kept = next((f for f in stays if any(_within(f.place, part) for part in finding.guards)), None)
        if kept is not None:
            finding = dataclasses.replace(
                finding,
                kind=Kind.REVIEW,
                edits=(),
                suggestion=f"settle line {kept.line} first ({kept.rule}); then this one is rewritten",
                message=f"{finding.message}; it guards line {kept.line}, which runs on CUDA only",
            )
        settled.append(finding)
    return settled


def _with_imports(findings: list[Finding], module: Module) -> list[Finding]:
    """An import that loses its last use is rewritten as well."""
    edits = [edit for finding in findings for edit in finding.edits]
    gone = {module.span(node): edit for node, edit in unused(module, edits)} if edits else {}
    return [
        dataclasses.replace(f, kind=Kind.REWRITE, suggestion="what is rewritten does not need it any more")
        if f.kind is Kind.HARMLESS and f.place in gone
        else f
        for f in findings
    ]


def _within(place: tuple[int, int], around: tuple[int, int]) -> bool:
    return around[0] <= place[0] and place[1] <= around[1]


# -- comments that silence ---------------------------------------------------------------------------
def _not_ignored(findings: list[Finding], module: Module) -> list[Finding]:
    if "devicekit:" not in module.text:
        return findings
    lines = {}
    for number, line in enumerate(module.text.split("\n"), 1):
        found = IGNORE.search(line)
        if found is not None:
            lines[0 if found["file"] else number] = _rules_of(found["rules"])
    return [f for f in findings if not _is_silenced(f, lines)]


def _rules_of(text: str | None) -> set[str] | None:
    """None: all of them."""
    return None if text is None else {rule.strip() for rule in text.split(",")}


def _is_silenced(finding: Finding, lines: dict[int, set[str] | None]) -> bool:
    first, last = finding.span
    return any(
        rules is None or finding.rule in rules
        for number, rules in lines.items()
        if number == 0 or first <= number <= last
    )
