"""What runs only if an expression is true: in it may stand what has to stay CUDA's."""

from __future__ import annotations

import ast

from devicekit.codemod.module import Module

__all__ = ["guarded"]

LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)
EXITS = ("exit", "quit", "_exit", "skip", "skipTest", "fail", "abort")


def guarded(node: ast.AST, module: Module, *, by_name: bool = True) -> list[ast.AST]:
    """The statements and expressions that ask ``node`` whether to run.

    ``if not node: return`` guards what follows it; ``cuda = node`` whatever asks ``cuda``, with ``by_name``.
    """
    found: list[ast.AST] = []
    child, above, wanted = node, module.parent(node), True
    while above is not None:
        if isinstance(above, ast.UnaryOp) and isinstance(above.op, ast.Not):
            wanted = not wanted
        elif isinstance(above, ast.Compare):
            wanted = wanted is not _is_false(above.comparators[0])
        elif isinstance(above, ast.BoolOp):
            if isinstance(above.op, ast.And) is wanted:
                found += above.values[above.values.index(child) + 1 :]  # type: ignore[arg-type]
        elif isinstance(above, ast.IfExp) and above.test is child:
            found.append(above.body if wanted else above.orelse)
            wanted = wanted is not _is_false(above.body)
            if not (isinstance(above.body, ast.Constant) and isinstance(above.orelse, ast.Constant)):
                return found
        else:
            return found + _of_statement(above, child, wanted, module, by_name)
        child, above = above, module.parent(above)
    return found


def _of_statement(above: ast.AST, child: ast.AST, wanted: bool, module: Module, by_name: bool) -> list[ast.AST]:
    if isinstance(above, (ast.If, ast.While)) and above.test is child:
        if wanted:
            return list(above.body)
        return [*above.orelse, *(_following(above, module) if _leaves(above.body[-1]) else ())]
    if isinstance(above, ast.Assert) and wanted:
        return _following(above, module)
    if isinstance(above, ast.Assign) and len(above.targets) == 1:
        return _of_variable(above.targets[0], module) if wanted and by_name else []
    return []


def _of_variable(target: ast.AST, module: Module) -> list[ast.AST]:
    """What asks a variable, or an attribute of the same name."""
    said = ast.unparse(target)
    asking = [
        node
        for node in module.every(ast.Name, ast.Attribute)
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and ast.unparse(node) == said
    ]
    return [part for node in asking for part in guarded(node, module, by_name=False)]


def _following(statement: ast.stmt, module: Module) -> list[ast.AST]:
    block = module.block(statement)
    return list(block[block.index(statement) + 1 :]) if block else []


def _leaves(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = statement.value.func
        return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in EXITS
    return isinstance(statement, LEAVES)


def _is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in (False, 0)
