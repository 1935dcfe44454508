"""Compile where the device has a compiler, and run plainly where it has none, or where it fails; the reason is kept.

When the compiler fails on a graph, that graph is run as it is, in its place: nothing has run before that would run
twice. ``suppress_errors`` of torch does as much for a frame, but hides the reason and is the process's.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devicekit.backend import Backend
from devicekit.errors import DeviceKitError, first_line

__all__ = ["Compilation", "compilation", "compiled"]

log = logging.getLogger("devicekit")

INDUCTOR = "inductor"


@dataclass(frozen=True, slots=True)
class Compilation:
    """What became of something that was to be compiled."""

    compiled: bool
    """The compiler is in use, and has not failed so far."""
    reason: str
    """Why not; empty when it is."""


def compilation(thing: Any) -> Compilation:
    """What became of a function or module that ``compiled`` gave."""
    asked = getattr(thing, "_compiled_call_impl", None) or thing
    if not hasattr(asked, "compiled"):
        return Compilation(False, "it was not given to DeviceManager.compile()")
    return Compilation(asked.compiled, asked.reason)


def compiled(backend: Backend, index: int, thing: Any, options: dict[str, Any]) -> Any:
    """A function as another one, a module as itself; their calls are compiled where that can be.

    A module keeps its class, parameters and names: its calls are compiled in place, as ``torch.nn.Module.compile``
    does. ``torch.compile`` would put an ``OptimizedModule`` before it, whose state dict has other names.

    Raises:
        DeviceKitError: it is neither a function nor a module, or ``options`` has both a mode and options.
    """
    if not callable(thing):
        raise DeviceKitError(f"{thing!r} cannot be compiled.", try_="a function or a module")
    module = backend.needs_torch and isinstance(thing, backend.torch.nn.Module)
    call = thing._call_impl if module else thing
    reason = _reason_against(backend, index, options)
    if reason:
        log.debug("not compiled: %s", reason)
        made = _plain(call, reason)
    else:
        name = type(thing).__name__ if module else getattr(thing, "__qualname__", repr(thing))
        made = _guarded(backend, name, call, _fast(backend, thing, call, dict(options)))
    if not module:
        return made
    thing._compiled_call_impl = made  # torch drops it from copies and pickles, which are then plain
    return thing


def _reason_against(backend: Backend, index: int, options: dict[str, Any]) -> str:
    if not backend.needs_torch:
        return backend.compile_problem(index)
    if options.get("disable"):
        return "disable=True"
    try:
        dynamo = backend.host.import_module("torch._dynamo")
    except ImportError as exc:
        return f"torch._dynamo cannot be imported: {exc}"
    if not dynamo.is_dynamo_supported():
        return f"torch {backend.torch.__version__} cannot compile for this Python"
    if dynamo.config.disable:
        return "it is switched off (TORCH_COMPILE_DISABLE)"
    # Other compilers than inductor are the caller's matter.
    return backend.compile_problem(index) if (options.get("backend") or INDUCTOR) == INDUCTOR else ""


def _plain(call: Callable[..., Any], reason: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def plainly(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    plainly.compiled, plainly.reason = False, reason  # type: ignore[attr-defined]  # a function has attributes
    return plainly


def _fast(backend: Backend, thing: Any, call: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    rules = backend.host.import_module("torch._dynamo.trace_rules")
    if call is not thing and rules.check(thing.forward):
        call = _with_a_frame(thing, call)
    guard = _Guard(backend, options)  # it takes out what is for the compiler; the rest is for dynamo
    return backend.torch.compile(call, backend=guard, **options)  # type: ignore[no-any-return]


class _Guard:
    """Torch's own backend, but that a graph on which it fails is run as it is; running it leaves the reason.

    Two that would do the same are equal, so that dynamo uses for one module what it compiled for its like.
    """

    def __init__(self, backend: Backend, options: dict[str, Any]) -> None:
        torch = backend.torch
        name, dynamic = options.pop("backend", None) or INDUCTOR, options.get("dynamic")
        mode, settings = options.pop("mode", None), options.pop("options", None)
        if mode is not None and settings is not None:
            raise DeviceKitError("torch.compile takes mode or options, not both.", try_="options alone")
        kind = torch._TorchCompileInductorWrapper if name == INDUCTOR else torch._TorchCompileWrapper
        self._generate = kind(*(() if name == INDUCTOR else (name,)), mode, settings, dynamic)
        self._signal = backend.host.import_module("torch._dynamo.exc").RestartAnalysis

    def __call__(self, graph: Any, inputs: Any, **more: Any) -> Any:
        """What dynamo asks of its backend: something to call instead of this graph."""
        try:
            return self._generate(graph, inputs, **more)
        except self._signal:  # to dynamo: it shall trace again
            raise
        except Exception as exc:
            log.debug("the compiler failed", exc_info=exc)
            return functools.partial(_run_plainly, _told(exc), graph.forward)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Guard) and bool(self._generate == other._generate)

    def __hash__(self) -> int:
        return hash(_Guard)

    def __getattr__(self, name: str) -> Any:
        """Torch asks its own backends for more, such as their configuration."""
        if name == "_generate":
            raise AttributeError(name)
        return getattr(self._generate, name)


class _Failure(threading.local):
    """Of the call that runs in this thread."""

    reason = ""


_failure = _Failure()


def _run_plainly(reason: str, forward: Callable[..., Any], *args: Any) -> Any:
    _failure.reason = reason
    return forward(*args)


def _told(exc: Exception) -> str:
    return f"the compiler failed: {type(exc).__name__}: {first_line(exc) or 'without a word'}"


def _guarded(backend: Backend, name: str, call: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    being_traced = backend.torch.compiler.is_compiling
    dynamos_own = backend.host.import_module("torch._dynamo.exc").InternalTorchDynamoError

    @functools.wraps(call)
    def compiled_or_not(*args: Any, **kwargs: Any) -> Any:
        if being_traced() or not made.compiled:  # what compiles the caller takes in all of this
            return call(*args, **kwargs)
        more = ""
        try:
            return fast(*args, **kwargs)
        except dynamos_own as exc:
            _failure.reason, more = _told(exc), "; what the call had done by then is done again"
            return call(*args, **kwargs)
        finally:
            reason, _failure.reason = _failure.reason, ""
            if reason:
                made.compiled, made.reason = False, reason
                warnings.warn(f"{name} runs plainly from now on: {reason}{more}", stacklevel=2)

    made: Any = compiled_or_not
    made.compiled, made.reason = True, ""
    return compiled_or_not


def _with_a_frame(module: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo takes no frame of torch's own code, so that of torch's own modules, called directly, nothing is compiled.

    ``torch.nn.Sequential(...).compile()`` is such a silent nothing (torch 2.13). Dynamo keeps what it has compiled with
    the code object, so each has one of its own.
    """

    def whole(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    whole.__code__ = whole.__code__.replace(co_name=type(module).__name__)
    return whole
