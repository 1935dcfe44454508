"""A context that can be entered again, also inside of itself, and be a decorator: who keeps one can use it anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Repeatable"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Repeatable:
    """Enters what ``start`` gives, anew each time."""

    __slots__ = ("_entered", "_start")

    def __init__(self, start: Callable[[], AbstractContextManager[Any]]) -> None:
        self._start = start
        self._entered: list[AbstractContextManager[Any]] = []

    def __enter__(self) -> Self:
        started = self._start()
        started.__enter__()
        self._entered.append(started)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._entered.pop().__exit__(*raised)

    def __call__(self, function: Function) -> Function:
        """The function inside of this context; each call in one of its own, for threads may call it at once."""

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self._start():
                return function(*args, **kwargs)

        return inside  # type: ignore[return-value]  # it has the same signature
