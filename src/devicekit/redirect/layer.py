"""What stands in place of torch's own functions while a redirect is in force, and how all of it is taken back."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, TypeVar

__all__ = ["Layer"]

F = TypeVar("F", bound=Callable[..., Any])

_ABSENT = object()
_LOCK = threading.RLock()
_STACK: list[Layer] = []
"""The layers in force, the innermost last: each replaced what it found, so they must be taken back from the top."""


class Layer:
    """Replacements that are undone together, the last one first.

    A replacement may outlive its layer: a program can keep what it imported meanwhile. So each asks ``on``, and does
    what the original does when the layer is no longer in force.
    """

    def __init__(self) -> None:
        self.on = False
        self._undo: list[Callable[[], None]] = []
        self._replaced: dict[int, tuple[object, object]] = {}

    # -- what can be put in place ----------------------------------------------------------------
    def replace(self, owner: Any, name: str, new: object) -> None:
        """Set an attribute of a module or a class. What a class only inherits is inherited again afterwards."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, new)
        if before is _ABSENT:
            self.at_the_end(lambda: delattr(owner, name))
        else:
            self.at_the_end(lambda: setattr(owner, name, before))

    def wrap(self, owner: Any, name: str, make: Callable[[Any], F]) -> None:
        """Replace a function by what ``make`` builds around it; nothing where this torch has no such function.

        ``make`` gets the original, or the replacement of the layer below.
        """
        real = getattr(owner, name, None)
        if real is None:
            return
        new = make(real)
        with contextlib.suppress(AttributeError, TypeError):  # some originals have no signature to take over
            functools.update_wrapper(new, real)
        self.stand_in(owner, name, new)

    def wrap_in(self, owners: Sequence[Any], name: str, make: Callable[[Any], F]) -> None:
        """The same with one replacement in all modules that hold the function; it comes from the first."""
        real = getattr(owners[0], name, None)
        self.wrap(owners[0], name, make)
        for owner in owners[1:]:
            if real is not None and getattr(owner, name, None) is real:
                self.replace(owner, name, getattr(owners[0], name))

    def stand_in(self, owner: Any, name: str, new: object) -> None:
        """Replace it, also where other modules hold it already; see :meth:`reach_imported`."""
        real = getattr(owner, name)
        self._replaced[id(real)] = (real, new)
        self.replace(owner, name, new)

    def replaced(self) -> list[tuple[Any, Any]]:
        """Originals and what stands for them."""
        return list(self._replaced.values())

    def guarded(self, real: F, new: F) -> F:
        """``new`` while the layer is in force, ``real`` afterwards."""

        @functools.wraps(real)
        def either(*args: Any, **kwargs: Any) -> Any:
            return (new if self.on else real)(*args, **kwargs)

        return either  # type: ignore[return-value]

    def put(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of a table."""
        before = mapping.get(key, _ABSENT)
        mapping[key] = value
        if before is _ABSENT:
            self.at_the_end(lambda: mapping.pop(key, None))
        else:
            self.at_the_end(lambda: mapping.__setitem__(key, before))

    def insert(self, items: list[Any], at: int, item: Any) -> None:
        """Put an entry into a list; at the end it is taken out wherever it then stands."""
        items.insert(at, item)
        self.at_the_end(lambda: _take_out(items, item))

    def at_the_end(self, undo: Callable[[], None]) -> None:
        """Do this when the layer is taken back."""
        self._undo.append(undo)

    def reach_imported(self, inside: Callable[[str], bool]) -> None:
        """Replace the originals also where modules hold them under a name: ``from torch import zeros`` came before us.

        Args:
            inside: of a module's name: it belongs to those that are left alone.
        """
        for module_name, module in list(sys.modules.items()):
            if module is None or inside(module_name):
                continue
            for name, value in list(getattr(module, "__dict__", {}).items()):
                found = self._replaced.get(id(value))
                if found is not None and found[0] is value:
                    self.replace(module, name, found[1])

    # -- in force, and not -----------------------------------------------------------------------
    def enter(self, install: Callable[[], None]) -> None:
        """Be in force from now on, above all others. What was put in place is taken back when ``install`` fails."""
        with _LOCK:
            _STACK.append(self)
            try:
                install()
                self.on = True
            except BaseException:
                self.leave()
                raise

    def leave(self) -> None:
        """Be in force no longer. Below another layer the replacements stay until that one goes, and pass on."""
        with _LOCK:
            self.on = False
            while _STACK and not _STACK[-1].on:
                _STACK.pop()._take_back()

    def _take_back(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._replaced.clear()


def _take_out(items: list[Any], item: Any) -> None:
    for at, each in enumerate(items):
        if each is item:
            del items[at]
            return
