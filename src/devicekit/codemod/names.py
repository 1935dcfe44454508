"""What a name means, resolved through scopes and imports: ``th``, ``autocast`` and a local ``torch`` are told apart.

A name is resolved only when every binding that its scope has for it is an import of the same thing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Names", "dotted"]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef, ast.Module)
ASSUMED = {"torch"}
"""Names that mean a package also where nothing binds them: notebooks and ``from common import *`` leave them so."""


@dataclass(slots=True)
class _Scope:
    node: ast.AST
    parent: _Scope | None
    bound: dict[str, list[str | None]] = field(default_factory=dict)
    """Name to what each binding of it means; None: something that is no import."""
    outer: set[str] = field(default_factory=set)
    """Names that ``global`` or ``nonlocal`` sends elsewhere."""


def dotted(node: ast.AST) -> tuple[ast.Name, list[str]] | None:
    """``a.b.c`` as its first name and the rest; None for anything that is not only names."""
    rest: list[str] = []
    while isinstance(node, ast.Attribute):
        rest.append(node.attr)
        node = node.value
    return (node, rest[::-1]) if isinstance(node, ast.Name) else None


class Names:
    """The scopes of a module."""

    def __init__(self, tree: ast.Module) -> None:
        self.uses: dict[str, list[ast.Name]] = {}
        """Every occurrence of a name, by name."""
        self.all: set[str] = set()
        """Every identifier of the file, attributes too."""
        self.nodes: dict[type[ast.AST], list[ast.AST]] = {}
        """Every node, by kind, in the order of the text."""
        self.parents: dict[ast.AST, ast.AST] = {}
        self._scopes: dict[ast.AST, _Scope] = {}
        self._known: dict[ast.AST, str | None] = {}
        self._module = _Scope(tree, None)
        self._visit(tree, self._module)

    # -- asking ----------------------------------------------------------------------------------
    def qualified(self, node: ast.AST) -> str | None:
        """``torch.cuda.empty_cache`` for whatever the file calls it; None where it is not known to be an import."""
        if node not in self._known:  # every rule asks, and most ask about the same nodes
            self._known[node] = self._qualified(node)
        return self._known[node]

    def _qualified(self, node: ast.AST) -> str | None:
        found = dotted(node)
        if found is None:
            return None
        first, rest = found
        meaning = self._meaning(first.id, self._scopes.get(first))
        return None if meaning is None else ".".join([meaning, *rest])

    def at_top(self, qualified: str) -> str | None:
        """The module-level name of an import, if the file has one: ``torch`` or ``th`` for ``torch``."""
        return next((name for name, said in self._module.bound.items() if said and set(said) == {qualified}), None)

    def possible(self, node: ast.AST) -> frozenset[str]:
        """All that it may mean, where several imports, or an import and something else, give it its name."""
        found = dotted(node)
        if found is None:
            return frozenset()
        first, rest = found
        said = self._bindings(first.id, self._scopes.get(first))
        return frozenset(".".join([meaning, *rest]) for meaning in said if meaning)

    def bindings(self, node: ast.Name) -> list[ast.Name] | None:
        """Every place that assigns to what a name means here; None where an import or a definition binds it too."""
        home = self._home(node.id, self._scopes.get(node))
        if home is None:
            return None
        uses = self.uses.get(node.id, ())
        found = [
            use
            for use in uses
            if not isinstance(use.ctx, ast.Load) and self._home(node.id, self._scopes.get(use)) is home
        ]
        return found if len(found) == len(home.bound[node.id]) else None

    def _home(self, name: str, scope: _Scope | None) -> _Scope | None:
        """The scope that a name belongs to, seen from another one."""
        at_start = True
        while scope is not None:
            skipped = isinstance(scope.node, ast.ClassDef) and not at_start  # a class's names are not its methods'
            if name in scope.outer:
                scope, skipped = self._module, False
            if not skipped and name in scope.bound:
                return scope
            at_start, scope = False, scope.parent
        return None

    def _meaning(self, name: str, scope: _Scope | None) -> str | None:
        said = set(self._bindings(name, scope))
        return said.pop() if len(said) == 1 else None

    def _bindings(self, name: str, scope: _Scope | None) -> list[str | None]:
        home = self._home(name, scope)
        if home is not None:
            return home.bound[name]
        return [name] if name in ASSUMED else []

    # -- reading ---------------------------------------------------------------------------------
    def _visit(self, node: ast.AST, scope: _Scope) -> None:
        self.nodes.setdefault(type(node), []).append(node)
        for child, where in self._children(node, scope):
            self.parents.setdefault(child, node)
            if _says_absent(child):  # `except ImportError: torch = None` is no other meaning
                self._scopes[child.targets[0]] = where  # type: ignore[attr-defined]
                continue
            self._read(child, where)
            inner = where
            if isinstance(child, SCOPES):
                inner = self._scopes[child] = _Scope(child, where)
                self._bind_arguments(child, inner)
            self._visit(child, inner)

    def _children(self, node: ast.AST, scope: _Scope) -> Iterator[tuple[ast.AST, _Scope]]:
        """Decorators, defaults, annotations and bases belong to the scope around a function or class."""
        outside: list[ast.AST] = []
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and scope.parent is not None:
            outside = [*getattr(node, "decorator_list", ()), *getattr(node, "bases", ())]
            arguments = getattr(node, "args", None)
            if arguments is not None:
                outside += [d for d in (*arguments.defaults, *arguments.kw_defaults) if d is not None]
        for child in _parts(node):
            if isinstance(child, ast.arguments):
                self.parents[child] = node
                for part in _parts(child):
                    self.parents[part] = child
                    yield part, (scope.parent or scope) if part in outside else scope
            else:
                yield child, (scope.parent or scope) if child in outside else scope

    def _read(self, node: ast.AST, scope: _Scope) -> None:
        if isinstance(node, ast.Name):
            self.all.add(node.id)
            self.uses.setdefault(node.id, []).append(node)
            self._scopes[node] = scope
            if not isinstance(node.ctx, ast.Load):
                self._bind(scope, node.id, None)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, meaning in _imported(node):
                self._bind(scope, name, meaning)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._bind(scope, node.name, None)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            scope.outer |= set(node.names)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs)) and node.name:
            self._bind(scope, node.name, None)
        elif isinstance(node, ast.Attribute):
            self.all.add(node.attr)

    def _bind(self, scope: _Scope, name: str, meaning: str | None) -> None:
        self.all.add(name)
        target = self._module if name in scope.outer else scope
        target.bound.setdefault(name, []).append(meaning)

    def _bind_arguments(self, node: ast.AST, scope: _Scope) -> None:
        arguments = getattr(node, "args", None)
        if not isinstance(arguments, ast.arguments):
            return
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in every:
            if argument is not None:
                self._bind(scope, argument.arg, None)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """``ast.iter_child_nodes``, in half its time."""
    for field_name in node._fields:
        part = getattr(node, field_name, None)
        if isinstance(part, list):
            for item in part:
                if isinstance(item, ast.AST):
                    yield item
        elif isinstance(part, ast.AST) and part._fields:  # contexts and operators have none
            yield part


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str | None]]:
    """The names that an import binds, and what they mean."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            first = alias.name.partition(".")[0]
            yield alias.asname or first, alias.name if alias.asname else first
        else:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}" if node.module and not node.level else None


def _says_absent(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
    )
