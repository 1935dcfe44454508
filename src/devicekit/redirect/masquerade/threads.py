"""Threads: a mode belongs to one, so each that starts while the masquerade is in force gets it as well."""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from torch.overrides import _get_current_function_mode

from devicekit.redirect.masquerade.mode import Masquerade

__all__ = ["install"]


def install(mode: Masquerade) -> None:
    """For this thread, and for those of ``threading`` and ``_thread``."""
    layer = mode.layer

    def bootstrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def _bootstrap_inner(self: Any) -> None:
            with mode if layer.on else contextlib.nullcontext():
                real(self)

        return _bootstrap_inner

    def start(real: Callable[..., Any]) -> Callable[..., Any]:
        def start_new_thread(function: Callable[..., Any], *args: Any) -> Any:
            def with_mode(*given: Any, **named: Any) -> Any:
                with mode if layer.on else contextlib.nullcontext():
                    return function(*given, **named)

            return real(with_mode, *args)

        return start_new_thread

    layer.wrap(threading.Thread, "_bootstrap_inner", bootstrap)
    layer.wrap(_thread, "start_new_thread", start)
    mode.__enter__()  # type: ignore[no-untyped-call]
    layer.at_the_end(lambda: _leave(mode))


def _leave(mode: Masquerade) -> None:
    """Where the program has put another mode above it, it stays below, and passes on."""
    if _get_current_function_mode() is mode:  # type: ignore[no-untyped-call]
        mode.__exit__(None, None, None)
