"""The host without torch: arrays, numpy.random, psutil. Its device is "cpu", as in the array API standard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from devicekit.backend import whole_seed
from devicekit.backends._cpulike import CpuLike
from devicekit.errors import DeviceKitError, DeviceUnavailableError
from devicekit.values import AttentionCase, Availability, DeviceInfo


class NumpyBackend(CpuLike):
    """NumPy on the host's processor."""

    name = "numpy"
    device_type = "cpu"
    needs_torch = False

    @property
    def numpy(self) -> Any:
        """The numpy module, imported on first use."""
        module = self.host.module("numpy")
        if module is None:
            why = "numpy is not installed"
            raise DeviceUnavailableError("the numpy backend cannot be used here.", why=why, try_="pip install numpy")
        return module

    def probe(self) -> Availability:
        """Usable wherever numpy is installed."""
        if not self.host.installed("numpy"):
            return Availability.absent("numpy is not installed", "pip install numpy")
        return Availability.yes([DeviceInfo(0, "CPU, through NumPy", integrated=True, bfloat16=False)])

    def device(self, index: int | None = None) -> str:
        """``"cpu"``: what ``array.device`` says in NumPy 2."""
        return "cpu"

    def preferred_dtype(self, index: int = 0) -> Any:
        """float32."""
        return self.numpy.dtype("float32")

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        """A ``numpy.random.Generator``; negative seeds wrap around as in torch."""
        return self.numpy.random.default_rng(None if seed is None else whole_seed(seed) % 2**64)

    def as_dtype(self, dtype: Any) -> Any:
        """What NumPy understands as a dtype; torch's own are not, and are named."""
        if dtype is None:
            return None
        try:
            return self.numpy.dtype(dtype)
        except TypeError:
            what = f"{dtype!r} is no dtype of NumPy."
            raise DeviceKitError(what, try_='"float32", numpy.float16') from None

    # -- moving --------------------------------------------------------------------------------
    def put(self, x: Any, device: Any, dtype: Any = None) -> Any:
        """Arrays stay arrays; tensors of torch, if there are any, become arrays; the rest comes back as it is."""
        torch = self.host.loaded("torch")
        if torch is not None and isinstance(x, torch.Tensor):
            x = _array_of(torch, x)
        if not isinstance(x, self.numpy.ndarray) or dtype is None or x.dtype.kind != "f":
            return x
        return x.astype(dtype, copy=False)

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """BLAS has two of them; float16 and int8 go through loops, and NumPy has no more."""
        told = {"float64": "native", "float32": "native", "float16": "emulated", "int8": "emulated"}
        return {**told, **dict.fromkeys(("tf32", "bfloat16", "float8", "int4"), "no")}

    # -- attention and compiling -----------------------------------------------------------------
    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """None of them."""
        return {"math": "scaled_dot_product_attention is torch's"}

    def compile_problem(self, index: int = 0) -> str:
        """``torch.compile`` is torch's."""
        return "numpy has no compiler"

    # -- random numbers ------------------------------------------------------------------------
    def draw_normal(self, shape: Sequence[int], seed: int | None, device: Any, dtype: Any) -> Any:
        """The numbers that torch draws from the same seed, to float32 rounding, so that hosts agree.

        Without a seed they come from NumPy's global state.
        """
        count = math.prod(shape)
        if seed is None:
            drawn = self.numpy.random.standard_normal(count).astype("float32")
        else:
            drawn = _TorchNormal(self.numpy, whole_seed(seed)).draw(count)
        array = drawn.reshape(tuple(shape))
        return array if dtype is None else array.astype(dtype, copy=False)

    def verify(self, index: int = 0) -> None:
        """A matrix product against the sum that defines it."""
        numpy = self.numpy
        a = numpy.arange(64.0, dtype="float32").reshape(8, 8)
        numpy.testing.assert_allclose(a @ a, (a[:, :, None] * a[None, :, :]).sum(1), rtol=1e-5)


def _array_of(torch: Any, tensor: Any) -> Any:
    host = tensor.detach().cpu()
    return (host.float() if host.dtype is torch.bfloat16 else host).numpy()  # NumPy has no bfloat16


class _TorchNormal:
    """torch.randn on the CPU, from the same Mersenne Twister.

    Source: aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill: Box-Muller on blocks of 16, the last block
    drawn again when the count is no multiple) and aten/src/ATen/core/DistributionsHelper.h (the path below 16).
    """

    def __init__(self, numpy: Any, seed: int) -> None:
        self.numpy = numpy
        self.twister = numpy.random.MT19937()
        self.twister._legacy_seeding(seed & 0xFFFFFFFF)  # torch keeps the low 32 bits: at::mt19937

    def draw(self, count: int) -> Any:
        return self._few(count) if count < 16 else self._many(count)

    def _many(self, count: int) -> Any:
        values = self._uniform(count)
        whole = count - count % 16
        values[:whole] = self._box_muller(values[:whole])
        if whole != count:
            values[-16:] = self._box_muller(self._uniform(16))
        return values

    def _uniform(self, count: int) -> Any:
        raw = self.twister.random_raw(count).astype("uint32") & 0xFFFFFF
        return raw.astype("float32") * self.numpy.float32(2.0**-24)

    def _box_muller(self, uniform: Any) -> Any:
        numpy = self.numpy
        pairs = uniform.reshape(-1, 2, 8)
        radius = numpy.sqrt(-2 * numpy.log(1 - pairs[:, 0]))
        angle = numpy.float32(2 * math.pi) * pairs[:, 1]
        return numpy.stack([radius * numpy.cos(angle), radius * numpy.sin(angle)], axis=1).reshape(-1)

    def _few(self, count: int) -> Any:
        drawn: list[float] = []
        while len(drawn) < count:
            angle, u2 = 2 * math.pi * self._double(), self._double()
            radius = math.sqrt(-2 * math.log1p(-u2))
            drawn += [radius * math.cos(angle), radius * math.sin(angle)]
        return self.numpy.array(drawn[:count], dtype="float32")

    def _double(self) -> float:
        high, low = (int(word) for word in self.twister.random_raw(2))
        return (((high << 32) | low) & ((1 << 53) - 1)) * 2.0**-53
