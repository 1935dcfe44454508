"""safetensors: ``safe_open`` reads onto the target; ``load_file`` and ``load_model`` go through it.

Asked for CUDA it pins memory and calls the card by itself, in Rust, past everything that is replaced in torch. So it is
told the target instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devicekit.redirect.imports import when_imported
from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Replace it when the program imports it, also where ``safetensors.torch`` holds it."""

    def wrap(module: Any) -> None:
        redirect.layer.wrap(module, "safe_open", lambda real: _safe_open(redirect, real))

    for name in ("safetensors", "safetensors.torch"):
        when_imported(redirect.layer, name, wrap)


def _safe_open(redirect: Redirect, real: Callable[..., Any]) -> Callable[..., Any]:
    layer = redirect.layer

    def safe_open(filename: Any, framework: Any, device: Any = "cpu", **options: Any) -> Any:
        # Other types than these it refuses, in words of its own.
        index = redirect.index(device) if layer.on and type(device) in (str, int) else None
        if index is None:
            return real(filename, framework, device=device, **options)
        redirect.note("safetensors.safe_open")
        opened = real(filename, framework, device=str(redirect.target.real(index)), **options)
        return _Opened(opened, lambda tensor: redirect.settle(tensor, index))

    return safe_open


class _Opened:
    """An open file whose tensors lie on the device; a context, as the original."""

    def __init__(self, real: Any, settle: Callable[[Any], Any]) -> None:
        self._real = real
        self._settle = settle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __enter__(self) -> _Opened:
        self._real.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._real.__exit__(*error)

    def get_tensor(self, name: str) -> Any:
        return self._settle(self._real.get_tensor(name))

    def get_tensors(self, *names: Any) -> dict[str, Any]:
        """All at once; only some versions have it."""
        return {name: self._settle(tensor) for name, tensor in self._real.get_tensors(*names).items()}

    def get_slice(self, name: str) -> Any:
        return _Slice(self._real.get_slice(name), self._settle)


class _Slice:
    """A tensor of which parts can be read."""

    def __init__(self, real: Any, settle: Callable[[Any], Any]) -> None:
        self._real = real
        self._settle = settle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __getitem__(self, part: Any) -> Any:
        return self._settle(self._real[part])
