"""The page of the rules, made of what they say: ``python -m devicekit.codemod.page > docs/reference/rules.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from devicekit.codemod.catalogue import Entry, entries
from devicekit.codemod.rule import Example, Leaves, Reports, Rewrites, Rule
from devicekit.codemod.rules import all_rules
from devicekit.codemod.text_rules import TEXT_RULES, TextRule

__all__ = ["page"]

HEAD = """# The rules of scan and migrate

Made from the rules themselves by `python -m devicekit.codemod.page`; every example below is a test, and what can be
executed is executed on both sides. `dm` is the module's `DeviceManager`.
"""


def page() -> str:
    """The page, as Markdown."""
    return "\n".join([HEAD, *_index(), *_rules(), *_text_rules()]) + "\n"


def _rules() -> Iterator[str]:
    by_name = {entry.name: entry for entry in entries()}
    for rule in all_rules():
        yield from _rule(rule, by_name[rule.name])


def _index() -> Iterator[str]:
    yield "| rule | what it finds |"
    yield "|---|---|"
    for entry in entries():
        yield f"| [{entry.name}](#{entry.name}) | {_marked(entry.title)} |"
    yield ""


def _marked(text: str) -> str:
    """Code as Markdown has it; a bar would end a cell of a table."""
    return text.replace("``", "`").replace("|", "\\|")


def _rule(rule: Rule, entry: Entry) -> Iterator[str]:
    yield f"## {entry.name}\n\n{_marked(entry.title)}. {entry.reason.replace('``', '`')}\n"
    if entry.sources:
        yield f"{_linked(entry.sources.replace('``', '`'))}\n"
    for example in rule.examples:
        yield from _example(example)


def _example(example: Example) -> Iterator[str]:
    if isinstance(example, Rewrites):
        yield f"Rewritten:\n\n{_code(example.before)}\n\n{_code(example.after)}\n"
    elif isinstance(example, Reports):
        yield f"Reported ({example.kind}), and left as it is:\n\n{_code(example.before)}\n"
    elif isinstance(example, Leaves):
        because = f": {example.because}" if example.because else ""
        yield f"Not this rule's{because}:\n\n{_code(example.before)}\n"


def _code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"


def _linked(text: str) -> str:
    """Bare addresses as links, which Markdown wants in angle brackets."""
    return " ".join(f"<{word}>" if word.startswith("https://") else word for word in text.split(" "))


def _text_rules() -> Iterator[str]:
    for rule in TEXT_RULES:
        yield from _text_rule(rule)


def _text_rule(rule: TextRule) -> Iterator[str]:
    yield f"## {rule.name}\n\n{rule.title} ({rule.kind}): {rule.message}. Instead: {rule.suggestion}.\n"
    if rule.found:
        yield f"Found: {', '.join(f'`{line.strip()}`' for line in rule.found)}.\n"
        yield f"Not found: {', '.join(f'`{line.strip()}`' for line in rule.left)}.\n"


if __name__ == "__main__":
    sys.stdout.write(page())
