"""The slice of torch that backends touch, built from data; the rest is the real torch.

Tensors, dtypes and modules are real and stay on the CPU. What is made up is every answer about accelerators: which
build this is, which GPUs it sees, what each question starts, poisons or raises, and how many bytes a card holds.
"""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from typing import Any

from devicekit.testing.fake_cuda import FakeCuda, covers
from devicekit.testing.fake_devices import Door, FakeGenerator, NpuDevice
from devicekit.testing.fake_memory import CardMemory
from devicekit.testing.fake_mps import FakeMps, FakeMpsBackend
from devicekit.testing.fake_npu import FakeNpu
from devicekit.testing.fake_products import KERNELS
from devicekit.testing.fake_runtime import FakeRuntime
from devicekit.testing.fake_xpu import FakeXpu
from devicekit.testing.machines import CPU_FLAGS, Build, Card, Machine

__all__ = ["FakeTorch"]

# First release of each name that devicekit asks for carefully (wheels of torch 2.6 to 2.14, read one by one).
ADDED = {
    "cuda": {"_code_compatible_with_device": (2, 9), "PYTORCH_RELEASES_CODE_CC": (2, 9)},
    "cpu": {"get_capabilities": (2, 11)},
    "backends.mps": {"get_name": (2, 9), "get_core_count": (2, 9)},
}
NO_KERNEL = "no kernel image is available for execution on the device"


class _Over:
    """A module of torch with other values for some of its names."""

    def __init__(self, real: Any, missing: tuple[str, ...] = (), **values: Any) -> None:
        self.__dict__.update(values)
        self._real, self._missing = real, missing

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_missing"]:
            raise AttributeError(f"module {self._real.__name__!r} has no attribute {name!r}")
        return getattr(self._real, name)


class FakeTorch:
    """torch as it would be on ``machine``. What is not a name of torch's has a ``_``.

    Args:
        machine: what there is.
        real: the torch that tensors come from.
        env: the environment that runtimes read; by default the machine's.
    """

    def __init__(self, machine: Machine, real: Any, *, env: MutableMapping[str, str] | None = None) -> None:
        self._machine = machine
        self._real = real
        self._build = machine.build or Build()
        self._env = dict(machine.env) if env is None else env
        self._memories: dict[str, CardMemory] = {}
        build = self._build
        self.__version__ = build.version
        self.version = _Over(real.version, __version__=build.version, cuda=build.cuda, hip=build.hip, xpu=build.xpu)
        self.__config__ = _Over(real.__config__, show=self._configuration)
        self.cpu = self._cpu()
        self._C = _Over(real._C, _dispatch_has_kernel_for_dispatch_key=self._has_kernel)
        self.backends = _Over(
            real.backends,
            mps=FakeMpsBackend(self, real.backends.mps),
            cpu=_Over(real.backends.cpu, get_cpu_capability=self._code_path),
            cuda=_Over(real.backends.cuda, is_flash_attention_available=lambda: bool(build.cuda or build.hip)),
            cudnn=_Over(real.backends.cudnn, version=lambda: build.cudnn if build.cuda else None),
        )
        self.mps = FakeMps(self, real.mps)
        self.cuda = FakeCuda(self, real.cuda)
        self.xpu = FakeXpu(self, real.xpu)
        self.device = Door(self._make_device, real.device, NpuDevice)
        self.Generator = Door(self._make_generator, real.Generator)
        self.amp = _Over(real.amp, is_autocast_available=self._has_autocast, GradScaler=self._make_scaler)

    def __getattr__(self, name: str) -> Any:
        if name in ("npu", "_real"):  # the real one may have an npu in this process; this one has none yet
            raise AttributeError(f"module 'torch' has no attribute {name!r}")
        return getattr(self._real, name)

    def __repr__(self) -> str:
        return f"<torch {self.__version__} of a simulated machine: {self._machine.name}>"

    def _added_later(self, module: str, name: str) -> bool:
        since = ADDED.get(module, {}).get(name)
        return since is not None and self._build.older_than(*since)

    # -- the build and the processor -----------------------------------------------------------------
    def _configuration(self) -> str:
        build, lines = self._build, ["PyTorch built with:", "  - GCC 13.3"]
        if build.cuda:
            flags = (f"-gencode;arch={_virtual(code)},code={code}" for code in build.architectures)
            lines += [f"  - CUDA Runtime {build.cuda}", f"  - NVCC architecture flags: {';'.join(flags)}"]
        if build.hip:
            lines.append(f"  - HIP Runtime {build.hip}")
        return "\n".join([*lines, f"  - Build settings: TORCH_VERSION={build.version}", ""])

    def _cpu(self) -> _Over:
        able, real = self._machine.cpu, self._real.cpu
        missing = tuple(name for name in ADDED["cpu"] if self._added_later("cpu", name))
        values: dict[str, Any] = {} if missing else {"get_capabilities": self._capabilities}
        helpers = {
            "_is_avx512_bf16_supported": "avx512_bf16",
            "_is_amx_fp16_supported": "amx_fp16",
            "_is_vnni_supported": "avx512_vnni",
        }
        values.update({name: lambda flag=flag: flag in able for name, flag in helpers.items()})
        return _Over(real, missing, **values)

    def _capabilities(self) -> dict[str, Any]:
        arm = CPU_FLAGS[CPU_FLAGS.index("neon") :]
        known = set(arm) if self._machine.processor in ("arm64", "aarch64") else set(CPU_FLAGS) - set(arm)
        return {"architecture": self._machine.processor, **{flag: flag in self._machine.cpu for flag in known}}

    def _code_path(self) -> str:
        for flag, path in (("avx512_f", "AVX512"), ("avx2", "AVX2"), ("sve", "SVE256")):
            if flag in self._machine.cpu:
                return path
        return "DEFAULT"

    def _has_kernel(self, operation: str, key: str) -> bool:
        name = operation.removeprefix("aten::")
        if name in KERNELS and key != "CPU":  # the CPU's are this process's own
            return key in KERNELS[name]
        return bool(self._real._C._dispatch_has_kernel_for_dispatch_key(operation, key))

    def is_vulkan_available(self) -> bool:
        """Compiled in."""
        return self._build.vulkan

    # -- mixed precision ---------------------------------------------------------------------------
    def autocast(self, device_type: str, dtype: Any = None, enabled: bool = True, **options: Any) -> Any:
        """The CPU's, where tensors really are; without the device a warning, and nothing happens."""
        return self._real.autocast("cpu", dtype=dtype, enabled=self._is_there(device_type, enabled), **options)

    def _make_scaler(self, device: str = "cuda", *args: Any, enabled: bool = True, **options: Any) -> Any:
        return self._real.amp.GradScaler("cpu", *args, enabled=self._is_there(device, enabled), **options)

    def _is_there(self, device_type: str, wanted: bool) -> bool:
        """Torch looks for a GPU where the word is cuda, and believes every other word."""
        if device_type != "cuda" or not wanted or self.cuda.is_available():
            return wanted
        warnings.warn("User provided device_type of 'cuda', but CUDA is not available. Disabling", stacklevel=3)
        return False

    def _has_autocast(self, device_type: str) -> bool:
        return (device_type == "npu" and "npu" in self.__dict__) or self._real.amp.is_autocast_available(device_type)

    # -- devices ---------------------------------------------------------------------------------
    def _register_npu(self) -> None:
        """What importing torch_npu does."""
        self.npu = FakeNpu(self, None)

    def _make_device(self, *args: Any, **kwargs: Any) -> Any:
        place = args[0] if args else kwargs.get("type", kwargs.get("device"))
        if isinstance(place, NpuDevice):
            return place
        if "npu" not in self.__dict__ or not isinstance(place, str) or place.partition(":")[0] != "npu":
            return self._real.device(*args, **kwargs)
        digits = place.partition(":")[2]
        index = int(digits) if digits else args[1] if len(args) > 1 else kwargs.get("index")
        return NpuDevice(index)

    def _make_generator(self, device: Any = "cpu") -> Any:
        place = self.device(device if device is not None else "cpu")
        if place.type == "cpu":
            return self._real.Generator("cpu")
        runtime = self._runtime(place)
        if runtime is None or not runtime.is_available():
            raise RuntimeError(f"Cannot get {place.type.upper()} generator: there is no such device on this machine")
        if place.index is None:
            index = 0 if place.type == "mps" else runtime._current
            place = self.device(place.type, index)
        return FakeGenerator(place)

    def _runtime(self, device: Any) -> Any:
        """The module of a device, such as torch.cuda; None for those that no accelerator of ours has."""
        return self.__dict__.get(device.type) if device.type in ("cuda", "xpu", "npu", "mps") else None

    def _memory_of(self, card: Card) -> CardMemory:
        return self._memories.setdefault(card.uuid, CardMemory(card, self._machine))

    def _start(self, device: Any) -> CardMemory | None:
        """What a first tensor on a device does: start the runtime, make a context; None: nobody counts there."""
        runtime = self._runtime(device)
        if runtime is None:
            return None
        if isinstance(runtime, FakeRuntime):
            runtime._lazy_init()
            runtime._context(runtime._index(device))
        memory: CardMemory = runtime._memory(device=device)
        return memory

    def _launch(self, device: Any) -> None:
        """What a first kernel does: raise, where the build has none for the card."""
        memory = self._start(device)
        fault = self._machine.faults.no_kernels
        card = None if memory is None else memory.card
        override = self._env.get("HSA_OVERRIDE_GFX_VERSION")
        if fault or (card is not None and not covers(self._real, self._build, card, override)):
            runtime = self._runtime(device)
            words = "invalid device function" if self._build.hip else NO_KERNEL
            raise runtime._failure(words) if isinstance(runtime, FakeRuntime) else RuntimeError(words)

    def manual_seed(self, seed: int) -> Any:
        """Seed the CPU and every accelerator."""
        for name in ("cuda", "xpu", "npu"):
            runtime = self.__dict__.get(name)
            if runtime is not None and runtime._is_compiled():
                runtime.manual_seed_all(int(seed))
        self.mps.manual_seed(int(seed))
        return self._real.manual_seed(seed)


def _virtual(code: str) -> str:
    """``compute_86`` for ``sm_86``: what NVCC's flags have before the comma."""
    return "compute_" + code.partition("_")[2]
