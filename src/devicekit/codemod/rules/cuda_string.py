"""``"cuda"`` anywhere else.

What a function does with the word, and what a list of words is for, is not in the text of the place.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import VENDORS, text_of_cuda
from devicekit.codemod.facts.positions import Takes, consumer, edits, last_name, says_device, takes
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.names import FUNCTIONS
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

SHOWS = ("print", "info", "debug", "warning", "warn", "error", "log", "write", "echo", "exception", "skip", "skipif")
HARMLESS = "the word is a name here, and asks for no device"


class CudaString(Rule):
    """Where the function, the name before it or the parameter says so, it is a device; else a reader has to tell."""

    name = "cuda-string"
    visits = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Call)
    hints = ("cuda",)
    examples = (
        rewrites(
            "def best_device(quick):\n    if quick:\n        return 'cuda'\n    return 'cpu'",
            "def best_device(quick):\n    if quick:\n        return str(dm.device)\n    return 'cpu'",
            gives="best_device(False)",
        ),
        rewrites(
            'settings = {}\ndevice = settings.get("device", "cuda")',
            'settings = {}\ndevice = settings.get("device", str(dm.device))',
            gives="type(device)",
        ),
        rewrites(
            'def move(x, device):\n    return x.to(device)\n\n\nx = move(torch.ones(2), "cuda:0")',
            "def move(x, device):\n    return x.to(device)\n\n\nx = move(torch.ones(2), str(dm.device))",
            gives="x.sum()",
        ),
        rewrites(
            'devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]',
            "devices = [str(dm.device_at(i)) for i in range(dm.device_count)]",
            gives="type(devices)",
        ),
        Leaves('"""cuda"""\n\n\ndef f():\n    """cuda"""\n', because="these are docstrings"),
        Leaves('word = "cudalike"\n', because="this is another word"),
        Reports('def f(run):\n    run("cuda")\n'),
        Reports('import torch\n\n\n@torch.no_grad()\ndef check(x):\n    return [x, "cuda", "cpu"]\n'),
        Reports('def f(name):\n    return name.replace("cuda:", "")\n'),
        Reports('folder = "cuda"\n'),
        Reports('devices = [f"cuda:{i}" for i in range(8)]\n'),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Expressions that read so, and are no part of a longer one that does."""
        found = text_of_cuda(node, module)
        parent = module.parent(node)
        if isinstance(node, ast.Constant) and node.value == "cuda:" and isinstance(parent, ast.Call):
            message = "the text of a CUDA device is taken apart"
            yield self.review(node, module, message, "torch.device(text) has .type and .index", residual=True)
        if found is None or isinstance(parent, ast.Expr) or text_of_cuda(parent, module) is not None:
            return
        assert isinstance(node, ast.expr)
        child, above = consumer(node, module)
        inner = edits(node, module)
        if _is_name(child, above, module):
            yield self.harmless(node, module, HARMLESS, residual=True)
        elif inner and (_is_clear(child, above, module) or (found.computed and _is_counted(above))):
            yield self.rewrite(node, module, "a CUDA device by name", *inner)
        else:
            text = f"{found.as_text(module)}, where it is a device"
            if isinstance(above, ast.keyword) and above.arg == "accelerator":
                text = 'accelerator="auto" with Lightning'
            stays = not isinstance(above, ast.Compare)  # what asks for CUDA before goes on asking for it
            yield self.review(node, module, f"{_what(above, module)} names CUDA", text, residual=True, stays=stays)


def _is_name(child: ast.AST, above: ast.AST | None, module: Module) -> bool:
    """A key, or part of a message."""
    if isinstance(above, ast.Dict):
        return child in above.keys
    called = last_name(above.func) if isinstance(above, ast.Call) and child in above.args else ""
    is_shown = called in SHOWS or called.endswith(("Error", "Warning"))
    return is_shown or isinstance(above, (ast.Subscript, ast.FormattedValue)) or _is_annotation(above, module)


def _is_annotation(above: ast.AST | None, module: Module) -> bool:
    """``Literal["cuda", "cpu"]``."""
    return isinstance(above, ast.Tuple) and isinstance(module.parent(above), ast.Subscript)


def _is_clear(child: ast.AST, above: ast.AST | None, module: Module) -> bool:
    """What takes it says that it is a device."""
    if isinstance(above, ast.Return):
        function = module.function(above)
        return isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            says_device(function.name) or _returns_devices(function, module)
        )
    if not isinstance(above, ast.Call) or child not in above.args:
        return False
    if (module.name(above.func) or "").startswith("torch.distributed."):
        return takes(child, module) is Takes.TYPE
    position = above.args.index(child)
    before = above.args[position - 1] if position else None
    if isinstance(before, ast.Constant) and isinstance(before.value, str) and says_device(before.value):
        return True
    return says_device(_parameter(above, position, module))


def _returns_devices(function: ast.AST, module: Module) -> bool:
    """Whatever else it returns is a device's name as well, and there is something else."""
    found = [node.value for node in module.every(ast.Return) if isinstance(node, ast.Return)]
    said = [value for value in found if value is not None and module.function(value) is function]
    others = [v for v in said if not text_of_cuda(v, module)]
    return bool(others) and all(isinstance(v, ast.Constant) and v.value in VENDORS for v in others)


def _parameter(call: ast.Call, position: int, module: Module) -> str:
    """What the function of this file calls the argument."""
    if not isinstance(call.func, ast.Name):
        return ""
    for node in module.tree.body:
        if isinstance(node, FUNCTIONS) and getattr(node, "name", "") == call.func.id:
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            return names[position] if position < len(names) else ""
    return ""


def _is_counted(above: ast.AST | None) -> bool:
    """With a number that is computed nothing but a device is meant; in a list only such as there are."""
    if isinstance(above, (ast.ListComp, ast.GeneratorExp)):
        return all("device_count" in ast.unparse(loop.iter) for loop in above.generators)
    return isinstance(above, ast.Return)


def _what(above: ast.AST | None, module: Module) -> str:
    if isinstance(above, ast.Call) and isinstance(module.parent(above), ast.Compare):
        return "a comparison"
    if isinstance(above, ast.Call):
        return f"an argument of `{last_name(above.func) or 'a call'}`"
    if isinstance(above, ast.keyword):
        return f"the argument `{above.arg}`"
    if isinstance(above, ast.Compare):
        return "a comparison"
    return "an entry" if isinstance(above, (ast.List, ast.Tuple, ast.Set)) else "a text"
