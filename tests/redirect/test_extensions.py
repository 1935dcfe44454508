"""Extensions in CUDA are refused at once; what is C++ alone goes to torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from devicekit.errors import DeviceUnavailableError
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.extensions import MODULE
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
pytest.importorskip("setuptools")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch's module, where nothing is compiled: what would be, is told here."""
    calls: list[Any] = []
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "_jit_compile", lambda name, *args, **kwargs: calls.append(name))
    monkeypatch.setattr(module, "_get_build_directory", lambda name, verbose: "/nowhere")
    return calls


def to_cpu() -> Redirect:
    return Redirect(DecidedTarget(resolver().decide("cpu")))


def call(function: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module(MODULE), function)(*args, **kwargs)


REFUSED: dict[str, tuple[Any, ...]] = {
    "load": ("load", ("ops", ["ops.cpp", "kernel.cu"]), {}, "kernel.cu"),
    "load, one source": ("load", (), {"name": "ops", "sources": "/a/b/kernel.cu"}, "/a/b/kernel.cu"),
    "load with CUDA": ("load", ("ops", ["ops.cpp"]), {"with_cuda": True}, "'ops' with CUDA"),
    "load_inline": ("load_inline", ("ops", "", "__global__ void f() {}"), {}, "the CUDA sources of 'ops'"),
    "CUDAExtension": ("CUDAExtension", (), {"name": "ops", "sources": ["a.cu", "b.cuh"]}, "a.cu, b.cuh"),
}


@pytest.mark.parametrize(("function", "args", "kwargs", "sources"), REFUSED.values(), ids=REFUSED)
def test_cuda_is_refused(built: list[Any], function: str, args: Any, kwargs: Any, sources: str) -> None:
    """By name of the sources, as a RuntimeError, before anything is compiled."""
    with to_cpu():
        with pytest.raises(RuntimeError) as caught:
            call(function, *args, **kwargs)
    assert isinstance(caught.value, DeviceUnavailableError)
    assert caught.value.what == f"{MODULE}.{function} cannot compile {sources}."
    assert '"cuda" is cpu here' in caught.value.why
    assert built == []


def test_cpp_is_compiled(built: list[Any]) -> None:
    """And what is wrong in a call is torch's own error."""
    with to_cpu():
        call("load", "one", ["ops.cpp"])
        call("load", "two", "ops.cpp", with_cuda=False)
        with pytest.raises(TypeError):
            call("load", sources=["kernel.cu"])
    assert built == ["one", "two"]


def test_afterwards_all_goes_to_torch(built: list[Any]) -> None:
    with to_cpu():
        load = importlib.import_module(MODULE).load
    load("one", ["kernel.cu"])
    call("load", "two", ["kernel.cu"])
    assert built == ["one", "two"]


@pytest.mark.slow
def test_the_module_is_not_imported_for_it() -> None:
    """It takes long; the program's own import of it, later, is reached all the same."""
    code = f"""
import sys
from devicekit.redirect.entry import redirect_cuda
with redirect_cuda("cpu"):
    assert "{MODULE}" not in sys.modules
    from torch.utils.cpp_extension import load
    try:
        load("ops", ["kernel.cu"])
    except RuntimeError as exc:
        print(exc.what)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{MODULE}.load cannot compile kernel.cu.\n", done.stderr
