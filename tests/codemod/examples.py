"""The rules' own examples, by name, and what running one gives."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import devicekit
from devicekit.codemod.checking import check
from devicekit.codemod.module import Module
from devicekit.codemod.rewriting import rewritten
from devicekit.codemod.rule import Example, Rewrites, Rule
from devicekit.codemod.rules import all_rules

NO_CUDA = (
    "not compiled with CUDA",
    "no NVIDIA driver",
    "Cannot get CUDA generator",
    "Cannot access accelerator device",
    "has no attribute '_cuda",
    "dummy base class",
    "NCCL",
    "CUDA",
    "allocated_bytes",
    "modulo by zero",
    "pin_memory allocator",
)
"""What stock torch says without CUDA: code that ends so did not run before, so there is nothing to compare."""


def every(kind: type[Example]) -> list[tuple[str, Rule, Any]]:
    """All examples of a kind, with an id that says where to find them."""
    return [
        (f"{rule.name}-{number}", rule, example)
        for rule in all_rules()
        for number, example in enumerate(rule.examples)
        if isinstance(example, kind)
    ]


def migrated(text: str) -> str:
    """The text after all rules, as `migrate` would write it."""
    module = Module(text)
    return rewritten(module, check(module, all_rules()))


def value_of(code: str, expression: str) -> object:
    """What the expression is after the code has run, as plain Python."""
    space: dict[str, Any] = {"__name__": "example"}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _as_it_was():
        warnings.simplefilter("ignore")
        exec(compile(code, "<example>", "exec"), space)
        return plain(eval(expression, space)) if expression else None


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Examples set what counts for the whole process: the default dtype and device, the current stream."""
    dtype, here = torch.get_default_dtype(), devicekit.DeviceManager("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)
        here.set_stream(here.default_stream())


def value_or_error(code: str, expression: str) -> tuple[bool, object]:
    """Whether the code runs, and the value; or the error, in words."""
    try:
        return True, value_of(code, expression)
    except Exception as exc:
        return False, f"{type(exc).__name__}: {exc}"


def plain(value: Any) -> object:
    """Tensors as lists; the rest as it is."""
    return value.detach().cpu().tolist() if hasattr(value, "detach") else value


def alike(one: object, other: object) -> bool:
    """The same numbers."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def runnable() -> Iterator[tuple[str, Rewrites]]:
    """Every example whose result can be executed."""
    for name, _, example in every(Rewrites):
        if example.runs:
            yield name, example
