"""What scan and migrate share: which files and rules, reading them while a person watches, what could not be read."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator

from devicekit.cli import output
from devicekit.codemod.scanning import Choice, Seen, scan
from devicekit.codemod.walking import files_under
from devicekit.errors import DeviceKitError

__all__ = ["FINDINGS", "add_choice", "looked_at", "tell_problems"]

FINDINGS = 1
"""The exit code of findings, or of what is not met."""


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that choose files and rules."""
    parser.add_argument("paths", metavar="PATH", nargs="*", default=["."], help="files and folders; by default here")
    parser.add_argument("--select", type=_words, default=(), metavar="RULES", help="only these rules, with commas")
    parser.add_argument("--ignore", type=_words, default=(), metavar="RULES", help="all rules but these")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help='leave files out: "third_party/*"; repeat it',
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; by default one for each usable processor")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def looked_at(options: argparse.Namespace, choice: Choice) -> list[Seen]:
    """What is in the files that the options name.

    Raises:
        DeviceKitError: a path is not there, a rule is none, or the number of processes makes no sense.
    """
    if options.jobs is not None and options.jobs < 1:
        raise DeviceKitError(f"--jobs {options.jobs} is no number of processes.", try_="a whole number from 1")
    with _bar() as watch:
        return list(scan(files_under(options.paths, options.exclude), choice, jobs=options.jobs, watch=watch))


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr while a person watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("files"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def tell_problems(seen: Iterable[Seen]) -> int:
    """Say on stderr which files could not be read, and why; the number of them."""
    unread = [one for one in seen if one.problem]
    for one in unread:
        output.talk(output.one_line(f"{one.file}: left as it is: {one.problem}"))
    return len(unread)
