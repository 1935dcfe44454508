"""``--require "bf16 and memory>=20GiB"``: what a device must have, in words that a shell script can hold.

    requirement = alternative, {"or", alternative}
    alternative = term, {"and", term}
    term        = "not", term | "(", requirement, ")" | word | figure, comparison, value
    word        = a number format, "gpu", "accelerator", or a backend's name
    figure      = "memory" | "free" | "devices" | "capability" | "torch" | "driver"
    comparison  = ">=" | ">" | "<=" | "<" | "==" | "!="

A figure that is not known is neither met nor, under ``not``, its opposite: then the requirement is not met.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from devicekit.cli import terms
from devicekit.cli.terms import ACCELERATOR, DTYPES, FIGURES, Subject, Told
from devicekit.errors import DeviceKitError

__all__ = ["Outcome", "Requirement", "parse"]

GLUE = ("and", "or", "not")

TOKEN = re.compile(
    r"(?P<paren>[()])|(?P<comparison>>=|<=|==|!=|>|<)|(?P<value>[0-9][0-9A-Za-z.+_]*)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
)
OTHERS_SPELLINGS = {
    "=>": ">=",
    "=<": "<=",
    "=": "==",
    "&&": "and",
    "&": "and",
    ",": "and",
    "||": "or",
    "|": "or",
    "!": "not",
}
MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a requirement is met, and what each of its terms said."""

    met: bool
    terms: tuple[tuple[str, Told], ...]


# -- the tree ----------------------------------------------------------------------------------
# check() says what is wanted of a node (False under a "not") and notes what each term said about that.
_Notes = list[tuple[str, Told]]


@dataclass(frozen=True, slots=True)
class _Term:
    text: str
    ask: Callable[[Subject], Told]

    def check(self, subject: Subject, notes: _Notes, wanted: bool = True) -> bool | None:
        met, said = self.ask(subject)
        answer = None if met is None else met is wanted
        notes.append((self.text if wanted else f"not {self.text}", Told(answer, said)))
        return answer


@dataclass(frozen=True, slots=True)
class _Not:
    part: _Node

    def check(self, subject: Subject, notes: _Notes, wanted: bool = True) -> bool | None:
        return self.part.check(subject, notes, not wanted)


@dataclass(frozen=True, slots=True)
class _Several:
    """Joined by ``and`` or ``or``; every part is asked, so that every part is told."""

    parts: tuple[_Node, ...]
    any_will_do: bool

    def check(self, subject: Subject, notes: _Notes, wanted: bool = True) -> bool | None:
        met = [part.check(subject, notes, wanted) for part in self.parts]
        deciding = self.any_will_do is wanted  # De Morgan: not (a and b) is met by any that is not
        if deciding in met:
            return deciding
        return None if None in met else not deciding


_Node = _Term | _Not | _Several


@dataclass(frozen=True, slots=True)
class Requirement:
    """A requirement that has been read."""

    text: str
    root: _Node

    def check(self, subject: Subject) -> Outcome:
        """Whether this device meets it."""
        notes: _Notes = []
        met = self.root.check(subject, notes)
        return Outcome(met is True, tuple(notes))


# -- reading -----------------------------------------------------------------------------------
class _Token(NamedTuple):
    kind: str
    text: str
    start: int

    def quoted(self) -> str:
        """For messages."""
        if self.kind == "end":
            return self.text
        return repr(self.text if len(self.text) <= 40 else f"{self.text[:37]}...")


def parse(text: str, backends: Mapping[str, str]) -> Requirement:
    """Read a requirement.

    Args:
        text: as the user wrote it.
        backends: every word for a backend, and the backend's name.

    Raises:
        DeviceKitError: it cannot be read; the message points at the place.
    """
    return Requirement(text, _Reader(text, backends).read())


class _Reader:
    def __init__(self, text: str, backends: Mapping[str, str]) -> None:
        self.text = text
        self.words = (*DTYPES, *ACCELERATOR, *backends)
        self.backends = backends
        self.tokens = list(self._tokens())
        self.at = 0

    def read(self) -> _Node:
        node = self._either(0)
        token = self._peek()
        if token.kind != "end":
            hint = "remove it" if token.text == ")" else "terms are joined by 'and' or 'or'"
            raise self._error(token.start, f"{token.quoted()} is not expected here", hint)
        return node

    def _tokens(self) -> Iterable[_Token]:
        at = 0
        while at < len(self.text):
            if self.text[at].isspace():
                at += 1
                continue
            match = TOKEN.match(self.text, at)
            if match is None:
                raise self._error(at, f"{self.text[at]!r} is not expected here", self._meant(at))
            yield _Token(str(match.lastgroup), match.group(), at)
            at = match.end()
        yield _Token("end", "the end", len(self.text))

    def _meant(self, at: int) -> str:
        for spelling in (self.text[at : at + 2], self.text[at]):
            if spelling in OTHERS_SPELLINGS:
                return f"did you mean {OTHERS_SPELLINGS[spelling]!r}?"
        return 'as in "bf16 and memory>=20GiB"'

    def _peek(self) -> _Token:
        return self.tokens[self.at]

    def _next(self) -> _Token:
        token = self.tokens[self.at]
        self.at += token.kind != "end"
        return token

    def _is(self, word: str) -> bool:
        """Whether the next token is this word; if so, it is taken."""
        found = self._peek().kind == "word" and self._peek().text.lower() == word
        self.at += found
        return found

    def _either(self, depth: int) -> _Node:
        parts = [self._all(depth)]
        while self._is("or"):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else _Several(tuple(parts), any_will_do=True)

    def _all(self, depth: int) -> _Node:
        parts = [self._one(depth)]
        while self._is("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else _Several(tuple(parts), any_will_do=False)

    def _one(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise self._error(self._peek().start, "this is nested too deeply", "fewer parentheses")
        if self._is("not"):
            return _Not(self._one(depth + 1))
        token = self._next()
        if token.text == "(":
            node = self._either(depth + 1)
            closing = self._next()
            if closing.text != ")":
                raise self._error(closing.start, f"a ')' is missing before {closing.quoted()}", "")
            return node
        if token.kind != "word" or token.text.lower() in GLUE:
            raise self._error(token.start, f"a term is missing before {token.quoted()}", 'as in "bf16 or fp16"')
        return self._figure(token) if token.text.lower() in FIGURES else self._word(token)

    def _word(self, token: _Token) -> _Term:
        word = token.text.lower()
        if word in DTYPES:
            return _Term(token.text, lambda subject: terms.has_dtype(subject, DTYPES[word]))
        if word in ACCELERATOR:
            return _Term(token.text, terms.is_accelerator)
        if word in self.backends:
            return _Term(token.text, lambda subject: terms.is_backend(subject, self.backends[word]))
        close = difflib.get_close_matches(word, (*self.words, *FIGURES), n=1)
        known = f"one of {', '.join(self.words)}, or a comparison of {', '.join(FIGURES)}"
        raise self._error(
            token.start, f"{token.quoted()} is no term", f"did you mean {close[0]!r}?" if close else known
        )

    def _figure(self, token: _Token) -> _Term:
        figure = FIGURES[token.text.lower()]
        comparison = self._peek()
        if comparison.kind != "comparison":
            raise self._error(
                comparison.start, f"{token.quoted()} needs a comparison", f"{token.text}>={figure.example}"
            )
        self._next()
        value = self._next()
        if value.kind != "value":
            raise self._error(
                value.start, f"a value is missing before {value.quoted()}", f"{token.text}>={figure.example}"
            )
        text = value.text
        unit = self._peek()
        if unit.kind == "word" and terms.is_unit(figure, text, unit.text):
            text += self._next().text
        try:
            wanted = figure.read(text)
        except ValueError as exc:
            raise self._error(value.start, str(exc), f"{token.text}>={figure.example}") from exc
        shown = f"{token.text}{comparison.text}{text}"
        return _Term(shown, lambda subject: terms.compare(figure.of(subject), comparison.text, wanted))

    def _error(self, at: int, what: str, hint: str) -> DeviceKitError:
        line = "".join(c if c.isprintable() else " " for c in self.text)
        start = max(0, at - 60)
        return DeviceKitError(
            f"--require cannot be read: {what}.", why=f"{line[start : at + 60]}\n{' ' * (at - start)}^", try_=hint
        )
