"""Functions of torch that answer the program for the target, and torch's own code as ever."""

from __future__ import annotations

import functools
import numbers
import sys
from collections.abc import Callable, Mapping
from typing import Any

from devicekit.redirect.redirect import Redirect, inside
from devicekit.redirect.target import invalid_ordinal

__all__ = ["Answers", "EVERYONE", "NOBODY", "PROGRAMS", "answer", "in_place_of", "stand_in_everywhere"]

EVERYONE = None
"""Torch's own code gets the same answers as the program."""
PROGRAMS = ("torch.random",)
"""Of torch's code only what works with devices that the program names: ``torch.random.fork_rng(devices=[0])``."""
NOBODY: tuple[str, ...] = ()
"""Only the program does."""
TRACER = "torch._dynamo.variables.torch"
"""Calls what the program calls, while it compiles it."""


class Answers:
    """Functions by the names that they have in a module of torch; one for each redirect.

    What a subclass makes public replaces the function of its name. Devices are given as for torch.cuda: None, a number,
    a text or a torch.device; where tensors say the truth, their own device is taken as well.
    """

    def __init__(self, redirect: Redirect) -> None:
        self._redirect = redirect
        self._target = redirect.target
        self._torch = redirect.torch

    def _all(self) -> dict[str, Callable[..., Any]]:
        return {name: getattr(self, name) for name in dir(type(self)) if not name.startswith("_")}

    def _named(self, device: Any) -> int:
        """The number that an argument means, whether there is such a device or not; negative where it is negative.

        Raises:
            ValueError: it is a device of another type.
        """
        if device is None:
            return self._target.current
        index = self._redirect.index(device)
        if index is not None:
            return index
        if isinstance(device, numbers.Integral):
            return int(device)
        own = self._torch.device(device)
        if own.type != self._target.device_type or self._redirect.strict:
            raise ValueError(f"Expected a cuda device, but got: {device}")
        return self._target.current if own.index is None else int(own.index)

    def _at(self, device: Any = None) -> int:
        """The number of a device that exists; a negative number means the current one.

        Raises:
            RuntimeError: there is none of this number; where torch has it, an AcceleratorError.
        """
        index = self._named(device)
        if index < 0:
            return self._target.current
        if not self._target.exists(index):
            raise invalid_ordinal(self._torch)
        return index


def answer(
    redirect: Redirect, module: Any, answers: Mapping[str, Callable[..., Any]], also: tuple[str, ...] | None = PROGRAMS
) -> None:
    """Replace functions of a module by their names; those that this torch does not have are left out.

    ``also`` names the modules of torch that get them as the program does.
    """
    for name, new in answers.items():
        real = getattr(module, name, None)
        if real is not None:
            call = _answered(redirect, f"{module.__name__}.{name}", real, new, also)
            stand_in_everywhere(redirect, module, name, call)


def stand_in_everywhere(redirect: Redirect, module: Any, name: str, new: object) -> None:
    """Replace it in the module that shows it, and in the one that defines it."""
    real = getattr(module, name)
    home = sys.modules.get(getattr(real, "__module__", None) or "")
    redirect.layer.stand_in(module, name, new)
    if home not in (None, module) and vars(home).get(name) is real:
        redirect.layer.stand_in(home, name, new)


def in_place_of(real: type, make: Callable[..., Any], *also: type) -> type:
    """A class for a type from which nothing can be derived, as torch.device: calling it calls ``make``.

    Instances of ``also`` count as its own.
    """

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return make(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, (real, *also))

        def __subclasscheck__(cls, subclass: type) -> bool:
            return subclass is cls or issubclass(subclass, (real, *also))

        # torch's own tables, and those of programs, have types as keys.
        def __eq__(cls, other: object) -> bool:
            return other is cls or real == other

        def __hash__(cls) -> int:
            return hash(real)

    return Meta(real.__name__, (), {"__module__": "torch", "__doc__": real.__doc__, "__slots__": ()})


def _answered(
    redirect: Redirect, what: str, real: Any, new: Callable[..., Any], also: tuple[str, ...] | None
) -> Callable[..., Any]:
    layer, compiler = redirect.layer, redirect.torch.compiler

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not layer.on:
            return real(*args, **kwargs)
        if not compiler.is_dynamo_compiling():  # what it traces cannot look at who calls it
            asking = _asking()
            if asking == TRACER or not inside(asking):
                redirect.note(what)
            elif also is not EVERYONE and asking not in also:
                return real(*args, **kwargs)
        return new(*args, **kwargs)

    call.answer = new  # type: ignore[attr-defined]  # for what means the same elsewhere
    return call


def _asking() -> str:
    """The name of the module that has called; the layers between, of redirects inside one another, do not count."""
    frame = sys._getframe(2)
    while frame.f_globals is globals() and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))
