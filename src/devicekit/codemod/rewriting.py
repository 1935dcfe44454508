"""Write the edits into the text, and with them what they need: imports, once and in place, and one manager."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Sequence

from devicekit.codemod.finding import Edit, Finding, for_review
from devicekit.codemod.imports import unused
from devicekit.codemod.module import Module
from devicekit.codemod.parsing import parses

__all__ = ["apply", "edits_for", "rewritten"]

IMPORTS = (ast.Import, ast.ImportFrom)
VISIBLE = re.compile(r"VISIBLE_DEVICES|VISIBLE_CARDS|ZE_AFFINITY_MASK")


def rewritten(module: Module, findings: Iterable[Finding]) -> str:
    """The text after every rewrite among the findings; the same text where there is none."""
    return apply(module.text, edits_for(module, findings)[1])


def edits_for(module: Module, findings: Iterable[Finding]) -> tuple[list[Finding], list[Edit]]:
    """The findings, and the edits of those that are rewrites, with what these need besides.

    The result parses. A finding whose edit would break the file, which no rule should make, is one for review then.
    """
    every = list(findings)
    edits = _with_needs(module, every)
    if not edits or parses(apply(module.text, edits)):
        return every, edits
    kept: list[Finding] = []
    for finding in every:
        alone = _with_needs(module, [*kept, finding])
        fits = not finding.edits or parses(apply(module.text, alone))
        kept.append(finding if fits else for_review(finding))
    return kept, _with_needs(module, kept)


def _with_needs(module: Module, findings: Iterable[Finding]) -> list[Edit]:
    edits = sorted(edit for finding in findings for edit in finding.edits)
    return [*edits, *(edit for _, edit in unused(module, edits)), *_needed(module, edits)] if edits else []


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with these edits; where two insert at one place, in their order."""
    parts, at = [], 0
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        parts += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, text[at:]])


# -- what the edits need -------------------------------------------------------------------------------
def _needed(module: Module, edits: Sequence[Edit]) -> list[Edit]:
    lines = []
    uses = [e for e in edits if re.search(rf"\b{module.manager}\b", e.text)]
    new_manager = bool(uses) and module.existing_manager is None
    uses_devicekit = new_manager or any(re.search(r"\bdevicekit\.", e.text) for e in edits)
    user = _user(module, min((e.start for e in uses), default=len(module.text)))
    if uses_devicekit and module.names.at_top("devicekit") is None:
        lines.append(_import(module, "devicekit", user))
    if module.names.at_top("torch") is None and any(re.search(r"\btorch\.", e.text) for e in edits):
        lines.append(_import(module, "torch", user))
    if new_manager:
        lines.append(_manager(module, user))
    return lines


def _user(module: Module, first_use: int) -> int:
    """Which statement of the module is the first to use the manager."""
    body = module.tree.body
    return next((i for i, s in enumerate(body) if module.span(s)[1] > first_use), len(body))


def _import(module: Module, name: str, user: int) -> Edit:
    """Before the first import of torch, further up where the imports around it are sorted; else after the last.

    In any case before the manager is used.
    """
    body, newline = module.tree.body, _newline(module)
    for position, statement in enumerate(body[:user]):
        if _imports_torch(statement):
            at = _sorted_place(body, position, name)
            return _line_before(module, body[at], f"import {name}{newline}")
    last = _last_import(body, user)
    if last is None and user < len(body):
        return _line_before(module, body[user], f"import {name}{newline}")
    return _after(module, last, f"import {name}{newline}")


def _imports_torch(statement: ast.stmt) -> bool:
    return any(
        (isinstance(node, ast.Import) and any(a.name.partition(".")[0] == "torch" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "torch")
        for node in ast.walk(statement)
        if isinstance(statement, (*IMPORTS, ast.Try, ast.If))
    )


def _sorted_place(body: list[ast.stmt], position: int, name: str) -> int:
    """Up over the plain imports right above that sort after the name, as long as they are no standard ones' group."""
    while position > 0:
        above = body[position - 1]
        adjacent = above.end_lineno == body[position].lineno - 1
        if not (isinstance(above, ast.Import) and adjacent and above.names[0].name > name):
            break
        if _is_standard(above.names[0].name):
            break
        position -= 1
    return position


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _manager(module: Module, user: int) -> Edit:
    """After the imports that come before its first use, and after what chooses the visible devices."""
    body, newline = module.tree.body, _newline(module)
    last = _last_import(body, user)
    text = f"{module.manager} = devicekit.DeviceManager.current(){newline}"
    if last is None and user < len(body):
        return _line_before(module, body[user], f"{newline}{text}{newline}")
    edit = _after(module, last, newline + text)
    following = module.text[edit.start :]
    if following.strip() and not following.startswith(("\n", "\r")):
        edit = Edit(edit.start, edit.end, edit.text + newline)
    return edit


def _last_import(body: list[ast.stmt], before: int) -> ast.stmt | None:
    """The last statement that imports, or sets which devices are visible; else the docstring."""
    found = None
    for position, statement in enumerate(body[:before]):
        if _has_import(statement) or _sets_visible(statement) or (position == 0 and _is_docstring(statement)):
            found = statement
    return found


def _has_import(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, (*IMPORTS, ast.Try, ast.If, ast.With))
        and any(isinstance(node, IMPORTS) for node in ast.walk(statement))
        and not _is_main(statement)
    )


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def _sets_visible(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Assign, ast.Expr)) and bool(VISIBLE.search(ast.unparse(statement)))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


# -- where lines go ------------------------------------------------------------------------------------
def _line_before(module: Module, statement: ast.stmt, text: str) -> Edit:
    at = module.start_of_line(module.line_at(_start_with_decorators(module, statement)))
    return Edit(at, at, text)


def _start_with_decorators(module: Module, statement: ast.stmt) -> int:
    return min([module.span(statement)[0], *(module.span(d)[0] for d in getattr(statement, "decorator_list", ()))])


def _after(module: Module, statement: ast.stmt | None, text: str) -> Edit:
    if statement is None:
        first = _first_line_of_code(module)
        return Edit(first, first, text)
    number = module.line_at(max(module.span(statement)[1] - 1, 0))
    at = module.start_of_line(number + 1)
    if at == len(module.text) and not module.text.endswith(("\n", "\r")):
        text = _newline(module) + text
    return Edit(at, at, text)


def _first_line_of_code(module: Module) -> int:
    """After a hash-bang and a coding comment, which have to stay first."""
    number = 1
    while number <= 2 and re.match(r"#!|#.*coding[:=]", module.text[module.start_of_line(number) :]):
        number += 1
    return module.start_of_line(number)


def _newline(module: Module) -> str:
    found = re.search(r"\r\n|\r|\n", module.text)
    return found[0] if found else "\n"
