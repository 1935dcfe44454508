"""Imports of what is replaced, that nothing uses any more once a file is rewritten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from devicekit.codemod.finding import Edit
from devicekit.codemod.module import Module

__all__ = ["imported_from_cuda", "unused"]

FROM_CUDA = re.compile(r"torch\.cuda(\.|$)")
REPLACED = re.compile(rf"{FROM_CUDA.pattern}|safetensors\.torch\.load_file$")
"""What rewriting takes the last use of."""
DIRECTIVE = re.compile(r"#\s*(noqa|type:|pylint|isort|ruff|pyright|flake8)")
"""Comments for tools, about the statement that goes."""


def imported_from_cuda(node: ast.AST) -> list[str]:
    """The full names that a statement imports from torch.cuda, or torch.cuda itself."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if FROM_CUDA.match(name)]


def unused(module: Module, edits: Sequence[Edit]) -> Iterator[tuple[ast.stmt, Edit]]:
    """Statements whose names, or some of them, lose their last use to these edits; and what becomes of each.

    Not in an ``__init__`` file, which imports for others, and not where nothing else stands in its block.
    """
    if module.file.endswith("__init__.py"):
        return
    for node in module.every(ast.Import, ast.ImportFrom):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_alone(module, node):
            gone = [a for a in node.names if _is_bound_here(node, a) and _is_gone(module, a.asname or a.name, edits)]
            if gone:
                yield node, _without(module, node, gone)


def _is_bound_here(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> bool:
    """The statement gives this one thing a name; ``import torch.cuda`` gives torch its own."""
    if isinstance(node, ast.Import):
        return bool(FROM_CUDA.match(alias.name)) and alias.asname is not None
    return not node.level and bool(REPLACED.match(f"{node.module}.{alias.name}"))


def _is_gone(module: Module, name: str, edits: Sequence[Edit]) -> bool:
    uses = [n for n in module.names.uses.get(name, ()) if isinstance(n.ctx, ast.Load)]
    in_all = re.search(rf"__all__[^\]]*[\"']{re.escape(name)}[\"']", module.text)
    return bool(uses) and not in_all and all(any(e.holds(*module.span(n)) for e in edits) for n in uses)


def _is_alone(module: Module, node: ast.stmt) -> bool:
    """A block may not be empty; a file may."""
    return not isinstance(module.parent(node), ast.Module) and module.block(node) == [node]


def _without(module: Module, node: ast.Import | ast.ImportFrom, gone: Sequence[ast.alias]) -> Edit:
    left = [alias for alias in node.names if alias not in gone]
    if left:
        start, end = module.span(node.names[0])[0], module.span(node.names[-1])[1]
        return Edit(start, end, ", ".join(module.code(alias) for alias in left))
    start, end = module.span(node)
    first, last = module.line_at(start), module.line_at(end - 1)
    before = module.text[module.start_of_line(first) : start].strip()
    after = module.text[end : module.start_of_line(last + 1)]
    if ";" in before + after.partition("#")[0]:  # another statement on its line
        return Edit(start, end, "pass")
    if after.strip() and not DIRECTIVE.match(after.strip()):
        return Edit(start, end + len(after) - len(after.lstrip()), "")
    return Edit(module.start_of_line(first), module.start_of_line(last + 1), "")
