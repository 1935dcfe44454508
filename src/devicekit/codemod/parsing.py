"""Python's own parser, without its warnings: they are about other people's code, and for them."""

from __future__ import annotations

import ast
import warnings

__all__ = ["parse", "parses"]


def parse(text: str, file: str = "<text>") -> ast.Module:
    """The tree of a text.

    Raises:
        SyntaxError: this Python cannot parse it.
        ValueError: it holds a null byte.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, file)


def parses(text: str) -> bool:
    """This Python can parse it."""
    try:
        parse(text)
    except (SyntaxError, ValueError):
        return False
    return True
