"""torch.cuda of a machine that is data: NVIDIA's, and AMD's under the same names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from devicekit.backends import _visible
from devicekit.testing.fake_runtime import FakeRuntime
from devicekit.testing.machines import Build, Card

__all__ = ["FakeCuda", "covers", "gfx_seen"]

TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version {found}). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx "
    "Alternatively, go to: https://pytorch.org to install a PyTorch version that has been compiled with your version "
    "of the CUDA driver. (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)"
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)


class FakeCuda(FakeRuntime):
    """One CUDA or HIP runtime."""

    _warned = False

    @property
    def _build(self) -> Build:
        return self._torch._build

    @property
    def _hip(self) -> bool:
        return self._build.hip is not None

    def _is_compiled(self) -> bool:
        return self._build.cuda is not None or self._hip

    default_stream = FakeRuntime._default_stream

    # -- what is there ----------------------------------------------------------------------------
    def _driver_is_new_enough(self) -> bool:
        if self._machine.driver is None:
            return False
        return _major(self._machine.driver) >= _major(self._build.cuda)

    def _visible(self) -> tuple[Card, ...]:
        env = self._torch._env
        if self._hip:
            second = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"
            return self._masked(self._masked(self._machine.cards_of("amd"), "ROCR_VISIBLE_DEVICES"), second)
        if not self._driver_is_new_enough():
            return ()
        cards = self._in_cuda_order()
        mask = env.get("CUDA_VISIBLE_DEVICES", "").strip()
        if mask.startswith("MIG-"):
            named = mask.split(",")[0]
            return tuple(s for c in cards for s in c.slices if s.uuid == named)
        return tuple(c.slices[0] if c.slices else c for c in self._masked(cards, "CUDA_VISIBLE_DEVICES"))

    def _in_cuda_order(self) -> tuple[Card, ...]:
        """The fastest card first and the others as on the bus, unless CUDA_DEVICE_ORDER says all as on the bus."""
        cards = self._machine.cards_of("nvidia")
        if not cards or self._torch._env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
            return cards
        fastest = max(range(len(cards)), key=lambda i: (cards[i].number, cards[i].total, -i))
        return (cards[fastest], *cards[:fastest], *cards[fastest + 1 :])

    def _masked(self, cards: tuple[Card, ...], variable: str) -> tuple[Card, ...]:
        chosen = _visible.select(self._torch._env.get(variable), [c.uuid for c in cards])
        return tuple(cards[i] for i in chosen)

    def is_available(self) -> bool:
        """Never raises; marks the process, unless it was told to ask NVML."""
        if self._machine.faults.shim:
            return True
        if self._torch._env.get("PYTORCH_NVML_BASED_CUDA_CHECK") == "1":
            return self.device_count() > 0
        return super().is_available()

    def device_count(self) -> int:
        """By NVML before the start, where there is one; by the runtime else, which marks the process."""
        if self._initialized or self._hip or not self._is_compiled():
            return super().device_count()
        counted = self._device_count_nvml()
        return super().device_count() if counted < 0 else counted

    def _device_count_nvml(self) -> int:
        """The GPUs that NVML shows, whether or not the driver is new enough; -1 where it cannot be asked."""
        mask = self._torch._env.get("CUDA_VISIBLE_DEVICES")
        if _visible.hides_all(mask):
            return 0
        if self._machine.driver is None or not self._machine.nvml or (mask or "").startswith("MIG-"):
            return -1
        return len(_visible.select(mask, [c.uuid for c in self._machine.cards_of("nvidia")]))

    def _count_by_driver(self) -> int:
        driver = self._machine.driver
        if not self._hip and driver and not self._driver_is_new_enough() and not self._warned:
            self._warned = True
            found = _major(driver) * 1000 + int(driver.partition(".")[2] or 0) * 10
            warnings.warn(TOO_OLD.format(found=found), UserWarning, stacklevel=3)
        return super()._count_by_driver()

    def _refuse_missing_driver(self) -> None:
        if not self._hip and self._machine.driver is None:
            raise RuntimeError(NO_DRIVER)

    def _lazy_init(self) -> None:
        first = not self._initialized
        super()._lazy_init()
        if first and not self._hip:
            for index, card in enumerate(self._cards()):
                if not covers(self._torch._real, self._build, card):
                    major, minor = divmod(card.number, 10)
                    told = f"Found GPU{index} {card.name} which is of compute capability (CC) {major}.{minor}."
                    warnings.warn(told, UserWarning, stacklevel=3)

    # -- one device --------------------------------------------------------------------------------
    def _failure(self, words: str) -> RuntimeError:
        failure = super()._failure(words)
        return type(failure)(f"HIP error: {words}") if self._hip else failure

    def _properties(self, card: Card) -> Any:
        props = SimpleNamespace(
            name=card.name, total_memory=card.total, is_integrated=int(card.integrated), uuid=card.uuid
        )
        if self._hip:
            seen = gfx_seen(card, self._torch._env.get("HSA_OVERRIDE_GFX_VERSION"))
            props.gcnArchName = f"{seen}:sramecc+:xnack-"
            props.major, props.minor = int(seen[3:-2]), int(seen[-2])
        else:
            props.major, props.minor = divmod(card.number, 10)
        return props

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        """NVIDIA's compute capability; on ROCm the gfx major and minor, which compare with nothing."""
        props = self.get_device_properties(device)
        return props.major, props.minor

    def get_arch_list(self) -> list[str]:
        """What the build has kernels for, with or without a GPU; marks the process all the same."""
        if not self._is_compiled():
            return []
        self._mark()
        return list(self._build.architectures)

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        """Always True on ROCm; on CUDA emulation counts, unless one says otherwise."""
        if self._hip:
            return True
        return self.is_available() and (including_emulation or self.get_device_properties().major >= 8)


def _major(version: str | None) -> int:
    return int((version or "0").partition(".")[0])


def gfx_seen(card: Card, override: str | None) -> str:
    """What HIP takes the chip for: HSA_OVERRIDE_GFX_VERSION=10.3.0 makes it gfx1030."""
    if not override:
        return card.architecture
    major, minor, stepping = (int(part) for part in override.split("."))
    return f"gfx{major}{minor}{stepping:x}"


def covers(real: Any, build: Build, card: Card, override: str | None = None) -> bool:
    """Whether the build has kernels for the card, by torch's own table; a PTX entry is for all newer ones."""
    if card.vendor == "amd":
        return not build.architectures or gfx_seen(card, override) in build.architectures
    if card.vendor != "nvidia" or not build.architectures:
        return True
    for code in build.architectures:
        number = int(re.sub(r"[^0-9]", "", code))
        if code.startswith("compute_"):
            if card.number >= number:
                return True
        elif _torchs_rule(real)(card.number, number):
            return True
    return False


def _torchs_rule(real: Any) -> Callable[[int, int], bool]:
    """Whether a card runs code for another number; before torch 2.9 torch had only the rule of the CUDA guide."""

    def same_major(card: int, code: int) -> bool:
        return card // 10 == code // 10 and card >= code

    rule: Callable[[int, int], bool] = getattr(real.cuda, "_code_compatible_with_device", same_major)
    return rule
