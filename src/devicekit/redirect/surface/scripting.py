"""TorchScript reads a program's text instead of running it, so the CUDA devices in its graphs are rewritten.

In a graph a device is a constant, or made of a text while it runs; ``x.cuda()`` is an operator of its own. All of it is
replaced in everything that is compiled or loaded: functions, methods of modules and classes, and what they call.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from devicekit.redirect.naming import cuda_index
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]

LOADERS = ("import_ir_module", "import_ir_module_from_buffer")
"""What ``torch.jit.load`` reads files with."""

DEVICE = "DeviceObjType"
AS_IT_RUNS = """
def named(name: str) -> Device:
    return torch.device({named} if name.startswith("cuda") else name)
def numbered(kind: str, index: int) -> Device:
    return torch.device({numbered}) if kind == "cuda" else torch.device(kind, index)
def known(device: Device) -> Device:
    return torch.device({known}) if device.type == "cuda" else device
"""
"""TorchScript for a device that is not known before the graph runs: made of a text, or an attribute of a module."""


def install(redirect: Redirect) -> None:
    """Rewrite what is compiled from now on; what was compiled before stays as it was, and is not taken for it."""
    torch, layer = redirect.torch, redirect.layer
    functions_are_known(redirect)
    state, recursive = redirect.module("torch.jit._state"), redirect.module("torch.jit._recursive")
    layer.replace(state, "_jit_caching_layer", weakref.WeakKeyDictionary())
    layer.replace(state, "_jit_function_overload_caching", weakref.WeakKeyDictionary())
    layer.replace(recursive, "concrete_type_store", recursive.ConcreteTypeStore())
    compiled = functools.partial(_compiled, redirect, _Sweep(redirect, state._python_cu))
    layer.wrap(torch.jit, "script", lambda real: compiled(_one_frame_up(real)))
    layer.wrap(recursive, "create_script_module", compiled)
    for name in LOADERS:
        layer.wrap(torch._C, name, functools.partial(_loaded, redirect))
    layer.wrap(torch.jit.annotations, "try_ann_to_type", functools.partial(_device_type, redirect))
    for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        layer.wrap(kind, "__call__", functools.partial(_called, redirect))


def functions_are_known(redirect: Redirect) -> None:
    """TorchScript finds torch's functions by their identity; it must find the replacements as well."""
    table = redirect.module("torch.jit._builtins")._get_builtin_table()
    for real, new in redirect.layer.replaced():
        operator = table.get(id(real))
        if operator is not None:
            redirect.layer.put(table, id(new), operator)


# -- what is compiled ----------------------------------------------------------------------------------
def _compiled(redirect: Redirect, sweep: _Sweep, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def compile_(*args: Any, **kwargs: Any) -> Any:
        with _going_on:
            made = real(*args, **kwargs)
        if layer.on and not _going_on.depth and sweep.what_is_new():
            redirect.note("torch.jit.script")
        return made

    return compile_


def _one_frame_up(real: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.jit.script`` looks names up in its caller, which is one frame further now."""

    def script(obj: Any, optimize: Any = None, _frames_up: int = 0, *args: Any, **kwargs: Any) -> Any:
        return real(obj, optimize, _frames_up + 2, *args, **kwargs)

    return script


def _loaded(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def load(unit: Any, *args: Any, **kwargs: Any) -> Any:
        with _going_on:
            module = real(unit, *args, **kwargs)
        if layer.on and not _going_on.depth and _Rewriting(redirect).all_of(unit.get_functions()):
            redirect.note("torch.jit.load")
        return module

    return load


def _device_type(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """An annotation that was read before ``torch.device`` was replaced means a device as well."""
    layer, torch = redirect.layer, redirect.torch
    before = type(torch.ones(()).device)

    def try_ann_to_type(ann: Any, *args: Any, **kwargs: Any) -> Any:
        return real(torch.device if ann is before and layer.on else ann, *args, **kwargs)

    return try_ann_to_type


def _called(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    """Devices that come as arguments."""
    layer = redirect.layer

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if layer.on:
            args = tuple(_here(redirect, value) for value in args)
            kwargs = {name: _here(redirect, value) for name, value in kwargs.items()}
        return real(self, *args, **kwargs)

    return __call__


def _here(redirect: Redirect, value: Any) -> Any:
    return redirect.real(value) if getattr(value, "type", None) == "cuda" else value


class _GoingOn(threading.local):
    """Something is being compiled or loaded, in this thread.

    What it calls is compiled inside, while its own graph is not complete yet; and where one redirect is inside another,
    the inner one is the outermost call.
    """

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


_going_on = _GoingOn()


# -- graphs ------------------------------------------------------------------------------------------
class _Sweep:
    """Rewrites what has come into a compilation unit, where functions are only ever added."""

    def __init__(self, redirect: Redirect, unit: Any) -> None:
        self._rewriting = _Rewriting(redirect)
        self._unit = unit
        self._done = len(unit.get_functions())

    def what_is_new(self) -> int:
        """Rewrite it; how many places there were."""
        functions = self._unit.get_functions()
        new, self._done = functions[self._done :], len(functions)
        return self._rewriting.all_of(new)


class _Rewriting:
    """Puts the target's devices into graphs in place of CUDA's."""

    def __init__(self, redirect: Redirect) -> None:
        self._redirect = redirect
        self._as_it_runs: Any = None

    def all_of(self, functions: Iterable[Any]) -> int:
        """Rewrite these; how many places there were."""
        return sum(self._graph(function.graph) for function in functions)

    def _graph(self, graph: Any) -> int:
        ways = {"prim::Constant": self._constant, "aten::cuda": self._cuda, "aten::device": self._device}
        found = 0
        for node in graph.findAllNodes("prim::GetAttr"):
            found += self._attribute(graph, node)
        for kind, way in ways.items():
            for node in graph.findAllNodes(kind):
                with graph.insert_point_guard(node):
                    new = way(graph, node)
                if new is not None:
                    node.output().replaceAllUsesWith(new)
                    node.destroy()
                    found += 1
        return found

    def _constant(self, graph: Any, node: Any) -> Any:
        """A device that is written down; other constants stay."""
        if node.output().type().kind() != DEVICE:
            return None
        device = node.output().toIValue()
        return None if cuda_index(device) is None else graph.insertConstant(self._redirect.real(device))

    def _cuda(self, graph: Any, node: Any) -> Any:
        """``x.cuda()``."""
        return graph.insert("aten::to", [node.inputsAt(0), graph.insertConstant(self._redirect.real("cuda"))])

    def _device(self, graph: Any, node: Any) -> Any:
        """One that is made of a text, and perhaps a number."""
        inputs = list(node.inputs())
        return self._inserted(graph, "named" if len(inputs) == 1 else "numbered", inputs)

    def _attribute(self, graph: Any, node: Any) -> int:
        """One that a module has."""
        value = node.output()
        if value.type().kind() != DEVICE:
            return 0
        with graph.insert_point_guard(node):
            first = graph.insertConstant(None)
            new = self._inserted(graph, "known", [value])
        node.moveBefore(first.node())  # it is used in what was put before it
        value.replaceAllUsesAfterNodeWith(new.node(), new)
        return 1

    def _inserted(self, graph: Any, name: str, inputs: list[Any]) -> Any:
        if self._as_it_runs is None:
            self._as_it_runs = self._made()
        return graph.insertGraph(getattr(self._as_it_runs, name).graph, inputs)[0]

    def _made(self) -> Any:
        torch, here = self._redirect.torch, self._redirect.target.real(0)  # the text finds ``torch`` here
        words = dict.fromkeys(("named", "numbered", "known"), f'"{here.type}"')
        if here.index is not None:
            words |= {"named": f'"{here.type}" + name[4:]', "numbered": f'"{here.type}", index'}
            words["known"] = f'"{here.type}" + str(device)[4:]'
        return torch.jit.CompilationUnit(AS_IT_RUNS.format(**words))
