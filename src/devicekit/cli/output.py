"""How we speak: data on stdout, talk on stderr; tables for people, one JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from devicekit.errors import DeviceKitError

__all__ = [
    "busy",
    "human_bytes",
    "one_line",
    "print_error",
    "print_json",
    "print_table",
    "print_text",
    "sentence",
    "talk",
]

UNKNOWN = "unknown"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


# -- words -------------------------------------------------------------------------------------
def human_bytes(count: object) -> str:
    """Bytes for people: ``23.5 GiB``; what is not known is ``unknown``, never 0."""
    if not isinstance(count, int) or isinstance(count, bool):
        return UNKNOWN
    value, unit = float(count), "B"
    for unit in UNITS:  # the unit at which the loop ends is the answer
        if abs(value) < 1023.95 or unit == UNITS[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def one_line(text: object) -> str:
    """Text of others on one line, without anything that could move a terminal's cursor or colour it."""
    words = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(words.split())


def sentence(text: str) -> str:
    """With a full stop, where it has no end of its own."""
    return text if text.endswith((".", "!", "?", ":")) else text + "."


# -- data, on stdout ---------------------------------------------------------------------------
def print_json(data: Any) -> None:
    """One JSON document on stdout; keys in the order in which they were put in."""
    print(json.dumps(data, indent=2, allow_nan=False))  # noqa: T201  # this is where data goes out


def print_text(text: str = "", *, indent: int = 0, hanging: int | None = None) -> None:
    """A line on stdout, wrapped only where a person reads it; ``hanging`` indents what did not fit."""
    rest = indent if hanging is None else hanging
    if text and sys.stdout.isatty():
        lines = textwrap.wrap(
            text,
            max(40, _console().width - 1),
            initial_indent=" " * indent,
            subsequent_indent=" " * rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        text, indent = "\n".join(lines), 0
    print(" " * indent + text if text else "")  # noqa: T201  # this is where data goes out


def print_table(
    rows: Iterable[Sequence[str]], head: Sequence[str] = (), *, indent: int = 2, to: TextIO | None = None
) -> None:
    """Columns of text; coloured and cut to the width only on a terminal (and not under NO_COLOR).

    They go to stdout, or where ``to`` says.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(head), header_style="bold")
    filled = [list(row) for row in rows]
    for position in range(max((len(row) for row in filled), default=len(head))):
        table.add_column(head[position] if head else "", overflow="fold")
    for row in filled:
        table.add_row(*(Text(cell) for cell in row))
    console = _console(to)
    with console.capture() as capture:
        console.print(Padding(table, (0, 0, 0, indent), expand=False))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    print("\n".join(lines), file=to)


def _console(to: TextIO | None = None) -> Console:
    from rich.console import Console

    stream = sys.stdout if to is None else to
    terminal = stream.isatty()
    return Console(file=stream, width=None if terminal else 1000, highlight=False, markup=False, emoji=False)


# -- talk, on stderr ---------------------------------------------------------------------------
def talk(text: str) -> None:
    """Something for the person who watches; no data."""
    print(text, file=sys.stderr)  # noqa: T201  # this is where talk goes out


def print_error(error: DeviceKitError) -> None:
    """Three lines: what happened, why, what to try. A reason of two lines keeps its columns: the second points."""
    talk(f"devicekit: {one_line(error.what)}")
    for label, text in (("why", error.why), ("try", error.try_)):
        lines = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.splitlines()]
        for position, line in enumerate(lines):
            talk(f"  {label}: {line}" if position == 0 else f"       {line}")


@contextlib.contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show that work goes on, and on what, while a person watches; the block gets a function that renames it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True, markup=False, emoji=False).status(what) as status:
        yield lambda now: status.update(now)
