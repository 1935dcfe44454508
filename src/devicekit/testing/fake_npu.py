"""torch.npu and torch_npu of a machine that is data."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

from devicekit.host import AUTOLOAD, compiled_accelerator
from devicekit.testing.fake_runtime import FakeRuntime
from devicekit.testing.machines import Card
from devicekit.testing.simulated_npu.settings import SOC_VERSIONS

__all__ = ["FakeNpu", "ProcessAborted", "import_torch_npu"]

_FIRST_WITH_BFLOAT16 = SOC_VERSIONS["Ascend910B1"]


class ProcessAborted(BaseException):
    """Here a real process would have died. It goes through every ``except Exception``, so that a test sees it."""


class FakeNpu(FakeRuntime):
    """One CANN runtime."""

    _name = "npu"
    _label = "NPU"

    def _is_compiled(self) -> bool:
        return True

    def _visible(self) -> tuple[Card, ...]:
        """Digits and commas; what follows anything else is ignored, and numbers that do not ascend leave none."""
        cards = self._machine.cards_of("huawei")
        mask = self._torch._env.get("ASCEND_RT_VISIBLE_DEVICES")
        if mask is None:
            return cards
        leading = re.match(r"[0-9,]*", mask)
        numbers = [int(n) for n in (leading.group() if leading else "").split(",") if n]
        if numbers != sorted(set(numbers)) or any(n >= len(cards) for n in numbers):
            return ()
        return tuple(cards[n] for n in numbers)

    def _properties(self, card: Card) -> Any:
        return SimpleNamespace(name=card.name, total_memory=card.total, major=None, minor=None)

    def get_soc_version(self) -> int:
        """The chip's number in NpuVariables.h; starts the runtime."""
        self._lazy_init()
        return SOC_VERSIONS[self._cards()[self._current].architecture]

    default_stream = FakeRuntime._default_stream

    def is_bf16_supported(self, including_emulation: bool = False) -> bool:
        """From 910B1 on; starts the runtime."""
        return self.get_soc_version() >= _FIRST_WITH_BFLOAT16


def import_torch_npu(torch: Any) -> Any:
    """What ``import torch_npu`` does on this machine, with its side effects.

    Raises:
        ImportError: CANN is not there; TORCH_DEVICE_BACKEND_AUTOLOAD is left at "0".
        ProcessAborted: this torch is built for another accelerator.
    """
    env, machine = torch._env, torch._machine
    other = compiled_accelerator(torch)
    if other:
        raise ProcessAborted(f"torch_npu was imported beside a torch for {other}: std::terminate inside dlopen")
    if machine.plugin_failure:
        env[AUTOLOAD] = "0"
        raise ImportError(machine.plugin_failure, name="_C")
    if "ASCEND_HOME_PATH" not in env:
        sys.stdout.write("Warning: ASCEND_HOME_PATH environment variable is not set.\n")
    torch._register_npu()
    version = torch.__version__.partition("+")[0]
    return SimpleNamespace(__name__="torch_npu", __version__=version, npu=torch.npu, _autoload=lambda: None)
