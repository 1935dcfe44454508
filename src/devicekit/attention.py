"""Say which kernel attention will use and why not a faster one: torch chooses in silence, and falls back in silence."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from devicekit.backend import Backend
from devicekit.contexts import Repeatable
from devicekit.errors import DeviceKitError
from devicekit.values import AttentionCase

__all__ = ["Attention", "AttentionChoice", "as_case", "attention", "choose"]

log = logging.getLogger("devicekit")

PACKAGE = "flash-attn"
NEVER = "scaled_dot_product_attention never calls the package"
SWITCHES = {
    "flash": "flash_sdp_enabled",
    "memory-efficient": "mem_efficient_sdp_enabled",
    "cudnn": "cudnn_sdp_enabled",
    "math": "math_sdp_enabled",
}
"""Kernels, to the functions of ``torch.backends.cuda`` that say, for all devices, whether they may be used."""
NONE = "none"


@dataclass(frozen=True, slots=True)
class Attention:
    """The kernel that ``scaled_dot_product_attention`` will use."""

    name: str
    """``flash``, ``memory-efficient``, ``cudnn``, ``onednn``, ``npu-fused``, ``math``, or a third party's word;
    ``none`` where there is none, or all are switched off."""
    why_not: Mapping[str, str]
    """Every faster candidate that will not be used, to the reason; the package flash-attn among them."""
    flash_attn: bool
    """The package flash-attn is installed and takes this: worth choosing where a pipeline has a choice."""

    def __str__(self) -> str:
        return self.name


def as_case(dtype: Any, *, head_dim: int | None, mask: bool, dropout: float, training: bool) -> AttentionCase:
    """The case that a caller describes.

    Raises:
        DeviceKitError: a figure makes no sense.
    """
    if head_dim is not None and (type(head_dim) is not int or head_dim < 1):
        raise DeviceKitError(f"head_dim={head_dim!r} is no size.", try_="a whole number from 1 on")
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise DeviceKitError(f"dropout={dropout!r} is no probability.", try_="0.1")
    return AttentionCase(dtype, head_dim, mask, float(dropout), training)


def attention(backend: Backend, index: int, case: AttentionCase) -> Attention:
    """The answer for one device, with torch's switches as they are now."""
    package = _package_problem(backend, index, case)
    why_not = {PACKAGE: package or NEVER}
    for name, problem in backend.attention_kernels(case, index).items():
        reason = problem or _switched_off(backend, name)
        if not reason:
            return Attention(name, why_not, not package)
        why_not[name] = reason
    return Attention(NONE, why_not, not package)


def _package_problem(backend: Backend, index: int, case: AttentionCase) -> str:
    problem = backend.flash_attn_problem(case, index)
    return problem or ("" if backend.host.installed("flash_attn") else f"{PACKAGE} is not installed")


def _switched_off(backend: Backend, name: str) -> str:
    enabled = getattr(backend.torch.backends.cuda, SWITCHES.get(name, ""), None)
    return "it is switched off" if enabled is not None and not enabled() else ""


class AttentionChoice(Repeatable):
    """A context, or a decorator, in which attention uses one kernel, or the best one.

    It can be entered again, also inside of itself. Torch's switches are the process's, so this is for all threads.
    """

    __slots__ = ("name",)

    name: str | None
    """The kernel; None: whichever torch prefers."""

    def __init__(self, start: Callable[[], contextlib.AbstractContextManager[Any]], name: str | None) -> None:
        super().__init__(start)
        self.name = name

    def __repr__(self) -> str:
        return f"<attention by {self.name or 'the best kernel'}>"


def choose(backend: Backend, index: int, case: AttentionCase, name: str | None) -> AttentionChoice:
    """A context for this kernel.

    Raises:
        DeviceKitError: there is no such kernel here, or it does not take this case.
    """
    kernels = backend.attention_kernels(case, index)
    usable = [known for known, reason in kernels.items() if not reason]
    if name not in (None, *usable) or not usable:
        _refuse(backend, index, case, name, kernels)
    names = tuple(kernels) if name is None else (name,)
    backend.select_attention(names)  # raises now, not when it is entered
    problem = backend.flash_attn_problem(case, index)

    @contextlib.contextmanager
    def chosen() -> Any:
        with backend.select_attention(names), _diffusers(backend, problem, named=name is not None):
            yield

    return AttentionChoice(chosen, name)


def _refuse(
    backend: Backend, index: int, case: AttentionCase, name: str | None, kernels: Mapping[str, str]
) -> NoReturn:
    what = f"Attention cannot use {name or 'any kernel'} on the {backend.name} backend."
    usable = [repr(known) for known, reason in kernels.items() if not reason]
    try_ = " or ".join([*usable, "None for the best"]) if usable else ""
    if name == PACKAGE:
        why = _package_problem(backend, index, case) or NEVER
        try_ = f'the library\'s own switch, as attn_implementation="flash_attention_2" in transformers; here {try_}'
    elif name is None or name in kernels:
        why = kernels[name or next(iter(kernels))]
    else:
        why = f"it has {', '.join(kernels)}"
    raise DeviceKitError(what, why=why, try_=try_)


def _diffusers(backend: Backend, problem: str, *, named: bool) -> contextlib.AbstractContextManager[Any]:
    """Diffusers' own dispatch on its ``native`` backend, where it would not come to the kernel, or would fail.

    ``DIFFUSERS_ATTN_BACKEND=flash`` is believed without a check, and the first attention then calls None
    (diffusers/models/attention_dispatch.py).
    """
    dispatch = backend.host.loaded("diffusers.models.attention_dispatch")
    registry = getattr(dispatch, "_AttentionBackendRegistry", None)  # from diffusers 0.35 on
    if dispatch is None or registry is None:
        return contextlib.nullcontext()
    active = registry.get_active_backend()[0]
    reason = "a kernel was chosen" if named else _diffusers_problem(dispatch, active, problem)
    if active.value == "native" or not reason:
        return contextlib.nullcontext()
    log.info("diffusers uses native instead of %s: %s", active.value, reason)
    return dispatch.attention_backend("native")  # type: ignore[no-any-return]


def _diffusers_problem(dispatch: Any, active: Any, problem: str) -> str:
    """What diffusers checks when a backend is not set by the variable; and whether flash-attn is for this device."""
    try:
        dispatch._check_attention_backend_requirements(active)
    except RuntimeError as exc:
        return str(exc)
    packages = ("flash", "flash_varlen", "_flash_3", "_flash_varlen_3")
    return problem if active.value in packages else ""
