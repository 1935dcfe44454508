"""Redirect the processes that a redirected program starts, which hear of it through one environment variable.

``import torch`` calls what packages declare under ``torch.backends``; ours is :func:`autoload`. Without the variable it
does nothing, and this file imports nothing of devicekit for it. A forked process needs none of this: it is redirected
as its parent is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devicekit.redirect.redirect import Redirect

__all__ = ["MASQUERADE", "TRANSLATE", "VARIABLE", "Settings", "announce", "autoload", "enter_from", "why_unheard"]

VARIABLE = "DEVICEKIT_REDIRECT"
SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
"""torch's own: any other value than 1 keeps it from calling anybody."""

TRANSLATE, MASQUERADE = "translate", "masquerade"

_in_force: list[Settings] = []
"""How this process is redirected, and its children are to be: the innermost last."""
_told: set[str] = set()


@dataclass(frozen=True)
class Settings:
    """How a process is to be redirected, in words that another process understands."""

    device: str = "cpu"
    """As for ``redirect_cuda``; the one that was decided on, so that all processes have the same."""
    policy: str = TRANSLATE
    count: int | None = None
    memory: int | str | None = None
    """Of each simulated device, in bytes or as ``"24GiB"``; only for masquerade, as ``capability``."""
    capability: tuple[int, int] | None = None
    autocast_dtype: str | None = None
    """Without ``torch.``: ``bfloat16``."""
    shims: tuple[str, ...] = ()
    report: str | None = None
    """The folder into which the process puts what it has counted."""

    def to_json(self) -> str:
        """What goes into the variable; what was not said is left out."""
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, ())})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read the variable.

        Raises:
            DeviceKitError: it is not what ``to_json`` writes.
        """
        try:
            said = json.loads(text)
            if not isinstance(said, dict):
                raise TypeError(f"{type(said).__name__} is no object")
            unknown = said.keys() - {field.name for field in fields(cls)}
            if unknown:
                raise TypeError(f"{sorted(unknown)[0]!r} is not known")
            lists = {name: tuple(said[name]) for name in ("capability", "shims") if name in said}
            return cls(**{**said, **lists})._checked()
        except (TypeError, ValueError) as error:
            from devicekit.errors import DeviceKitError

            what = f"{VARIABLE}={text!r:.200} does not say how to redirect CUDA."
            raise DeviceKitError(what, why=str(error), try_=f"unset {VARIABLE}, which redirect_cuda() sets") from None

    def _checked(self) -> Settings:
        kinds: dict[str, Any] = {
            "device": str,
            "policy": str,
            "count": int,
            "memory": (int, str),
            "autocast_dtype": str,
            "report": str,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise TypeError(f"{name}={value!r} is of the wrong type")
        if self.policy not in (TRANSLATE, MASQUERADE):
            raise ValueError(f"policy={self.policy!r} is neither {TRANSLATE} nor {MASQUERADE}")
        if self.capability is not None and [type(number) for number in self.capability] != [int, int]:
            raise TypeError(f"capability={self.capability!r} is no pair of whole numbers")
        return self


# -- in the child ------------------------------------------------------------------------------------
def autoload() -> None:
    """What ``import torch`` calls at its end.

    Raises:
        DeviceKitError: the variable cannot be read, or the device cannot be used; then ``import torch`` fails as well,
            because the program would run on another device than its parent.
    """
    text = os.environ.get(VARIABLE)
    if text and not _in_force:
        enter_from(Settings.from_json(text))


def enter_from(settings: Settings) -> Redirect:
    """Redirect this process until it ends.

    Raises:
        DeviceKitError: the device cannot be used here, or the settings make no sense.
    """
    with _counts_as_imported("torch"):
        redirect = _redirect(settings)
        redirect.__enter__()
    _in_force.append(settings)
    return redirect


def _redirect(settings: Settings) -> Redirect:
    from devicekit.errors import DeviceKitError
    from devicekit.host import current
    from devicekit.redirect.recording import Record
    from devicekit.redirect.redirect import Redirect
    from devicekit.redirect.simulated import SimulatedTarget, in_bytes
    from devicekit.redirect.target import DecidedTarget, Target
    from devicekit.resolve import resolver

    torch = current().torch()
    strict = settings.policy == MASQUERADE
    if strict:
        memory = in_bytes(settings.memory or "24GiB")
        target: Target = SimulatedTarget(torch, settings.count or 1, memory, settings.capability or (8, 6))
    else:
        target = DecidedTarget(resolver().decide(settings.device, strict=True), settings.count)
    dtype = getattr(torch, settings.autocast_dtype, "") if settings.autocast_dtype else None
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise DeviceKitError(f"{settings.autocast_dtype!r} is no dtype of torch.", try_='"float16", "bfloat16"')
    record = Record.of_child(settings.report) if settings.report else None
    return Redirect(target, record=record, autocast_dtype=dtype, strict=strict, shims=settings.shims)


@contextlib.contextmanager
def _counts_as_imported(name: str) -> Iterator[None]:
    """Inside, other threads can import the module, though this thread is not yet through with it.

    Drivers are asked in threads, which import torch's plugins, which import torch. They would wait for us, and we for
    them. All that torch does after the autoload is to set up its logging.
    """
    spec: Any = getattr(sys.modules.get(name), "__spec__", None)
    before = getattr(spec, "_initializing", False)
    if before:
        spec._initializing = False
    try:
        yield
    finally:
        if before:
            spec._initializing = True


# -- in the parent -----------------------------------------------------------------------------------
def announce(redirect: Redirect, settings: Settings) -> None:
    """Tell the processes that are started while the redirect's layer is in force.

    Warns, once a process, where they would not hear it.
    """
    layer, record = redirect.layer, redirect.record
    if record is not None:
        settings = replace(settings, report=record.share())
        layer.at_the_end(record.close)
    from importlib.metadata import entry_points

    reason = why_unheard(os.environ, [point.value for point in entry_points(group="torch.backends")])
    if reason and reason not in _told:
        _told.add(reason)
        warnings.warn(f"processes that are started from here are not redirected: {reason}", stacklevel=2)
    layer.put(os.environ, VARIABLE, settings.to_json())
    _in_force.append(settings)
    layer.at_the_end(lambda: _in_force.__delitem__(-1))


def why_unheard(env: Mapping[str, str], plugins: Sequence[str]) -> str:
    """Why processes with this environment would not know; empty where they do.

    Args:
        env: the environment.
        plugins: what installed packages declare under ``torch.backends``.
    """
    if env.get(SWITCH, "1") != "1":
        return f"{SWITCH}={env[SWITCH]} keeps torch from asking devicekit; unset it"
    if f"{__name__}:autoload" not in plugins:
        return "devicekit is not installed, or as it was before it could do this: pip install devicekit"
    return ""
