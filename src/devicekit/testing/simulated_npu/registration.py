"""The order in which a device is made known to torch. Once per process, with no way back."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.backend_registration as backend_registration

from devicekit.testing.simulated_npu import npu
from devicekit.testing.simulated_npu.accelerator import answer_torch_accelerator
from devicekit.testing.simulated_npu.autocast import register_autocast
from devicekit.testing.simulated_npu.factories import register_factories
from devicekit.testing.simulated_npu.generator import NpuGenerator, answer_torch_generator
from devicekit.testing.simulated_npu.machine import NAME, Machine, is_installed, set_machine
from devicekit.testing.simulated_npu.storage import answer_torch_storage

if TYPE_CHECKING:
    from devicekit.testing.simulated_npu.settings import Settings

__all__ = ["register"]

_SETUP = "_setup_privateuseone_for_python_backend"


def register(settings: Settings) -> None:
    """Register the device with torch; RuntimeError where it cannot be, with the reason."""
    reason = _obstacle()
    if reason:
        raise RuntimeError(f"the simulated npu cannot be installed: {reason}")
    setup: Any = getattr(backend_registration, _SETUP)
    made = Machine(settings)
    set_machine(made)
    # torch.device("npu") is legal from here on.
    setup(NAME, backend_module=npu, hook=_hooks())
    answer_torch_generator()
    answer_torch_storage()
    answer_torch_accelerator()
    register_factories()
    register_autocast()
    _give_generator(made)
    _add_modules()


def _obstacle() -> str:
    """Why this process cannot have the device; empty when it can."""
    if is_installed():
        return "this process has one already, and torch cannot forget it"
    taken = torch._C._get_privateuse1_backend_name()
    if taken != "privateuseone" or hasattr(torch, "privateuseone"):
        return f"torch's PrivateUse1 is taken already, by {taken!r}"
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        return (
            f"torch {torch.__version__} is built for {accelerator.type}, and it holds one "
            "accelerator per process; use a CPU build of torch"
        )
    if not hasattr(backend_registration, _SETUP) or type(torch.Generator) is type:
        return f"torch {torch.__version__} cannot host a Python backend as torch 2.13 can"
    return ""


def _hooks() -> Any:
    """The answers to the three questions that torch's C++ asks a Python backend."""

    class Hooks(torch._C._acc.PrivateUse1Hooks):  # an older torch does not have it
        def is_available(self) -> bool:
            return npu.is_available()

        def has_primary_context(self, device_index: int) -> bool:
            return npu.is_initialized()

        def is_built(self) -> bool:
            return True

    return Hooks()


def _give_generator(made: Machine) -> None:
    if made.settings.count:
        made.generators = npu.default_generators = (NpuGenerator(),)


def _add_modules() -> None:
    """Make ``import torch_npu`` and ``import torch.npu.memory`` find the simulation."""
    torch_npu: Any = types.ModuleType("torch_npu", "A stand-in that a simulated device installed.")
    # importlib.util.find_spec("torch_npu") is how libraries look for it; without a spec it raises.
    torch_npu.__spec__ = importlib.machinery.ModuleSpec("torch_npu", loader=None)
    torch_npu.__version__ = torch.__version__.split("+")[0] + "+simulated"
    torch_npu.npu = npu
    sys.modules["torch_npu"] = torch_npu
    for parent in ("torch", "torch_npu"):
        sys.modules[f"{parent}.{NAME}"] = npu
        for part in ("memory", "random", "streams"):
            sys.modules[f"{parent}.{NAME}.{part}"] = getattr(npu, part)
