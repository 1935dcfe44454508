"""What a check is: a few lines of a CUDA program, with what comes out on a real NVIDIA GPU; and how one is run.

The same lines run natively on a machine with CUDA, which is the judge, and under each policy of the redirect. Checks
are written from what CUDA does, whatever the redirect does.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CHECKS", "MIXED", "NPU", "POLICIES", "SAME", "Check", "Differs", "Outcome", "Raises", "Skipped", "check",
    "entered", "group", "run",
]  # fmt: skip

NATIVE, TRANSLATE, MASQUERADE, NPU = POLICIES = ("native", "translate", "masquerade", "npu")
"""A real NVIDIA GPU; the processor told truly; two simulated GPUs; the simulated npu told truly."""
COUNT = 2
QUIET = (DeprecationWarning, FutureWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""About the program's age, wherever it runs."""


@dataclass(frozen=True)
class Raises:
    """The outcome is an error.

    Args:
        error: the type, or several.
        words: a regular expression, found in the text.
    """

    error: type[BaseException] | tuple[type[BaseException], ...]
    words: str = ""


@dataclass(frozen=True)
class Skipped:
    """The check says nothing under this policy."""

    reason: str


@dataclass(frozen=True)
class Differs:
    """What comes out under this policy, knowingly other than on a GPU, and why."""

    outcome: Any
    reason: str


SAME: Any = object()
"""As on a GPU."""


@dataclass(frozen=True)
class Check:
    """One idiom.

    Attributes:
        name: the idiom in words, the same for ever.
        group: what it is about.
        program: takes nothing, and returns something that can be compared and printed.
        expected: what it returns on a GPU, or Raises.
        others: the same under the other policies, where it is not what a GPU gives.
        needs_devices: of CUDA.
        process: it changes the process, or starts some; so it gets one of its own.
        warns: a warning that is given on a GPU too.
        text_unverified: the words of the error were not read in torch's sources or libraries.
    """

    name: str
    group: str
    program: Callable[[], Any]
    expected: Any
    others: dict[str, Any]
    needs_devices: int = 1
    process: bool = False
    warns: str = ""
    text_unverified: bool = False

    def expects(self, policy: str) -> Any:
        """The outcome under a policy."""
        said = self.others.get(policy, SAME)
        if said is SAME and policy == NPU:
            said = self.others.get(TRANSLATE, SAME)
        return self.expected if said is SAME else said


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        verdict: "ok", "differs", "error" (it raised and should not have) or "skipped".
        value: as text; of an error its type and the first line of what it says.
        why: what was expected instead, or why it was skipped.
    """

    name: str
    verdict: str
    value: str
    why: str = ""


MIXED = Raises(
    RuntimeError,
    r"Expected all tensors to be on the same device, but (found at least two devices, \w+(:0)? and \w+(:0)?!"
    r"|got \w+ is on \w+(:0)?, different from other tensors on \w+(:0)?)",
)
"""TensorIterator's words, and those of kernels that check their arguments one by one (common_device_check_failure)."""

CHECKS: dict[str, Check] = {}
_group = ""


def group(name: str) -> None:
    """The checks that follow are about this."""
    global _group
    _group = name


def check(
    name: str,
    expected: Any = True,
    *,
    translated: Any = SAME,
    masqueraded: Any = SAME,
    npu: Any = SAME,
    needs_devices: int = 1,
    process: bool = False,
    warns: str = "",
    text_unverified: bool = False,
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Make a check of a function.

    Args:
        name: the idiom in words.
        expected: what it returns on a GPU, or Raises.
        translated: what it returns where tensors say the truth, if that is something else; a function of the real
            device where it depends on that. Such a check asks for CUDA's identity.
        masqueraded: a Differs, where even the simulated GPU cannot do what a GPU does.
        npu: where an npu differs from a processor: its rules (tensors do not mix), and what the simulation lacks.
        needs_devices: of CUDA.
        process: it changes the process, or starts some.
        warns: a regular expression of the warning that a GPU gives too.
        text_unverified: the words of the error were not read in torch's sources or libraries.
    """

    def made(program: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in CHECKS, name
        others = {TRANSLATE: translated, MASQUERADE: masqueraded, NPU: npu}
        CHECKS[name] = Check(name, _group, program, expected, others, needs_devices, process, warns, text_unverified)
        return program

    return made


# -- running -----------------------------------------------------------------------------------------
def run(one: Check, policy: str, device: Any) -> Outcome:
    """Run a check; the policy is in force already.

    Args:
        one: the check.
        policy: its name.
        device: where tensors of "cuda" really lie.
    """
    expected = one.expects(policy)
    if policy == NATIVE and _devices() < one.needs_devices:
        expected = Skipped(f"it needs {one.needs_devices} devices")
    if isinstance(expected, Skipped):
        return Outcome(one.name, "skipped", "", expected.reason)
    if isinstance(expected, Differs):
        expected = expected.outcome
    if callable(expected) and not isinstance(expected, type):
        expected = expected(device)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            value = one.program()
        except Exception as error:
            found = _failed(one, expected, error)
        else:
            good = not isinstance(expected, Raises) and type(value) is type(expected) and value == expected
            found = Outcome(
                one.name, "ok" if good else "differs", repr(value), "" if good else f"expected {expected!r}"
            )
    unexpected = [w for w in warned if not issubclass(w.category, QUIET) and not _allowed(one, str(w.message))]
    if found.verdict == "ok" and unexpected:
        first = unexpected[0]
        return Outcome(one.name, "differs", found.value, f"warned {first.category.__name__}: {_line(first.message)}")
    return found


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


def _allowed(one: Check, text: str) -> bool:
    return bool(one.warns) and re.search(one.warns, text) is not None


def _failed(one: Check, expected: Any, error: Exception) -> Outcome:
    value = f"{type(error).__name__}: {_line(error)}"
    if not isinstance(expected, Raises):
        return Outcome(one.name, "error", value, f"expected {expected!r}")
    if isinstance(error, expected.error) and re.search(expected.words, str(error), re.DOTALL):
        return Outcome(one.name, "ok", value)
    return Outcome(one.name, "differs", value, f"expected {expected!r}")


def _line(said: object) -> str:
    return next(iter(str(said).strip().splitlines()), "")[:300]


# -- policies ----------------------------------------------------------------------------------------
@contextlib.contextmanager
def entered(policy: str, *, children: bool = False) -> Iterator[Any]:
    """A policy in force; gives the device where tensors of "cuda" really lie.

    Args:
        policy: one of POLICIES. "npu" installs the simulated npu, which the process then keeps.
        children: redirect the processes that are started inside as well.
    """
    import torch

    if policy == NATIVE:
        yield torch.device("cuda")
        return
    if policy == NPU:
        from devicekit.testing.simulated_npu import install

        if not hasattr(torch, "npu"):
            install()
    with _redirect(policy, children) as redirect:
        yield redirect.device


def _redirect(policy: str, children: bool) -> Any:
    import devicekit
    from devicekit.redirect.children import MASQUERADE as STRICT
    from devicekit.redirect.children import Settings
    from devicekit.testing import simulated_cuda

    if policy != MASQUERADE:
        return devicekit.redirect_cuda("cpu" if policy == TRANSLATE else "npu", count=COUNT, children=children)
    gpus: dict[str, Any] = {"count": COUNT, "memory": "24GiB", "capability": (8, 6)}
    redirect = simulated_cuda(**gpus)
    if children:
        redirect.children = Settings(policy=STRICT, **gpus)
    return redirect
