"""``torch.compile`` and what stands behind it: dynamo reads bytecode, and knows torch's functions by their identity.

It keeps tables of them, made when it is imported or when they are first asked. With the replacements in these tables
too, a call of one becomes a call in the graph, as torch's own would, and is translated when the graph is made for real.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from devicekit.redirect.imports import when_imported
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]

DYNAMO = "torch._dynamo"
FUNCTIONAL = "torch._subclasses.functional_tensor"
TABLES = ("constant_fold_functions", "constant_fold_functions_need_guards")
"""Of ``torch._dynamo.variables.torch``: functions that are called while it traces. Made when it is imported."""
REMEMBERED = (
    ("torch._dynamo.trace_rules", "get_tensor_method"),
    ("torch._dynamo.variables.torch", "TorchInGraphFunctionVariable._get_handlers"),
    ("torch._dynamo.variables.user_defined", "UserDefinedClassVariable._constant_fold_classes"),
    ("torch._dynamo.variables.user_defined", "UserDefinedClassVariable._in_graph_classes"),
)
"""What it makes out of torch's names when it is first asked, and keeps."""


def install(redirect: Redirect) -> None:
    """Teach dynamo the replacements, now or when it is imported.

    What was compiled is compiled anew, here and afterwards: dynamo has no guard on what ``x.to("cuda")`` means.
    """
    layer = redirect.layer
    layer.wrap(redirect.torch, "compile", functools.partial(_compile, redirect))
    when_imported(layer, FUNCTIONAL, functools.partial(_no_cuda_of_its_own, redirect))
    _forget()
    when_imported(layer, DYNAMO, functools.partial(_teach, redirect, layer.replaced()))
    layer.at_the_end(_forget)


def _compile(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def compile(model: Any = None, **kwargs: Any) -> Any:  # noqa: A001
        if not layer.on:
            return real(model, **kwargs)
        if model is None:
            return functools.partial(compile, **kwargs)
        reason = _reason_against(redirect, kwargs.get("backend") or "inductor")
        if not reason:
            return real(model, **kwargs)
        redirect.note(f"torch.compile: runs plainly, because {reason}")
        return redirect.module(DYNAMO).disable(model)  # a module as torch.compile gives it, but that it runs plainly

    return compile


def _reason_against(redirect: Redirect, compiler: Any) -> str:
    if redirect.strict:
        return "nothing compiled could make tensors look as if they were on CUDA"
    return redirect.target.compile_problem() if compiler == "inductor" else ""


def _teach(redirect: Redirect, replaced: list[tuple[Any, Any]], _: Any) -> None:
    originals = [(_original(real), new) for real, new in replaced]
    for table in _tables():
        for entry in list(table):  # a replacement, where dynamo was imported after the redirect began
            table.setdefault(_original(entry), table[entry])
        for original, new in originals:
            if isinstance(original, Hashable) and original in table:
                redirect.layer.put(table, new, table[original])


def _tables() -> Iterator[dict[Any, Any]]:
    functions = sys.modules["torch._dynamo.variables.torch"]
    for name in TABLES:
        table = getattr(functions, name, {})
        if isinstance(table, dict):
            yield table
    yield sys.modules["torch._dynamo.trace_rules"].get_torch_obj_rule_map()


def _original(function: Any) -> Any:
    """Torch's own function, for a replacement, or for one that stands in the place of another redirect's."""
    return inspect.unwrap(function, stop=lambda each: not _is_ours(each))


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("devicekit.")


def _no_cuda_of_its_own(redirect: Redirect, module: Any) -> None:
    """``x.cuda()`` while functions are traced: torch asks there which card is the current one."""
    layer, ours = redirect.layer, redirect.torch.Tensor.cuda
    layer.wrap(module.FunctionalTensor, "cuda", lambda real: layer.guarded(real, ours))


def _forget() -> None:
    """What was compiled, and what torch's functions were found to be."""
    if DYNAMO not in sys.modules:
        return
    for module, path in REMEMBERED:
        found = functools.reduce(lambda at, name: getattr(at, name, None), path.split("."), sys.modules.get(module))
        if found is not None:
            found.cache_clear()  # a functools.cache
    sys.modules[DYNAMO].reset_code_caches()
