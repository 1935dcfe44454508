"""Parameters of lazy modules: what torch lets a program do with them before they are made, it may do redirected."""

from __future__ import annotations

from devicekit.redirect.redirect import Redirect

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Torch keeps the functions in a list; the replacements of those that are in it belong there as well."""
    mixin = redirect.module("torch.nn.parameter").UninitializedTensorMixin
    allowed = mixin._allowed_methods
    more = [new for real, new in redirect.layer.replaced() if real in allowed]
    redirect.layer.replace(mixin, "_allowed_methods", [*allowed, *more])
