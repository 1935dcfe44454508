"""What is to be done to a module once a program imports it, which it may never do: nothing is imported for our sake."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from devicekit.redirect.layer import Layer

__all__ = ["when_imported"]


def when_imported(layer: Layer, name: str, do: Callable[[Any], None]) -> None:
    """Do it now, if the module is there already, else right after its import, if the layer is still in force then.

    Args:
        layer: what is done belongs to it, and is taken back with it.
        name: the module's.
        do: gets the module.
    """
    module = sys.modules.get(name)
    if module is not None:
        do(module)
    else:
        layer.insert(sys.meta_path, 0, _Watch(layer, name, do))


class _Watch(importlib.abc.MetaPathFinder):
    """Finds nothing itself: has the others find the module, and its loader call us when the module is ready."""

    def __init__(self, layer: Layer, name: str, do: Callable[[Any], None]) -> None:
        self._layer = layer
        self._name = name
        self._do = do

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """What the finders behind this one find. Those of the layers below are among them, so theirs is done first."""
        if fullname != self._name or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Any) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None or isinstance(loader, type):  # a namespace without code; what is built into Python
            return

        def exec_module(module: ModuleType) -> None:
            if module.__name__ == self._name:  # some loaders serve several modules
                vars(loader).pop("exec_module", None)  # the module keeps its loader as it was
            execute(module)
            if module.__name__ == self._name and self._layer.on:
                self._do(module)

        loader.exec_module = exec_module
