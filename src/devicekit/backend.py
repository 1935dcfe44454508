"""The contract of a backend, written for the author of one.

A backend is one class for one runtime. It answers five questions, each with a value:

=========================================  ==============================================================
``probe()``                                is it usable, with which devices, or why not and what to do
``preferred_dtype(index)``                 the fastest dtype for inference that the device has natively
``create_generator(seed, index)``          a generator that the device's factories accept
``memory_stats(index)``                    :class:`~devicekit.values.MemoryStats`, None for what it cannot tell
``empty_cache(index)``                     give cached memory back
=========================================  ==============================================================

Everything else here has a default that is right for a device which torch knows by the backend's name. Override only
where yours differs. What a backend may count on:

* ``self.host`` is its only way out: ``self.torch``, ``self.host.env``, ``self.host.module("...")``. Import nothing of
  your vendor at the top of your file.
* ``probe()`` is asked first, once, under a time limit. It takes no memory, makes no context, writes no environment
  variable and prints nothing. The other questions are only asked about devices that the probe called usable.
* an ``index`` is the position among the visible devices, as torch counts them.

A vendor's package declares ``[project.entry-points."devicekit.backends"]`` with one line
``mydevice = "mypackage.device:MyBackend"`` and inherits :class:`devicekit.testing.BackendConformance` in its tests.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from devicekit import products
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.staging import Staging
from devicekit.streams import NAMES, OneQueue
from devicekit.values import AllocatorOption, AttentionCase, Availability, DeviceInfo, MemoryStats

__all__ = ["Backend", "seeded", "whole_seed"]

log = logging.getLogger("devicekit")

SDPA = {
    "flash": "FLASH_ATTENTION",
    "memory-efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "onednn": "OVERRIDEABLE",
    "math": "MATH",
}
"""Our words for kernels, to the names in ``torch.nn.attention.SDPBackend``."""


class Backend(ABC):
    """One runtime: five questions to answer, defaults for the rest."""

    name: ClassVar[str]
    """The word that users say: ``cuda``, ``rocm``, ``npu``."""
    device_type: ClassVar[str] = ""
    """What torch calls the device, where that is not ``name`` (ROCm says ``cuda``)."""
    accelerator: ClassVar[bool] = True
    """False for the host's own processor."""
    needs_torch: ClassVar[bool] = True
    quick_probe: ClassVar[bool] = False
    """The probe cannot hang: it asks no driver. Others are asked in a thread with a time limit."""
    indexed: ClassVar[bool] = True
    """There can be several devices, so the device is spelled with its index."""
    masks: ClassVar[tuple[str, ...]] = ()
    """Variables that hide devices from a process, and so decide which one an index means."""
    collective: ClassVar[str] = "gloo"
    """The library that moves this device's tensors between processes, by torch's name for it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.device_type and isinstance(getattr(cls, "name", None), str):
            cls.device_type = cls.name

    def __init__(self, host: Host) -> None:
        self.host = host
        self._told: set[object] = set()
        self._one_queue = OneQueue(self.synchronize, self.current_index)

    @property
    def torch(self) -> Any:
        """The torch module of this host."""
        return self.host.torch()

    # -- the five questions ----------------------------------------------------------------------
    @abstractmethod
    def probe(self) -> Availability:
        """Whether this backend can be used here; no side effect."""

    @abstractmethod
    def preferred_dtype(self, index: int = 0) -> Any:
        """The dtype to run a model in: native on this device, and not slower than float32."""

    @abstractmethod
    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A generator for this device's factories; without a seed, seeded from the system's entropy."""

    @abstractmethod
    def memory_stats(self, index: int = 0) -> MemoryStats:
        """Bytes, with their source; None for every figure that this runtime cannot give."""

    @abstractmethod
    def empty_cache(self, index: int = 0) -> None:
        """Give cached, unused memory back to the system."""

    # -- where it is ---------------------------------------------------------------------------
    def device(self, index: int | None = None) -> Any:
        """The framework's own name for the device: a ``torch.device``."""
        if index is None or not self.indexed:
            return self.torch.device(self.device_type)
        return self.torch.device(self.device_type, index)

    def current_index(self) -> int | None:
        """The device that the user's code has made current; None: it has not chosen."""
        return None

    def make_current(self, index: int = 0) -> None:
        """Make it the device that is meant where none is named; nothing, where the runtime has no such thing."""

    @contextlib.contextmanager
    def being_current(self, index: int = 0) -> Iterator[None]:
        """Inside, it is the current device; afterwards, also after an error, the former one is again."""
        before = self.current_index() or 0
        self.make_current(index)
        try:
            yield
        finally:
            self.make_current(before)

    def describe(self, index: int = 0) -> DeviceInfo:
        """All that can be told about a device. May start the runtime, so it is asked in a child process."""
        return self.probe().device(index) or DeviceInfo(index)

    def versions(self) -> dict[str, str]:
        """Versions that matter to this runtime: driver, toolkit, plugin."""
        return {}

    # -- moving --------------------------------------------------------------------------------
    def storable(self, dtype: Any) -> Any:
        """The dtype in which this device keeps values of ``dtype``; another one only where it has no such type."""
        return dtype

    def as_dtype(self, dtype: Any) -> Any:
        """The framework's dtype for what a user gave, a dtype or its name; None stays None.

        Raises:
            DeviceKitError: it is none of the framework's.
        """
        if dtype is None or isinstance(dtype, self.torch.dtype):
            return dtype
        named = getattr(self.torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
        if isinstance(named, self.torch.dtype):
            return named
        raise DeviceKitError(f"{dtype!r} is no dtype of torch.", try_='torch.float32, torch.bfloat16, "float16"')

    def put(self, x: Any, device: Any, dtype: Any = None) -> Any:
        """Put one tensor, array, module or pipeline on the device; anything else comes back as it is.

        ``dtype`` is for floating-point values only; integers and booleans keep theirs.
        """
        torch = self.torch
        if isinstance(x, torch.Tensor):
            return self._put_tensor(x, device, dtype)
        if isinstance(x, torch.nn.Module):
            self._narrow_module(x, dtype)
            return self.move_object(x, device, dtype)
        numpy = self.host.loaded("numpy")
        if numpy is not None and isinstance(x, numpy.ndarray):
            return x if x.dtype.kind not in "biufc" else self._put_array(x, device, dtype)
        if callable(getattr(x, "to", None)) and not isinstance(x, type):
            parts = getattr(x, "components", None)
            for part in parts.values() if isinstance(parts, dict) else ():
                if isinstance(part, torch.nn.Module):
                    self._narrow_module(part, dtype)
            return self.move_object(x, device, dtype)
        return x

    def move(self, tensor: Any, device: Any, dtype: Any) -> Any:
        """Move one tensor; ``dtype`` is one that the device can store."""
        there = tensor.dtype is dtype and tensor.device == device
        return tensor if there else tensor.to(device, dtype)  # by keywords it takes half as long again

    def holds(self, tensor: Any, device: Any) -> bool:
        """The tensor lies on this device; one of which there is only one has no number."""
        return tensor.device.type == device.type and device.index in (None, tensor.device.index)

    def move_object(self, x: Any, device: Any, dtype: Any) -> Any:
        """Have a module or a pipeline move itself, through its own ``to``."""
        named = {} if dtype is None else {"dtype": self.narrow(dtype)}
        try:
            moved = x.to(device=device, **named)
        except TypeError as exc:
            what = f"a {type(x).__name__} cannot be put on {device}."
            raise DeviceKitError(what, why=f"its to() says: {exc}") from exc
        return x if moved is None else moved

    def _put_tensor(self, x: Any, device: Any, dtype: Any) -> Any:
        wanted = dtype if dtype is not None and x.is_floating_point() else x.dtype
        return self.move(x, device, wanted if self.storable(wanted) is wanted else self.narrow(wanted))

    def _put_array(self, x: Any, device: Any, dtype: Any) -> Any:
        # A read-only array would make torch warn about undefined behaviour; a copy is safe.
        writable = x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy()
        return self._put_tensor(self.torch.from_numpy(writable), device, dtype)

    def _narrow_module(self, module: Any, dtype: Any) -> None:
        """Cast, before the move, the parameters and buffers that the device cannot store."""

        def cast(t: Any) -> Any:
            if dtype is not None and t.is_floating_point():
                return t
            return t.to(self.narrow(t.dtype))

        tensors = [*module.parameters(), *module.buffers()]
        if any(self.storable(t.dtype) is not t.dtype for t in tensors):
            module._apply(cast)

    def narrow(self, dtype: Any) -> Any:
        """``storable``, with one warning where that is another dtype."""
        stored = self.storable(dtype)
        if stored is not dtype and dtype not in self._told:
            self._told.add(dtype)
            warnings.warn(f"{self.name} has no {dtype}: {stored} is used instead", stacklevel=2)
        return stored

    # -- mixed precision -------------------------------------------------------------------------
    def autocast_dtypes(self, index: int = 0) -> tuple[Any, ...]:
        """The 16-bit dtypes that torch's autocast has here and the device computes itself; none: no autocast."""
        preferred = self.preferred_dtype(index)
        known = preferred.itemsize == 2 and self.torch.amp.is_autocast_available(self.device_type)
        return (preferred,) if known else ()

    # -- attention and compiling ---------------------------------------------------------------
    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """The kernels that torch may take for this attention, in its order of choice, each with the reason against it.

        The reason is empty where the kernel takes the case. What comes after ``math`` is taken only when asked for.
        """
        return {"math": ""}

    def flash_attn_problem(self, case: AttentionCase, index: int = 0) -> str:
        """Why the package flash-attn, if it were installed, would not take this case here; empty when it would.

        It is for NVIDIA and AMD only: https://github.com/Dao-AILab/flash-attention, README.
        """
        return f"flash-attn has no kernels for {self.name}"

    def select_attention(self, names: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
        """A context, for the whole process, in which ``scaled_dot_product_attention`` uses none but these kernels.

        Override it where ``attention_kernels`` has words that are not in ``SDPA``.
        """
        attention = self.host.import_module("torch.nn.attention")
        return attention.sdpa_kernel([getattr(attention.SDPBackend, SDPA[name]) for name in names])  # type: ignore[no-any-return]

    def compile_problem(self, index: int = 0) -> str:
        """Why ``torch.compile`` cannot generate code for this device; empty when it can.

        Imports torch._inductor to ask, which takes seconds, so it is asked only by who wants to compile.
        """
        common = self.host.import_module("torch._inductor.codegen.common")
        common.init_backend_registration()
        if common.get_scheduling_for_device(self.device_type) is not None:
            return ""
        return f"torch {self.torch.__version__} generates no code for {self.name}"

    # -- number formats --------------------------------------------------------------------------
    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """What matrix products the device computes: ``native``, ``emulated`` or ``no`` for each format it can tell of.

        The formats are float64, float32, tf32, bfloat16, float16, float8, int8 and int4; what the words mean stands in
        :mod:`devicekit.formats`. The row float8 is about float8_e4m3fn and float8_e5m2: who has other types, or not
        all, adds them by the dtype's name. What is left out cannot be told. May start the runtime.
        """
        if not self.needs_torch:
            return {str(self.preferred_dtype(index)): "native"}
        torch = self.torch
        native = (torch.float32, self.preferred_dtype(index), *self.autocast_dtypes(index))
        told: dict[str, str] = {}
        for name in ("float64", "float32", "bfloat16", "float16"):
            dtype = getattr(torch, name)
            if self.storable(dtype) is not dtype:
                told[name] = "no"
            elif dtype in native:
                told[name] = "native"
        return told

    def product(self, form: str, a: Any, b: Any, index: int = 0) -> Callable[[], Any]:
        """The product ``a @ b.T`` of two matrices on the device in this format, ready to be run by its own kernel.

        Both are in the format's dtype; for tf32 in float32, for int4 ``a`` (m, k) is in bfloat16 and ``b`` (n, k) holds
        whole numbers from 0 to 15 in int32, which stand for -8 to 7.
        """
        return products.of(self.torch, form, a, b)

    def traits(self, index: int = 0) -> Mapping[str, str]:
        """What else is worth knowing about the device, in words for people; ``warning`` is what they should look at.

        May start the runtime, so it is asked in a child process.
        """
        return {}

    # -- loading -------------------------------------------------------------------------------
    def allocate(self, count: int, dtype: Any, device: Any) -> Any:
        """A flat tensor of so many elements on the device, its contents undefined."""
        return self.torch.empty(count, dtype=dtype, device=device)

    def staging(self, device: Any, nbytes: int) -> Staging:
        """A way for bytes from the host onto the device, in buffers of this size; one for each thread that loads."""
        return Staging(self.torch, nbytes)

    # -- memory to spare -------------------------------------------------------------------------
    @contextlib.contextmanager
    def keeping_free(self, part: float, device: Any, index: int = 0) -> Iterator[None]:
        """Inside, so much of the device's memory (0 to 1) cannot be had: what needs it runs out of memory."""
        total = self.memory_stats(index).total if part else 0
        if total is None:
            why = f"{self.name} cannot tell how much memory {device} has"
            raise DeviceKitError("No headroom can be kept here.", why=why, try_="headroom=0")
        ballast = self.allocate(int(total * part), self.torch.uint8, device) if part else None
        try:
            yield
        finally:
            del ballast

    def expandable_segments(self) -> AllocatorOption:
        """How to have this runtime's allocator let its segments grow, so that no holes stay between them."""
        return AllocatorOption(reason=f"no option of {self.name}'s allocator is known to waste less memory")

    def allocator_settings(self) -> tuple[dict[str, str], ...]:
        """Environment variables that may make this runtime's allocator faster or smaller; ``devicekit tune`` tries."""
        growing = self.expandable_segments()
        return ({growing.variables[0]: growing.option},) if growing.variables else ()

    # -- random numbers ------------------------------------------------------------------------
    def draw_normal(self, shape: Sequence[int], seed: int | None, device: Any, dtype: Any) -> Any:
        """Standard normal numbers, drawn whole in float32 on the CPU, so that a seed means the same everywhere."""
        torch = self.torch
        generator = None if seed is None else torch.Generator("cpu").manual_seed(whole_seed(seed))
        drawn = torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
        return self._put_tensor(drawn, device, dtype)

    def manual_seed(self, seed: int) -> None:
        """Seed the default generators of all devices of this backend, and no other; nothing, where it has none.

        ``manual_seed_all`` is the name by which torch itself reaches them (torch/random.py). The seed is one that
        ``whole_seed`` lets through. It starts no runtime where the seed can wait for its start.
        """
        seed_all = getattr(getattr(self.torch, self.device_type, None), "manual_seed_all", None)
        if seed_all is not None:
            seed_all(seed)

    def rng_state(self, index: int = 0) -> Any:
        """The state of this device's own generator; None where it has none of its own."""
        return None

    def set_rng_state(self, state: Any, index: int = 0) -> None:
        """Bring back what ``rng_state`` gave."""
        raise DeviceKitError(f"{self.name} has no random state of its own.")

    # -- streams -------------------------------------------------------------------------------
    def streams(self) -> Any:
        """What has ``Stream``, ``Event``, ``stream``, ``set_stream``, ``current_stream`` and ``default_stream``, as in
        torch.cuda: torch's module for this device, where it has all of them; else stand-ins, for one queue of work.
        """
        runtime = getattr(self.torch, self.device_type, None) if self.accelerator and self.needs_torch else None
        return runtime if all(hasattr(runtime, name) for name in NAMES) else self._one_queue

    # -- waiting and checking ------------------------------------------------------------------
    def synchronize(self, index: int = 0) -> None:
        """Wait until all work given to the device is done; nothing to wait for on the CPU."""

    def reset_peak_memory(self, index: int = 0) -> None:
        """Start the ``peak`` of ``memory_stats`` anew, where the runtime keeps one."""

    def verify(self, index: int = 0) -> None:
        """Run a real kernel and compare its result; raise what the runtime raises, or when it is wrong."""
        torch = self.torch
        a = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) / 4096
        expected = a @ a
        got = self.move(a, self.device(index), torch.float32)
        product = (got @ got).cpu()
        self.synchronize(index)
        if not torch.allclose(product, expected, rtol=1e-2, atol=1e-2):
            worst = float((product - expected).abs().max())
            raise DeviceKitError(
                f"{self.device(index)} computes wrong numbers.", why=f"a matrix product is off by {worst:.3g}"
            )


def seeded(generator: Any, seed: int | None) -> Any:
    """The generator with this seed, or seeded from the system's entropy: torch's own default is one fixed number."""
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(whole_seed(seed))
    return generator


def whole_seed(seed: object) -> int:
    """A seed as torch takes it: any whole number from -2**63 to 2**64 - 1, NumPy's integers included.

    Raises:
        TypeError: not a whole number.
        ValueError: out of range.
    """
    try:
        number = operator.index(seed)  # type: ignore[arg-type]  # the point is to ask
    except TypeError:
        raise TypeError(f"a seed is a whole number, not {seed!r}") from None
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"a seed lies between -2**63 and 2**64 - 1, not {number}")
    return number
