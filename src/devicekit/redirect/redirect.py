"""A redirect: enter it, and "cuda" means its target; leave it, and torch is what it was."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from devicekit.redirect import children as _children
from devicekit.redirect import shims as _shims
from devicekit.redirect.layer import Layer
from devicekit.redirect.marks import mark
from devicekit.redirect.naming import CURRENT, cuda_index
from devicekit.redirect.recording import Record
from devicekit.redirect.target import Target

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LAST", "Redirect", "SURFACE", "TRANSLATING"]

SURFACE = (
    "devices",
    "modules",
    "namespace",
    "memory",
    "refusals",
    "random",
    "streams",
    "accelerator",
    "typed",
    "amp",
    "pinning",
    "loading",
    "storages",
    "safetensors",
    "distributed",
    "parallel",
    "packages",
    "extensions",
)
"""The parts of torch that both ways replace, in this order: modules with ``install(redirect)``."""

TRANSLATING = ("factories", "tensors")
"""What is replaced so that tensors of "cuda" are tensors of the target, and say so."""

LAST = ("lazy", "scripting", "compiling")
"""Parts of the surface that must know all that the others have replaced."""

_OWN = ("torch", "devicekit")


class Redirect:
    """A context in which "cuda" means another device. It can be entered several times, also inside another one.

    All threads of the process are redirected; what they hold stays what it is afterwards.

    Attributes:
        target: what "cuda" stands for.
        record: counts what was redirected and where; None: nobody wants to know.
        strict: tensors look as if they were on CUDA, to the program.
        autocast_dtype: computed in place of float16 under autocast; None: float16.
        shims: packages made for CUDA that stand-ins in plain torch are imported for.
        children: how processes that are started meanwhile are redirected; None: they are not.
    """

    def __init__(
        self,
        target: Target,
        *,
        record: Record | None = None,
        autocast_dtype: Any = None,
        strict: bool = False,
        shims: Sequence[str] = (),
        children: _children.Settings | None = None,
    ) -> None:
        self.target = target
        self.torch = target.torch
        self.record = record
        self.strict = strict
        self.autocast_dtype = autocast_dtype
        self.shims = _shims.checked(shims)
        self.children = children
        self.host_device: Any = None
        """The object that ``torch.device("cpu")`` gives: a program that holds it has written the host down."""
        self.settler: Callable[[Any, int], Any] = mark
        self._defaults: dict[int, Any] = {}
        self._layers: list[Layer] = []

    @property
    def device(self) -> Any:
        """Where tensors of "cuda" really lie now: a torch.device."""
        return self.target.real(self.target.current)

    @property
    def layer(self) -> Layer:
        """The replacements that belong to the innermost entry."""
        return self._layers[-1]

    def __enter__(self) -> Self:
        layer = Layer()
        self._layers.append(layer)
        try:
            layer.enter(self._install)
        except BaseException:
            self._layers.pop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._layers.pop().leave()

    def _install(self) -> None:
        if self.children is not None:
            _children.announce(self, self.children)
        _shims.install(self, self.shims)
        if self.target.device_type == "cuda" and not self.strict:
            return  # it means what it says
        for name in SURFACE:
            importlib.import_module(f"devicekit.redirect.surface.{name}").install(self)
        if self.strict:
            importlib.import_module("devicekit.redirect.masquerade").install(self)
        else:
            for name in TRANSLATING:
                importlib.import_module(f"devicekit.redirect.translating.{name}").install(self)
        for name in LAST:
            importlib.import_module(f"devicekit.redirect.surface.{name}").install(self)
        self.layer.reach_imported(inside)

    def settle(self, tensor: Any, index: int) -> Any:
        """A fresh tensor lies on the device of this number. Returns it."""
        return self.settler(tensor, index)

    # -- the default device ----------------------------------------------------------------------
    def default_device(self, index: int) -> Any:
        """The real device, as an object of its own: that it was the default for CUDA can be told from it."""
        if index not in self._defaults:
            self._defaults[index] = type(self.host_device)(str(self.target.real(index)))
        return self._defaults[index]

    def default_index(self, device: Any) -> int | None:
        """The number that such an object stands for; None for every other device."""
        return next((index for index, made in self._defaults.items() if made is device), None)

    # -- what the parts ask ----------------------------------------------------------------------
    def index(self, device: Any) -> int | None:
        """The number of the CUDA device that an argument names; None: it names none."""
        named = cuda_index(device)
        return self.target.current if named == CURRENT else named

    def real(self, device: Any) -> Any:
        """The device that a name of CUDA stands for; None for every other argument."""
        index = self.index(device)
        return None if index is None else self.target.real(index)

    def module(self, name: str) -> Any:
        """A module of torch that ``import torch`` may not have loaded."""
        return importlib.import_module(name)

    def note(self, what: str, *, refused: bool = False) -> None:
        """Something was redirected: ``torch.load``, ``Tensor.cuda``. Or refused, because it cannot work here."""
        if self.record is not None:
            self.record.count(what, sys._getframe(1), refused=refused)


def inside(module: str) -> bool:
    """The module is torch's or ours: it is told the truth, because it works with the real device."""
    return module.partition(".")[0] in _OWN
