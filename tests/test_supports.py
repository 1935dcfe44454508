"""Number formats: what is claimed of every chip, which dtype has which row, and what a product says to the claim."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit import formats, products
from devicekit.backend import Backend
from devicekit.backends.cpu import CpuBackend
from devicekit.formats import FORMATS, Trial
from devicekit.host import Host
from devicekit.testing import simulated_machine
from devicekit.testing.machines import Build
from devicekit.values import Availability, DeviceInfo, MemoryStats

ANY_CUDA = Build("2.13.0+cu126", cuda="12.6")
ANY_ROCM = Build("2.13.0+rocm7.1", hip="7.1.25424")
OLD_ROCM = Build("2.6.0+rocm6.2", hip="6.2.41134")


def cuda(architecture: str) -> dict[str, Any]:
    return {"cuda": 1, "architecture": architecture, "build": ANY_CUDA}


def rocm(architecture: str, build: Build = ANY_ROCM) -> dict[str, Any]:
    return {"rocm": 1, "architecture": architecture, "build": build}


# float64 float32 tf32 bfloat16 float16 float8 int8 int4, as Native, Emulated, no (-), or ? for what cannot be told
CHIPS: dict[str, tuple[dict[str, Any], str]] = {
    "GTX 1080": (cuda("sm_61"), "N N - E E - ? -"),
    "P100": (cuda("sm_60"), "N N - E N - ? -"),
    "V100": (cuda("sm_70"), "N N - E N - ? -"),
    "Turing": (cuda("sm_75"), "N N - E N - N -"),
    "A100": (cuda("sm_80"), "N N N N N - N E"),
    "RTX 3060": (cuda("sm_86"), "N N N N N - N E"),
    "RTX 4090": (cuda("sm_89"), "N N N N N N N E"),
    "H100": (cuda("sm_90"), "N N N N N N N E"),
    "RTX 5090": (cuda("sm_120"), "N N N N N N N E"),
    "MI100": (rocm("gfx908"), "N N - N N - N -"),
    "MI250": (rocm("gfx90a"), "N N - N N - N E"),
    "MI300": (rocm("gfx942"), "N N N N N N N E"),
    "MI350": (rocm("gfx950"), "N N E N N N N E"),
    "RX 6800": (rocm("gfx1030"), "N N - E N - - -"),
    "RX 7900": (rocm("gfx1100"), "N N - N N - N -"),
    "RX 9070": (rocm("gfx1201"), "N N - N N N N -"),
    "RX 9070 on ROCm 6.2": (rocm("gfx1201", OLD_ROCM), "N N - N N - N -"),
    "Arc": ({"xpu": 1}, "- N N N N E N E"),
    "Intel's integrated GPU": ({"machine": "intel-igpu"}, "- N - N N E E E"),
    "910B3": ({"npu": 1, "architecture": "Ascend910B3"}, "- N - N N ? ? ?"),
    "310P": ({"npu": 1, "architecture": "Ascend310P3"}, "- N - - N ? ? ?"),
    "Mac": ({"mps": True}, "- N - N N - - E"),
    "Mac with macOS 13": ({"mps": True, "macos": "13.6", "build": Build("2.8.0", mps=True)}, "- N - - N - - E"),
    "server": ({"cpu": ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16")}, "N N - N E E N E"),
    "old processor": ({"cpu": ("avx2",)}, "N N - E E E E E"),
    "processor with AMX": ({"cpu": ("amx_bf16", "amx_int8", "amx_fp16")}, "N N - N N E N E"),
    "Vulkan": ({"machine": "vulkan"}, "- N - - - - - -"),
    "NumPy": ({"machine": "no-torch"}, "N N - - E - E -"),
}
LETTERS = {"N": "native", "E": "emulated", "-": "no", "?": None}


# The processor's kernels are this process's: torch 2.6 had none for float8.
FLOAT8_ON_CPU = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm", "CPU")


def expected(chip: str) -> dict[str, str | None]:
    told = {form: LETTERS[letter] for form, letter in zip(FORMATS, CHIPS[chip][1].split(), strict=True)}
    return told if FLOAT8_ON_CPU or "cpu" not in CHIPS[chip][0] else {**told, "float8": "no"}


def manager(chip: str) -> dk.DeviceManager:
    return dk.DeviceManager("vulkan" if chip == "Vulkan" else None)


# -- claims ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_has_its_table(chip: str) -> None:
    """The eight words are answered as the sources in the backends say; what cannot be told counts as no."""
    with simulated_machine(**CHIPS[chip][0]):
        dm = manager(chip)
        assert {form: dm.supports(form) for form in FORMATS} == {f: w or "no" for f, w in expected(chip).items()}
        told = formats.claims(dm._backend, 0)
        assert {form for form in FORMATS if form not in told} == {f for f, w in expected(chip).items() if w is None}


@pytest.mark.parametrize("chip", [c for c in CHIPS if c != "NumPy"])
def test_a_dtype_has_the_word_of_its_row(chip: str) -> None:
    """Of the formats that are dtypes too, asking by dtype and asking by word is the same."""
    with simulated_machine(**CHIPS[chip][0]):
        dm = manager(chip)
        for form in ("float64", "float32", "bfloat16", "float16", "int8"):
            assert dm.supports(getattr(torch, form)) == dm.supports(form)


@pytest.mark.parametrize(
    ("chip", "ocp", "fnuz"),
    [
        ("MI300", "no", "native"),
        ("MI350", "native", "no"),
        ("RX 9070", "native", "no"),
        ("RX 7900", "no", "no"),
        ("H100", "native", "no"),
        ("A100", "no", "no"),
        ("Arc", "emulated", "no"),
        ("Mac", "no", "no"),
        pytest.param("server", "emulated", "emulated", marks=pytest.mark.skipif(not FLOAT8_ON_CPU, reason="too old")),
    ],
)
def test_the_kinds_of_float8_are_told_apart(chip: str, ocp: str, fnuz: str) -> None:
    """Only MI300 multiplies the fnuz types itself, and it does not multiply the others."""
    with simulated_machine(**CHIPS[chip][0]):
        dm = manager(chip)
        assert {dm.supports(torch.float8_e4m3fn), dm.supports(torch.float8_e5m2)} == {ocp}
        assert {dm.supports(torch.float8_e4m3fnuz), dm.supports(torch.float8_e5m2fnuz)} == {fnuz}


@pytest.mark.parametrize("chip", ["A100", "Mac", "910B3", "server"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_there_where_they_can_be_stored(chip: str, dtype: torch.dtype) -> None:
    """Whole numbers, truth values and complex numbers are no question of speed."""
    with simulated_machine(**CHIPS[chip][0]):
        assert manager(chip).supports(dtype) == "native"


@pytest.mark.parametrize(("chip", "word"), [("Mac", "no"), ("A100", "native")])
def test_what_is_stored_as_something_else_is_not_there(chip: str, word: str) -> None:
    """complex128 becomes complex64 on MPS, so it is not there."""
    with simulated_machine(**CHIPS[chip][0]):
        assert manager(chip).supports(torch.complex128) == word


@pytest.mark.parametrize("dtype", [torch.quint8, torch.uint4], ids=str)
def test_packed_dtypes_have_no_products(dtype: torch.dtype) -> None:
    """A dtype that can be made and not multiplied is not called native."""
    assert dk.DeviceManager("cpu").supports(dtype) == "no"


@pytest.mark.parametrize("nonsense", ["int65", "bf16", "torch.nn", "", None, 16, 1.5, float, [], torch.ones(1)])
def test_what_is_no_format_is_refused_with_the_words(nonsense: Any) -> None:
    """An error names what was given and lists what could have been."""
    with pytest.raises(dk.DeviceKitError, match="is no number format") as caught:
        dk.DeviceManager("cpu").supports(nonsense)
    assert all(form in str(caught.value) for form in FORMATS)


def test_numpys_names_and_dtypes() -> None:
    """On the NumPy host its own dtypes and their names are understood, and torch's are not."""
    numpy = pytest.importorskip("numpy")
    dm = dk.DeviceManager("numpy")
    known = {"f8": "native", "float16": "emulated", "int64": "native", "bool": "native", "complex128": "native"}
    assert {name: dm.supports(name) for name in known} == known
    assert {name: dm.supports(numpy.dtype(name)) for name in known} == known
    assert [dm.supports(dtype) for dtype in (numpy.float32, float, ">f4", "O", "U3")] == ["native"] * 3 + ["no"] * 2
    for nonsense in (torch.float32, None, "bf16", "f4,,", {"names": 1}):
        with pytest.raises(dk.DeviceKitError, match="is no number format"):
            dm.supports(nonsense)  # type: ignore[arg-type]  # that is the point


# -- a backend that says little ------------------------------------------------------------------------
class Plain(Backend):
    """Somebody's device with what has to be answered, and no more; its tensors lie on the CPU."""

    name = "plain"
    device_type = "cpu"
    indexed = False

    def probe(self) -> Availability:
        return Availability.yes([DeviceInfo(0)])

    def preferred_dtype(self, index: int = 0) -> Any:
        return torch.bfloat16

    def storable(self, dtype: Any) -> Any:
        return torch.float32 if dtype is torch.float64 else dtype

    def create_generator(self, seed: int | None = None, index: int = 0) -> Any:
        return torch.Generator()

    def memory_stats(self, index: int = 0) -> MemoryStats:
        return MemoryStats()

    def empty_cache(self, index: int = 0) -> None:
        pass


def test_the_default_claims_what_follows_and_no_more() -> None:
    """float32 and what is preferred are native, what is stored otherwise is not there, the rest is left open."""
    told = Plain(Host()).precisions()
    assert told == {"float64": "no", "float32": "native", "bfloat16": "native"}
    assert formats.supports(Plain(Host()), 0, "float16") == "no"


def test_words_that_are_none_do_not_count() -> None:
    """A backend that answers with something else is taken as one that cannot tell."""

    class Wrong(Plain):
        def precisions(self, index: int = 0) -> Mapping[str, str]:
            return {"float16": "sure", "int8": True, "float8": "native", "float32": ["native"]}  # type: ignore[dict-item]

    assert formats.claims(Wrong(Host()), 0) == {"float8": "native"}
    assert formats.supports(Wrong(Host()), 0, "float16") == "no"


# -- trials --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("chip", [c for c in CHIPS if c not in ("NumPy", "Mac with macOS 13")])
def test_a_simulated_chip_does_what_is_claimed_of_it(chip: str, form: str) -> None:
    """What the simulated card takes and refuses, by the words of the real one, is what its backend says."""
    with simulated_machine(**CHIPS[chip][0]):
        word, trial = expected(chip)[form], formats.attempt(manager(chip)._backend, 0, form, timed=False)
        if word is not None:
            assert trial.ran is (word != "no"), trial
        assert (trial.reason == "") is trial.ran


@pytest.mark.parametrize("form", FORMATS)
def test_the_processor_does_what_is_claimed_of_it(form: str) -> None:
    """On the real CPU each format runs or fails as its backend says, and what runs is timed."""
    backend = dk.DeviceManager("cpu")._backend
    trial = formats.attempt(backend, 0, form)
    assert trial.ran is (backend.precisions()[form] != "no"), trial
    timed = trial.ran and form != "float32"
    assert (trial.speed is not None and trial.speed > 0) is timed


class Bent(CpuBackend):
    """A processor whose products go through ``bend``."""

    def __init__(self, bend: Callable[[Any], Any]) -> None:
        super().__init__(Host())
        self.bend = bend

    def product(self, form: str, a: Any, b: Any, index: int = 0) -> Callable[[], Any]:
        run = super().product(form, a, b, index)
        return lambda: self.bend(run())


def refuse(message: str) -> Callable[[Any], Any]:
    def bend(_: Any) -> Any:
        raise RuntimeError(message)

    return bend


@pytest.mark.parametrize("form", [f for f in FORMATS if f != "tf32" and (FLOAT8_ON_CPU or f != "float8")])
def test_wrong_numbers_are_no_support(form: str) -> None:
    """A product that is off by a tenth of its largest number did not run rightly, nor one of NaN."""
    off = formats.attempt(Bent(lambda x: x + x.abs().max() // 10 + 1), 0, form, timed=False)
    nan = formats.attempt(Bent(lambda x: x.float() * float("nan")), 0, form, timed=False)
    for trial in (off, nan):
        assert not trial.ran
        assert trial.reason.startswith("it computes wrong numbers, off by ")


def test_what_is_raised_is_the_reason() -> None:
    """The first line, with its class, cut where it is endless; nothing comes through."""
    assert formats.attempt(Bent(refuse("no kernel\nC++ stack:")), 0, "float16") == Trial(
        False, "RuntimeError: no kernel"
    )
    assert formats.attempt(Bent(refuse("")), 0, "float16") == Trial(False, "RuntimeError:")
    assert len(formats.attempt(Bent(refuse("word " * 1000)), 0, "int8").reason) <= 200


def test_what_is_stored_as_something_else_is_not_tried() -> None:
    """A runtime that would take it to the CPU does not make it a format of the device."""
    assert formats.attempt(Plain(Host()), 0, "float64") == Trial(False, "values of it are kept as torch.float32")


def test_a_product_that_cannot_be_timed_has_run() -> None:
    """Memory that runs out for larger matrices is no reason to say that the format does not work."""

    def bend(x: Any) -> Any:
        bend.calls += 1  # type: ignore[attr-defined]  # a function has attributes
        if bend.calls > 1:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x

    bend.calls = 0  # type: ignore[attr-defined]
    assert formats.attempt(Bent(bend), 0, "bfloat16") == Trial(True)


def test_nothing_is_switched_for_good() -> None:
    """Whether TF32 is allowed is afterwards as it was before, also after an error, and nobody is warned."""
    before = torch.get_float32_matmul_precision()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        formats.attempt(Bent(refuse("no")), 0, "tf32")
        formats.attempt(dk.DeviceManager("cpu")._backend, 0, "tf32")
    with products.tf32_allowed(torch):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


# -- packing ---------------------------------------------------------------------------------------------
class Packing:
    """torch, with 4-bit kernels that unpack as CUDA's and Intel's do; whatever else is the real torch's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def _convert_weight_to_int4pack(self, weight: Any, tiles: int) -> Any:
        assert weight.dtype == torch.uint8
        return weight

    def _weight_int4pack_mm(self, a: Any, packed: Any, group: int, scales_and_zeros: Any) -> Any:
        """High half first; torch/testing/_internal/common_quantization.py, _group_quantize_tensor."""
        weights = torch.stack([packed >> 4, packed & 15], dim=2).flatten(1).double() - 8
        scales, zeros = scales_and_zeros.double().repeat_interleave(group, 0).unbind(2)
        return a.double() @ (weights * scales.t() + zeros.t()).t()

    def _weight_int4pack_mm_with_scales_and_zeros(
        self, a: Any, packed: Any, group: int, scales: Any, zeros: Any
    ) -> Any:
        """Low half first, zeros in int8; test/xpu/test_gemm.py of pytorch."""
        assert zeros.dtype == torch.int8
        weights = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).double()
        spread = (x.double().repeat_interleave(group, 0).t() for x in (scales, zeros))
        scale, zero = spread
        return a.double() @ ((weights - zero) * scale).t()


@pytest.mark.parametrize("pack", [products.int4, products.int4_of_xpu])
def test_weights_of_4_bits_are_packed_as_the_kernels_unpack_them(pack: Callable[..., Any]) -> None:
    """Numbers from 0 to 15 stand for -8 to 7, in the order that each kernel expects; not only in squares."""
    a = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    b = torch.randint(0, 16, (32, 64), dtype=torch.int32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pack(Packing(), a, b)(), a.double() @ (b.double() - 8).t())
