"""Read many files and say what is in each: those without a hint are not parsed, the rest by several processes."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from devicekit.codemod.checking import check
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.notebook import Notebook
from devicekit.codemod.rewriting import edits_for
from devicekit.codemod.rule import Rule
from devicekit.codemod.rules import chosen_rules
from devicekit.codemod.source import Document, PythonFile, UnreadableError
from devicekit.codemod.text_rules import TEXT_RULES, TextRule

__all__ = ["Choice", "Seen", "scan"]

log = logging.getLogger("devicekit")

LARGEST = 8_000_000
"""Bytes; what is larger is data, not code."""
WORTH_A_PROCESS = 40
"""Files; fewer are done before another interpreter has started."""
PASSES = 5
"""Nearly always one is enough; what one rewrite uncovers for another rule takes two."""
SHARE = 8
"""Files that a process is given at a time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rules, and whether their edits are wanted. Small, so that it travels to other processes."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    rewrite: bool = False


EVERYTHING = Choice()


@dataclass(frozen=True, slots=True)
class Seen:
    """What is in a file."""

    file: str
    findings: tuple[Finding, ...] = ()
    problem: str = ""
    """Why it could not be read; empty where it could."""
    before: bytes = b""
    """Its content, where something in it is to be rewritten."""
    after: bytes = b""
    """What it is to become."""

    @property
    def changed(self) -> bool:
        """Something in it is to be rewritten."""
        return self.after != self.before


def scan(
    files: Iterable[str],
    choice: Choice = EVERYTHING,
    *,
    jobs: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[Seen]:
    """What is in these files, in their order.

    Args:
        files: as :func:`~devicekit.codemod.walking.files_under` gives them.
        choice: the rules, and whether to rewrite.
        jobs: processes; by default one for each usable CPU where there are enough files, with 1 no other process.
        watch: called with the number of files done and of all.

    Raises:
        DeviceKitError: ``choice`` names a rule that there is not.
    """
    chosen_rules(choice.select, choice.ignore)  # its error here, and not in a child
    every = list(files)
    workers = min(jobs or _usable_cpus(), -(-len(every) // SHARE) or 1)
    if workers == 1 or (jobs is None and len(every) < WORTH_A_PROCESS):
        done: Iterable[Seen] = (look(file, choice) for file in every)
        yield from _counted(done, len(every), watch)
        return
    context = multiprocessing.get_context("spawn" if os.name == "nt" else None)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from _counted(pool.map(look, every, [choice] * len(every), chunksize=SHARE), len(every), watch)


def _counted(done: Iterable[Seen], total: int, watch: Callable[[int, int], None] | None) -> Iterator[Seen]:
    for count, seen in enumerate(done, 1):
        if watch is not None:
            watch(count, total)
        yield seen


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- one file ----------------------------------------------------------------------------------------
def look(file: str, choice: Choice) -> Seen:
    """What is in a file. Never raises for what is in it."""
    try:
        if Path(file).stat().st_size > LARGEST:
            return Seen(file, problem=f"it is larger than {LARGEST // 1_000_000} MB")
        content = Path(file).read_bytes()
    except OSError as exc:
        return Seen(file, problem=exc.strerror or str(exc))
    return look_at(file, content, choice)


def look_at(file: str, content: bytes, choice: Choice, rules: Sequence[Rule] | None = None) -> Seen:
    """The same for a content that was read already, and for other rules than devicekit's own."""
    texts = [rule for rule in TEXT_RULES if rule.files.search(Path(file).name)]
    if texts:
        return Seen(file, _told_by_text(texts, content, file, choice))
    if rules is None:
        rules = chosen_rules(choice.select, choice.ignore) if _hints(choice).search(content) else ()
    if not rules:
        return Seen(file)
    try:
        return _look_at_code(file, content, rules, choice)
    except UnreadableError as exc:
        return Seen(file, problem=str(exc))
    except (SyntaxError, ValueError) as exc:  # ValueError: null bytes
        return Seen(file, problem=_said_of_syntax(exc))
    except (RecursionError, MemoryError):
        return Seen(file, problem="its code is nested too deeply to be parsed")
    except Exception as exc:  # a rule that falls over one file is no reason to lose the others
        log.debug("%s", file, exc_info=True)
        return Seen(file, problem=f"a rule failed on it, which is a fault of devicekit: {type(exc).__name__}: {exc}")


def _look_at_code(file: str, content: bytes, rules: Sequence[Rule], choice: Choice) -> Seen:
    document, findings, edits = _asked(file, content, rules, choice)
    told, after = tuple(document.located(finding) for finding in findings), content
    for _ in range(PASSES):
        if not edits:
            break
        after = document.edited(edits)
        document, _, edits = _asked(file, after, rules, choice)
    return Seen(file, told) if after == content else Seen(file, told, before=content, after=after)


def _asked(
    file: str, content: bytes, rules: Sequence[Rule], choice: Choice
) -> tuple[Document, list[Finding], list[Edit]]:
    document: Document = Notebook(content) if file.endswith(".ipynb") else PythonFile.read(content)
    module = Module(document.text, file)
    findings = check(module, rules)
    return (document, *edits_for(module, findings)) if choice.rewrite else (document, findings, [])


def _told_by_text(rules: list[TextRule], content: bytes, file: str, choice: Choice) -> tuple[Finding, ...]:
    wanted = [r for r in rules if (not choice.select or r.name in choice.select) and r.name not in choice.ignore]
    text = content.decode("utf-8", errors="replace")
    return tuple(finding for rule in wanted for finding in rule.check(text, file))


def _said_of_syntax(exc: Exception) -> str:
    if isinstance(exc, SyntaxError):
        return f"line {exc.lineno}: {exc.msg}"
    return str(exc)


@functools.cache
def _hints(choice: Choice) -> re.Pattern[bytes]:
    """A text that any of the rules needs; most files of most programs have none."""
    words = {hint for rule in chosen_rules(choice.select, choice.ignore) for hint in rule.hints}
    return re.compile(b"|".join(re.escape(word.encode()) for word in sorted(words)))
