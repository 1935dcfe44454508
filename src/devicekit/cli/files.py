"""Files that options name: that one cannot be written is said before the work that would fill it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from devicekit.drafts import Draft
from devicekit.errors import DeviceKitError

__all__ = ["draft", "told_as_ours"]


@contextlib.contextmanager
def draft(option: str, path: str | None) -> Iterator[Draft | None]:
    """The file that an option names, as long as it is not there; None without one.

    Raises:
        DeviceKitError: it cannot be written.
    """
    if path is None:
        yield None
        return
    with told_as_ours(option, path):
        made = Draft(path)
    with made:
        yield made


@contextlib.contextmanager
def told_as_ours(option: str, path: str) -> Iterator[None]:
    """The system's errors in our words."""
    try:
        yield
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        why = getattr(exc, "strerror", None) or str(exc)
        what = f"{option} {path} cannot be written."
        raise DeviceKitError(what, why=why, try_="a file in a folder that you may write to") from exc
