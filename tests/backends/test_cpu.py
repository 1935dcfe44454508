"""The CPU: dtypes that are native and not merely accepted, memory that the container limits."""

from __future__ import annotations

import pytest
import torch

import devicekit as dk
from devicekit.testing import Build, simulated_machine

OLD = Build("2.6.0+cpu")


def _verdict(backend: str = "cpu") -> dk.Verdict:
    return next(v for v in dk.explain().verdicts if v.backend == backend)


@pytest.mark.parametrize(
    ("processor", "flags", "dtype"),
    [
        ("x86_64", (), torch.float32),
        ("x86_64", ("avx2",), torch.float32),
        ("x86_64", ("avx2", "avx512_f", "avx512_vnni"), torch.float32),
        ("x86_64", ("avx2", "avx512_f", "avx512_bf16"), torch.bfloat16),
        ("x86_64", ("avx2", "amx_tile", "amx_bf16"), torch.bfloat16),
        ("x86_64", ("avx512_f", "avx512_fp16"), torch.float16),
        ("x86_64", ("avx512_f", "avx512_fp16", "avx512_bf16"), torch.bfloat16),
        ("aarch64", ("neon",), torch.float32),
        ("aarch64", ("neon", "fp16_arith"), torch.float16),
        ("aarch64", ("neon", "fp16_arith", "bf16"), torch.bfloat16),
        ("arm64", ("neon", "fp16_arith"), torch.float16),
    ],
)
def test_the_dtype_is_what_the_processor_computes_itself(
    processor: str, flags: tuple[str, ...], dtype: torch.dtype
) -> None:
    """float32 unless there are instructions for less: without them bfloat16 was 200 times slower on AVX2."""
    with simulated_machine("cpu", processor=processor, cpu=flags):
        assert dk.DeviceManager().dtype is dtype
        assert _verdict().devices[0].bfloat16 is (dtype is torch.bfloat16)
        assert _verdict().devices[0].integrated


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        (("avx2", "avx512_f"), torch.float32),
        (("avx512_f", "avx512_bf16"), torch.bfloat16),
        (("avx512_f", "amx_fp16"), torch.float16),
    ],
)
def test_torch_before_2_11_is_asked_otherwise(flags: tuple[str, ...], dtype: torch.dtype) -> None:
    """There is no get_capabilities, only private helpers."""
    with simulated_machine("cpu", build=OLD, cpu=flags) as host:
        assert not hasattr(host.torch().cpu, "get_capabilities")
        assert dk.DeviceManager().dtype is dtype


@pytest.mark.parametrize(
    ("flags", "path"), [((), "DEFAULT"), (("avx2",), "AVX2"), (("avx2", "avx512_f"), "AVX512"), (("sve",), "SVE256")]
)
def test_the_code_path_is_told(flags: tuple[str, ...], path: str) -> None:
    """It is torch's, not the processor's."""
    with simulated_machine("cpu", cpu=flags):
        assert _verdict().devices[0].architecture == path


def test_the_containers_limit_is_the_total() -> None:
    """2 GiB of a 64 GiB host; the page cache that is reclaimed first counts as free, and the source is named."""
    with simulated_machine("container-2gib"):
        stats = dk.DeviceManager().memory_stats()
    assert (stats.total, stats.available) == (2 << 30, 3 << 29)
    assert stats.source == "cgroup v2 memory.max of /"
    assert stats.allocated is not None
    assert stats.peak is not None
    assert stats.peak >= stats.allocated > 0


def test_a_host_that_is_fuller_than_the_container_is_the_limit() -> None:
    """Available is the lesser of the two."""
    with simulated_machine("container-2gib", host_free="300MiB"):
        assert dk.DeviceManager().memory_stats().available == 300 << 20


def test_without_a_container_the_host_is_told() -> None:
    """A limit above the host's memory is none."""
    for container in (None, "128GiB"):
        with simulated_machine("cpu", host_memory="64GiB", host_free="40GiB", container=container):
            stats = dk.DeviceManager().memory_stats()
        assert (stats.total, stats.available, stats.source) == (64 << 30, 40 << 30, "psutil (the host)")


def test_without_psutil_nothing_is_known() -> None:
    """Unknown is not zero, and the source says what to install."""
    with simulated_machine("cpu", modules=("numpy",)):
        stats = dk.DeviceManager().memory_stats()
    assert (stats.total, stats.available, stats.allocated) == (None, None, None)
    assert stats.source == "psutil is not installed: pip install psutil"


def test_the_cpu_is_there_whatever_else_is() -> None:
    """Beside an accelerator it stays usable, and keeps every dtype."""
    with simulated_machine("cuda-laptop"):
        dm = dk.DeviceManager("cpu", strict=True)
        assert str(dm.device) == "cpu"
        assert dm.to(torch.ones(2, dtype=torch.float64)).dtype is torch.float64
        assert dm.create_generator(1).device == torch.device("cpu")


def test_a_torch_that_cannot_be_imported_is_the_reason() -> None:
    """The first failure is told, and NumPy goes on."""
    with simulated_machine("broken-torch"):
        assert "importing torch failed: ImportError: libcudart.so.13" in _verdict().reason
        assert dk.DeviceManager().backend == "numpy"
