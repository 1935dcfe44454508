"""Find every place that ties a code base to CUDA, and say what can be done about it.

Classes: rewrite (devicekit migrate does it), review (needs a reader), cannot (no rewrite helps), harmless (does nothing
where there is no CUDA; never makes the exit code 1). A comment silences a place: # devicekit: ignore[rule].
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from devicekit import __version__
from devicekit.cli import output, where
from devicekit.cli.code import FINDINGS, add_choice, looked_at, tell_problems
from devicekit.cli.files import draft
from devicekit.codemod.baseline import as_baseline, known, without_known
from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.scanning import Choice
from devicekit.errors import DeviceKitError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_choice(parser)
    parser.add_argument("--class", dest="kinds", metavar="CLASSES", help="tell only these, e.g. rewrite,review")
    parser.add_argument("--baseline", metavar="FILE", help="leave out what --write-baseline wrote there")
    parser.add_argument("--write-baseline", metavar="FILE", help="write down what is found, as known")
    parser.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0, for code hosts")
    parser.add_argument("--list-rules", action="store_true", help="tell the rules, and do nothing else")
    where.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the findings; 1 where there are any but harmless ones, or a file could not be read."""
    if options.list_rules:
        _print_rules(as_json=options.json)
        return 0
    if options.json and options.sarif:
        raise DeviceKitError("devicekit scan prints one format.", try_="--json, or --sarif")
    kinds = _kinds(options.kinds)
    known_before = known(_text_of(options.baseline)) if options.baseline else Counter()
    with draft("--write-baseline", options.write_baseline) as written:
        seen = looked_at(options, Choice(options.select, options.ignore))
        findings = [f for one in seen for f in one.findings if f.kind in kinds]
        if written is not None:
            written.commit(as_baseline(findings).encode())
    findings = without_known(findings, known_before)
    _print(findings, options, files=len(seen))
    unread = tell_problems(seen)
    if written is not None:
        output.talk(f"{len(findings)} findings are known now: {options.write_baseline}")
        return 0
    return FINDINGS if unread or any(f.kind is not Kind.HARMLESS for f in findings) else 0


def _kinds(text: str | None) -> set[Kind]:
    if text is None:
        return set(Kind)
    try:
        return {Kind(word.strip().lower()) for word in text.split(",")}
    except ValueError as exc:
        raise DeviceKitError(f"--class {text!r}: {exc}.", try_=",".join(Kind)) from exc


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise DeviceKitError(f"--baseline {path} cannot be read.", why=why, try_="--write-baseline FILE") from exc


# -- telling -----------------------------------------------------------------------------------------
def _print(findings: Sequence[Finding], options: argparse.Namespace, files: int) -> None:
    if options.json:
        output.print_json([finding.to_dict() for finding in findings])
    elif options.sarif:
        from devicekit.codemod.sarif import as_sarif

        output.print_json(as_sarif(findings, __version__))
    else:
        for finding in findings:
            output.print_text(f"{finding.where}: {finding.kind} [{finding.rule}] {output.one_line(finding.message)}")
            output.print_text(output.one_line(f"instead: {finding.suggestion}"), indent=4, hanging=13)
        output.talk(_summary(findings, files))


def _summary(findings: Iterable[Finding], files: int) -> str:
    counts = Counter(finding.kind for finding in findings)
    if not counts:
        return f"nothing in {files} files is tied to CUDA"
    told = ", ".join(f"{counts[kind]} {kind}" for kind in Kind if counts[kind])
    more = "; devicekit migrate shows the rewrites" if counts[Kind.REWRITE] else ""
    return f"{counts.total()} places in {files} files: {told}{more}"


def _print_rules(*, as_json: bool) -> None:
    from devicekit.codemod.catalogue import entries

    if as_json:
        output.print_json([{"rule": e.name, "title": e.title, "reason": e.reason} for e in entries()])
    else:
        output.print_table(([e.name, e.title] for e in entries()), head=("rule", "what it finds"))
