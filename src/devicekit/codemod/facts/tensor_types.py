"""``torch.cuda.FloatTensor`` and its like: dtype and device in one name, as torch wrote them before 0.4."""

from __future__ import annotations

import ast

from devicekit.codemod.facts.assigned import values
from devicekit.codemod.facts.cuda_calls import function
from devicekit.codemod.facts.devices import is_available
from devicekit.codemod.finding import Edit
from devicekit.codemod.module import Module

__all__ = ["DTYPES", "cast", "chosen_type", "made", "uses_of"]

DTYPES = {
    "FloatTensor": "float32",
    "DoubleTensor": "float64",
    "HalfTensor": "float16",
    "BFloat16Tensor": "bfloat16",
    "LongTensor": "int64",
    "IntTensor": "int32",
    "ShortTensor": "int16",
    "CharTensor": "int8",
    "ByteTensor": "uint8",
    "BoolTensor": "bool",
}
ARRAYS = ("array", "asarray", "zeros", "ones", "full", "arange", "linspace", "eye", "stack", "concatenate")
SIZED = {"rand": 1, "randn": 1, "normal": 3, "uniform": 3, "randint": 3, "random": 1, "standard_normal": 1, "choice": 2}
"""NumPy's random functions, and with how many arguments one of them is a size."""


def cast(call: ast.Call, dtype: str, module: Module) -> list[Edit]:
    """``x.type(T)`` becomes ``x.to(device, dtype)``."""
    assert isinstance(call.func, ast.Attribute)
    text = f"{module.device}, {module.torch}.{dtype}"
    return [module.rename(call.func, "to"), module.replace(call.args[0], text)]


def made(call: ast.Call, dtype: str, module: Module) -> list[Edit]:
    """``T(2, 3)`` becomes ``torch.empty``, ``T([1, 2])`` ``torch.tensor``; nothing where it may be either."""
    if call.keywords or (call.args and isinstance(call.args[0], ast.Starred)):
        return []
    given = f"dtype={module.torch}.{dtype}, device={module.device}"
    if not call.args:
        return [module.replace(call.func, f"{module.torch}.empty"), module.prepend_argument(call, f"0, {given}")]
    is_size = len(call.args) > 1 or (isinstance(call.args[0], ast.Constant) and type(call.args[0].value) is int)
    if not is_size and not _is_data(call.args[0], module):
        return []
    called = "empty" if is_size else "tensor"
    return [module.replace(call.func, f"{module.torch}.{called}"), module.append_argument(call, given)]


def _is_data(node: ast.expr, module: Module) -> bool:
    if isinstance(node, (ast.List, ast.ListComp)):
        return True
    if isinstance(node, ast.Name):
        given = [v for v in values(node, module) if not any(part is node for part in ast.walk(v))]
        return bool(given) and all(not isinstance(v, ast.Name) and _is_data(v, module) for v in given)
    if not isinstance(node, ast.Call):
        return False
    home, _, name = (module.name(node.func) or "").rpartition(".")
    if home == "numpy":
        return name in ARRAYS
    sizes = [k for k in node.keywords if k.arg == "size"]
    return home == "numpy.random" and name in SIZED and (bool(sizes) or len(node.args) >= SIZED[name])


# -- the type under a name of its own ------------------------------------------------------------------
def chosen_type(node: ast.AST, module: Module) -> str:
    """The dtype of ``torch.cuda.FloatTensor if torch.cuda.is_available() else torch.FloatTensor``; else nothing."""
    if not isinstance(node, ast.IfExp) or not _is_there(node.test, module):
        return ""
    name = function(node.body, module)
    same = ("torch.FloatTensor", "torch.Tensor") if name == "FloatTensor" else (f"torch.{name}",)
    return DTYPES.get(name, "") if module.name(node.orelse) in same else ""


def _is_there(test: ast.expr, module: Module) -> bool:
    """There is CUDA, also by way of a variable that says nothing else."""
    given = values(test, module)
    if len(given) == 1:
        test = given[0]
    if isinstance(test, ast.IfExp) and isinstance(test.body, ast.Constant) and isinstance(test.orelse, ast.Constant):
        test = test.test if (test.body.value, test.orelse.value) == (True, False) else test.body
    return is_available(test, module) and module.calls(test, "torch.cuda.is_available")


def uses_of(target: ast.Name, dtype: str, module: Module) -> list[Edit]:
    """Edits for all that is done with a name of the type; nothing where one of them is not plain."""
    found: list[Edit] = []
    for use in module.names.uses[target.id]:
        if not isinstance(use.ctx, ast.Load) or module.names.bindings(use) != [target]:
            continue
        above = module.parent(use)
        edits: list[Edit] = []
        if isinstance(above, ast.Call) and above.func is use:
            edits = made(above, dtype, module)
        elif isinstance(above, ast.Call) and above.args == [use] and not above.keywords:
            is_cast = isinstance(above.func, ast.Attribute) and above.func.attr == "type"
            edits = cast(above, dtype, module) if is_cast else []
        if not edits:
            return []
        found += edits
    return found
