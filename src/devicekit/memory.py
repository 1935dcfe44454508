"""Tell "out of memory" from all other errors: every runtime and library says it in its own words.

The classes and texts, and which of them other libraries miss: accelerate#4226 and #3803, torch's c10/core/CPUAllocator,
c10/cuda/CUDACachingAllocator, aten/src/ATen/mps/MPSAllocator.mm and c10/xpu, torch_npu's NPUCachingAllocator.cpp.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

__all__ = ["chain", "is_out_of_memory"]

_SAID = re.compile(
    "|".join(
        (
            r"\b(?:CUDA|HIP|XPU|NPU|MPS backend|MUSA|MLU|HPU) out of memory\b",
            r"\b(?:CUDA|HIP|NPU) error: out of memory\b",  # from a kernel, asynchronously
            r"\b[cC]uda failure (?:2 )?'out of memory'",  # NCCL
            r"\bMPS:? .*\bInvalid buffer size: |^Invalid buffer size: ",  # one buffer larger than Metal allows
            r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)",  # Linux and macOS; Windows
            # A MIG slice: the allocator asks NVML for its message's figures, and NVML refuses.
            r"NVML_SUCCESS == r INTERNAL ASSERT FAILED",
            r"\b(?:CUBLAS|CUSOLVER|CUSPARSE|CUFFT|CUDNN|HIPBLAS|MIOPEN|NCCL)_(?:STATUS_)?ALLOC_FAILED\b",
            r"\b(?:rocblas|hipsolver|hipfft)_status_(?:memory_error|alloc_failed)\b",
            # cuDNN has no workspace; it says the same of a non-contiguous input, which a smaller batch does not mend.
            r"cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
            r"\b(?:UR_RESULT|PI|ZE_RESULT)_ERROR_OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)\b",
            r"\bACL_ERROR_(?:RT_)?MEMORY_ALLOCATION\b|\bEL0004\b.*[Mm]emory",
            r"\b(?:hipErrorOutOfMemory|cudaErrorMemoryAllocation)\b",
            r"\bRESOURCE_EXHAUSTED: Out of memory\b",  # XLA
        )
    ),
    re.DOTALL | re.MULTILINE,
)


def is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from, says that memory ran out, of a device or of the host.

    Errors of torch on every backend, of the vendors' libraries, of NumPy and of Python count, also inside exception
    groups and where a wrapper raised its own error instead. An error that only mentions memory does not.
    """
    return any(_says_so(each) for each in chain(exc))


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """The error, those it was raised from or while handling, and the members of groups; each once."""
    waiting, seen = [exc], set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, None if each.__suppress_context__ else each.__context__]
        members = getattr(each, "exceptions", None)  # of an ExceptionGroup, which came with Python 3.11
        if isinstance(members, tuple):
            waiting += [member for member in members if isinstance(member, BaseException)]


def _says_so(exc: BaseException) -> bool:
    if isinstance(exc, MemoryError):  # NumPy's is a subclass
        return True
    if isinstance(exc, OSError) and exc.errno == errno.ENOMEM:
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(exc).__mro__):  # torch's, without importing torch
        return True
    return isinstance(exc, RuntimeError) and _SAID.search(str(exc)) is not None
