"""Out of memory is told from all else, in every runtime's words."""

from __future__ import annotations

import builtins
import errno
import sys

import pytest
import torch

import devicekit as dk
from devicekit import is_out_of_memory
from devicekit.testing import simulated_machine

SAID = {
    "cuda": "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.69 GiB.",
    "hip": "HIP out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.98 GiB.",
    "xpu": "XPU out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.56 GiB.",
    "npu": "NPU out of memory. Tried to allocate 20.00 GiB (NPU 0; 60.97 GiB total capacity; 1 GiB already allocated).",
    "mps": "MPS backend out of memory (MPS allocated: 17.64 GiB, other allocations: 1 GiB, max allowed: 18.13 GiB).",
    "mps, one buffer": "Invalid buffer size: 20.00 GiB",
    "cpu, linux": "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "cpu, windows": "[enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] DefaultCPUAllocator: not enough memory: "
    "you tried to allocate 4000000000000 bytes.",
    "mig": "NVML_SUCCESS == r INTERNAL ASSERT FAILED at ../c10/cuda/CUDACachingAllocator.cpp:838, please report",
    "cublas": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "asynchronous": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other",
    "cudnn": "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "cudnn, workspace": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "level zero": "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "nccl": "NCCL error in: ProcessGroupNCCL.cpp:3690\nLast error:\nCuda failure 2 'out of memory'",
    "a replica": "Caught OutOfMemoryError in replica 1 on device 1.\nOriginal Traceback:\n  CUDA out of memory. Tried",
}  # fmt: skip

OTHERS = [
    RuntimeError("shape '[2, 3]' is invalid for input of size 5 in memory format torch.contiguous_format"),
    RuntimeError("Error(s) in loading state_dict for MemoryBank:\n\tsize mismatch for out_of_memory.weight"),
    RuntimeError("view size is not compatible with input tensor's size and stride (out of the memory's order)"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ValueError("CUDA out of memory"),  # nobody's way to say it; a text that somebody parsed
    KeyError("memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("the batch does not fit into memory_bank of 20 rows"),
]


@pytest.mark.parametrize("text", SAID.values(), ids=SAID.keys())
def test_every_runtime_s_words_count(text: str) -> None:
    """A RuntimeError with a runtime's own words for it is out of memory."""
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("exc", OTHERS, ids=lambda exc: str(exc)[:40])
def test_other_errors_do_not(exc: BaseException) -> None:
    """An error that mentions memory is not out of memory."""
    assert not is_out_of_memory(exc)


def test_the_classes_count_whatever_they_say() -> None:
    """torch's class, Python's, NumPy's and the system's need no words."""
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_a_real_one_of_the_cpu_counts() -> None:
    """What torch and NumPy raise here when 2**60 bytes are asked for is recognised."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        numpy.empty(2**60, dtype="uint8")
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)


@pytest.mark.parametrize("machine", ["cuda", "rocm", "xpu", "npu", "mps"])
def test_a_full_card_counts(machine: str) -> None:
    """What each simulated vendor's allocator raises is recognised."""
    kinds = {machine: True if machine == "mps" else 1}
    with simulated_machine(**kinds, memory="1GiB"):
        dm = dk.DeviceManager()
        with pytest.raises(RuntimeError) as full:
            dm.to(torch.empty(4 << 30, dtype=torch.uint8))
    assert is_out_of_memory(full.value)


def _raised(outer: BaseException, inner: BaseException, *, how: str) -> BaseException:
    try:
        try:
            raise inner
        except type(inner) as exc:
            if how == "from":
                raise outer from exc
            if how == "hidden":
                raise outer from None
            raise outer  # noqa: B904  # the point is an implicit chain
    except type(outer) as exc:
        return exc


def test_a_wrapper_s_error_counts() -> None:
    """An error raised from it, or while it was handled, counts; one that says it has nothing to do with it does not."""
    inner = RuntimeError(SAID["cuda"])
    assert is_out_of_memory(_raised(ValueError("worker died"), inner, how="from"))
    assert is_out_of_memory(_raised(ValueError("worker died"), inner, how="while"))
    assert not is_out_of_memory(_raised(ValueError("worker died"), inner, how="hidden"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_a_group_counts_by_its_members() -> None:
    """However deep it lies."""
    group = builtins.ExceptionGroup
    deep = group("outer", [ValueError(), group("inner", [torch.OutOfMemoryError("full")])])
    assert is_out_of_memory(deep)
    assert not is_out_of_memory(group("outer", [ValueError("x")]))


def test_a_circle_ends() -> None:
    """Errors that name each other as cause are looked at once."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


def test_nothing_is_not_out_of_memory() -> None:
    """`sys.exc_info()[1]` outside of a handler is None."""
    assert not is_out_of_memory(None)
