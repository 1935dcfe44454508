"""What a person can get wrong, told in one sentence."""

from __future__ import annotations

__all__ = ["BadInput"]


class BadInput(ValueError):  # noqa: N818  # it is the input that is bad, and nothing has broken
    """A file, a setting or a prompt with which nothing can be done; the message says why and what to do instead."""
