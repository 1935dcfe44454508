"""Extensions that a program compiles while it runs: those in CUDA are refused at once, before a compiler is looked for.

https://docs.pytorch.org/docs/stable/cpp_extension.html; what is C++ alone is compiled as ever.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

from devicekit.errors import DeviceUnavailableError
from devicekit.redirect.imports import when_imported
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]

MODULE = "torch.utils.cpp_extension"
IN_CUDA = (".cu", ".cuh")


def install(redirect: Redirect) -> None:
    """The module is no part of ``import torch``, and takes long to import."""

    def replace(module: Any) -> None:
        for name in ("load", "load_inline", "CUDAExtension"):
            redirect.layer.wrap(module, name, functools.partial(_checked, redirect, f"{MODULE}.{name}"))

    when_imported(redirect.layer, MODULE, replace)


def _checked(redirect: Redirect, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    layer, signature = redirect.layer, inspect.signature(real)

    def build(*args: Any, **kwargs: Any) -> Any:
        sources = _in_cuda(signature, args, kwargs) if layer.on else ""
        if not sources:
            return real(*args, **kwargs)
        redirect.note(f"{what}: CUDA sources", refused=True)
        raise DeviceUnavailableError(
            f"{what} cannot compile {sources}.",
            why=f'it is for CUDA, and "cuda" is {redirect.target.device_type} here',
            try_="the same in plain torch, where the extension cannot be had; many programs have an option for that",
        )

    return build


def _in_cuda(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The sources that are in CUDA, in words; empty: none, or the call is wrong and torch shall say so."""
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return ""
    inline = given.get("cuda_sources")
    if inline:
        return f"the CUDA sources of {given.get('name')!r}"
    found = [str(path) for path in _listed(given.get("sources")) if PurePath(str(path)).suffix in IN_CUDA]
    if found:
        return ", ".join(found)
    return f"{given.get('name')!r} with CUDA" if given.get("with_cuda") else ""


def _listed(sources: Any) -> Iterable[Any]:
    return [sources] if isinstance(sources, str) else sources or ()
