"""Rewrite CUDA-only code to the facade: shows the difference, and writes it with --write.

What cannot be rewritten stays as it is, and is told. Running it again changes nothing. A file is written whole or not
at all; its encoding, line ends and formatting stay.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from devicekit.cli import output, where
from devicekit.cli.code import FINDINGS, add_choice, looked_at, tell_problems
from devicekit.codemod.difference import difference
from devicekit.codemod.finding import Finding, Kind
from devicekit.codemod.scanning import Choice, Seen
from devicekit.drafts import Draft
from devicekit.errors import DeviceKitError

__all__ = ["add_arguments", "run"]

COLOURS = {"+": "green", "-": "red", "@": "cyan"}
LEFT = (Kind.REVIEW, Kind.CANNOT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_choice(parser)
    parser.add_argument("--write", action="store_true", help="write the files")
    parser.add_argument("--check", action="store_true", help="write nothing, and end with 1 if there is anything to")
    parser.add_argument("--quiet", action="store_true", help="show no difference, only what is left")
    where.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show or write what can be rewritten, and tell what is left."""
    if options.write and options.check:
        raise DeviceKitError("devicekit migrate either writes or checks.", try_="--write, or --check")
    seen = looked_at(options, Choice(options.select, options.ignore, rewrite=True))
    changed = [one for one in seen if one.changed]
    failed = _written(changed) if options.write else {}
    if options.json:
        output.print_json(_as_data(seen, failed, written=options.write))
    else:
        if not (options.write or options.quiet):
            for one in changed:
                _print_difference(one)
        _tell(seen, failed, written=options.write)
    unread = tell_problems(seen)
    if failed:
        return 2
    return FINDINGS if unread or (options.check and changed) else 0


def _written(changed: Sequence[Seen]) -> dict[str, str]:
    """Write each file; what failed, and why."""
    failed = {}
    for one in changed:
        try:
            with Draft(one.file) as draft:
                draft.path.chmod(draft.target.stat().st_mode & 0o7777)
                draft.commit(one.after)
        except (OSError, ValueError) as exc:
            failed[one.file] = getattr(exc, "strerror", None) or str(exc)
    return failed


# -- telling -----------------------------------------------------------------------------------------
def _difference(one: Seen) -> Iterator[str]:
    before, after = (content.decode("utf-8", errors="replace") for content in (one.before, one.after))
    name = os.path.relpath(one.file).replace("\\", "/")
    name = name if not name.startswith("../") else one.file.replace("\\", "/").lstrip("/")
    return difference(before, after, name)


def _print_difference(one: Seen) -> None:
    if not sys.stdout.isatty():
        sys.stdout.writelines(_difference(one))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in _difference(one):
        bold = line.startswith(("+++", "---"))
        console.print(Text(line.rstrip("\r\n"), style="bold" if bold else COLOURS.get(line[0], "")))


def _tell(seen: Sequence[Seen], failed: dict[str, str], *, written: bool) -> None:
    done = [f for one in seen if one.file not in failed for f in one.findings if f.kind is Kind.REWRITE]
    verb = "rewritten" if written else "can be rewritten"
    files = len({finding.file for finding in done})
    output.talk(f"{len(done)} places in {files} files {verb}{'' if written or not done else ': --write does it'}")
    for file, why in failed.items():
        output.talk(output.one_line(f"{file}: not written: {why}"))
    for finding in _left(seen):
        output.talk(output.one_line(f"{finding.where}: {finding.kind} [{finding.rule}] {finding.message}"))
        output.talk(f"    next: {output.one_line(finding.suggestion)}")
    counts = Counter(f.kind for f in _left(seen))
    if counts:
        told = ", ".join(f"{counts[kind]} {kind}" for kind in LEFT if counts[kind])
        output.talk(f"left as they are: {told}")


def _left(seen: Sequence[Seen]) -> list[Finding]:
    return [finding for one in seen for finding in one.findings if finding.kind in LEFT]


def _as_data(seen: Sequence[Seen], failed: dict[str, str], *, written: bool) -> dict[str, Any]:
    changed = [one for one in seen if one.changed]
    return {
        "written": written,
        "files": [
            {
                "file": one.file,
                "rewrites": [f.to_dict() for f in one.findings if f.kind is Kind.REWRITE],
                "diff": "".join(_difference(one)),
                "error": failed.get(one.file),
            }
            for one in changed
        ],
        "left": [finding.to_dict() for finding in _left(seen)],
        "unreadable": [{"file": one.file, "why": one.problem} for one in seen if one.problem],
    }
