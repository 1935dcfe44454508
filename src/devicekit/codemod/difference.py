"""The difference between two texts as ``git diff`` shows it, and no larger than it is.

difflib's own function ignores lines that are frequent in a long file, and then shows them as removed and put back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

__all__ = ["difference", "new_lines"]

AROUND = 3
"""Lines of context."""
NO_END = "\\ No newline at end of file\n"


def difference(before: str, after: str, name: str) -> Iterator[str]:
    """Lines that ``git apply`` and ``patch -p1`` take; none where the texts are the same."""
    old, new = _lines(before), _lines(after)
    for number, group in enumerate(_matcher(old, new).get_grouped_opcodes(AROUND)):
        if number == 0:
            yield from (f"--- a/{name}\n", f"+++ b/{name}\n")
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n"
        for tag, a, b, c, d in group:
            if tag == "equal":
                yield from (_whole(" ", line) for line in old[a:b])
            else:
                yield from (_whole("-", line) for line in old[a:b])
                yield from (_whole("+", line) for line in new[c:d])


def new_lines(before: str, after: str) -> list[str]:
    """The lines that a difference adds."""
    old, new = _lines(before), _lines(after)
    codes = _matcher(old, new).get_opcodes()
    return [line for tag, _, _, start, end in codes if tag != "equal" for line in new[start:end]]


def _matcher(old: Sequence[str], new: Sequence[str]) -> difflib.SequenceMatcher[str]:
    return difflib.SequenceMatcher(None, old, new, autojunk=False)


def _lines(text: str) -> list[str]:
    """With their ends; a line ends at a line feed only, whatever stands before it."""
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _range(start: int, end: int) -> str:
    """From 1; of nothing the line before it."""
    count = end - start
    return str(start + 1) if count == 1 else f"{start + 1 if count else start},{count}"


def _whole(sign: str, line: str) -> str:
    return sign + line if line.endswith("\n") else f"{sign}{line}\n{NO_END}"
