"""What ``torch.cuda`` has and only CUDA can do: it is refused with one error, when it is used."""

from __future__ import annotations

from typing import Any

from devicekit.errors import DeviceUnavailableError
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import answer, stand_in_everywhere

__all__ = ["REFUSED", "install"]

GRAPHS = (
    "a CUDA graph records what a GPU is given, and replays it there",
    "run without capture: the same calls, outside of torch.cuda.graph",
)
ALLOCATOR = ("it is about CUDA's own allocator, which is not in use", "torch's factories, such as torch.empty")
ADDRESS = ("it is an address in CUDA's libraries, for kernels written in C++ or CUDA", "the same through torch's API")
HISTORY = ("CUDA's allocator, which would be recorded, is not in use", "torch.profiler.profile(profile_memory=True)")
SEVERAL = ("it moves tensors between the GPUs of one process", "a process for each device, and torch.distributed")

REFUSED: dict[str, dict[str, tuple[str, str]]] = {
    "torch.cuda": {
        "CUDAGraph": GRAPHS,
        "graph": GRAPHS,
        "graph_pool_handle": GRAPHS,
        "make_graphed_callables": GRAPHS,
        "CUDAPluggableAllocator": ALLOCATOR,
        "MemPool": ALLOCATOR,
        "MemPoolContext": ALLOCATOR,
        "caching_allocator_alloc": ALLOCATOR,
        "caching_allocator_delete": ALLOCATOR,
        "change_current_allocator": ALLOCATOR,
        "use_mem_pool": ALLOCATOR,
        "ExternalStream": ADDRESS,
        "GreenContext": ADDRESS,
        "current_blas_handle": ADDRESS,
        "current_solver_handle": ADDRESS,
        "get_stream_from_external": ADDRESS,
    },
    "torch.cuda.memory": dict.fromkeys(("_dump_snapshot", "_record_memory_history", "_snapshot"), HISTORY),
    "torch.cuda.nccl": dict.fromkeys(
        ("all_gather", "all_reduce", "broadcast", "init_rank", "reduce", "reduce_scatter", "unique_id"), SEVERAL
    ),
    "torch.cuda.comm": dict.fromkeys(
        ("broadcast", "broadcast_coalesced", "gather", "reduce_add", "reduce_add_coalesced", "scatter"), SEVERAL
    ),
}
"""Why, and what to try."""


def install(redirect: Redirect) -> None:
    """Functions raise when they are called, classes when one is made; ``isinstance`` goes on working."""
    for module_name, names in REFUSED.items():
        module = redirect.module(module_name)
        for name, (why, try_) in names.items():
            real = getattr(module, name, None)
            error = _refuse(redirect, f"{module_name}.{name}", why, try_)
            if isinstance(real, type):
                stand_in_everywhere(redirect, module, name, _kind(redirect, real, error))
            else:
                answer(redirect, module, {name: error})


def _refuse(redirect: Redirect, what: str, why: str, try_: str) -> Any:
    def refused(*_: Any, **__: Any) -> Any:
        redirect.note(what, refused=True)
        raise DeviceUnavailableError(f"{what} cannot work on {redirect.target.device_type}.", why=why, try_=try_)

    return refused


def _kind(redirect: Redirect, real: Any, error: Any) -> Any:
    """A subclass that cannot be made, which is also what ``class Mine(torch.cuda.CUDAGraph)`` builds on."""
    layer = redirect.layer

    def __new__(_: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return error() if layer.on else real(*args, **kwargs)

    return type(real)(real.__name__, (real,), {"__new__": __new__, "__module__": real.__module__})
