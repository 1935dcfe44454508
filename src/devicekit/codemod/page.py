"""The page of the rules, made of what they say: ``python -m devicekit.codemod.page > docs/reference/rules.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

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
    return "\n".join([HEAD, *_index(), *(line for rule in all_rules() for line in _rule(rule)), *_text_rules()]) + "\n"


def _index() -> Iterator[str]:
    yield "| rule | what it finds |"
    yield "|---|---|"
    for name, title in [*((r.name, _docs(r)[0]) for r in all_rules()), *((r.name, r.title) for r in TEXT_RULES)]:
        yield f"| [{name}](#{name}) | {title} |"
    yield ""


def _docs(rule: Rule) -> tuple[str, str]:
    """The title and the rest of what its file says."""
    title, _, rest = (sys.modules[type(rule).__module__].__doc__ or "").partition("\n")
    return title.rstrip(".").replace("``", "`").replace("|", "\\|"), rest.strip().replace("``", "`")


def _rule(rule: Rule) -> Iterator[str]:
    title, rest = _docs(rule)
    yield f"## {rule.name}\n\n{title}. {(inspect.getdoc(rule) or '').replace('``', '`')}\n"
    if rest:
        yield f"{_linked(rest)}\n"
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
