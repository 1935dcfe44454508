"""torch.cuda itself: the questions that programs ask about the devices, and what they tell them to do."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Raises, check, group

group("namespace")
ORDINAL = Raises(RuntimeError, "invalid device ordinal")


def built_for_cuda(_: Any) -> bool:
    """What this torch was built with."""
    return torch.version.cuda is not None


NO_SUCH_ID = Raises(AssertionError, "Invalid device id")


@check("torch.cuda.is_available()")
def _() -> Any:
    return torch.cuda.is_available()


@check("torch.cuda.is_available() decides the device, as most programs do")
def _() -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return str(device) == "cuda" and torch.ones(2).to(device).sum().item() == 2


@check("torch.cuda.device_count() is positive")
def _() -> Any:
    return torch.cuda.device_count() >= 1


@check("torch.cuda.current_device()", 0)
def _() -> Any:
    return torch.cuda.current_device()


@check("torch.cuda.set_device by number, text and device", [0, 0, 0])
def _() -> Any:
    found = []
    for device in (0, "cuda:0", torch.device("cuda:0")):
        torch.cuda.set_device(device)
        found.append(torch.cuda.current_device())
    return found


@check("torch.cuda.set_device(-1) changes nothing", 0)
def _() -> Any:
    torch.cuda.set_device(-1)
    return torch.cuda.current_device()


@check("torch.cuda.set_device of a device that is not there", ORDINAL, translated=None, npu=Raises(RuntimeError))
def _() -> Any:
    current = torch.cuda.current_device()
    try:
        return torch.cuda.set_device(97)
    finally:
        torch.cuda.set_device(current)


@check("with torch.cuda.device(0)", 0)
def _() -> Any:
    with torch.cuda.device(0):
        return torch.cuda.current_device()


@check("with torch.cuda.device('cuda:0'), and of a torch.device", [0, 0])
def _() -> Any:
    found = []
    for device in ("cuda:0", torch.device("cuda", 0)):
        with torch.cuda.device(device):
            found.append(torch.cuda.current_device())
    return found


@check("with torch.cuda.device(1), and back", [1, 0], npu=ORDINAL, needs_devices=2)
def _() -> Any:
    with torch.cuda.device(1):
        inside = torch.cuda.current_device()
    return [inside, torch.cuda.current_device()]


@check("with torch.cuda.device_of(x)", 0)
def _() -> Any:
    with torch.cuda.device_of(torch.ones(2, device="cuda")):
        return torch.cuda.current_device()


@check("torch.cuda.get_device_name() is a text, whichever way it is asked")
def _() -> Any:
    names = {torch.cuda.get_device_name(d) for d in (None, 0, "cuda", "cuda:0", torch.device("cuda"))}
    return len(names) == 1 and all(names)


@check("torch.cuda.get_device_capability() is a pair of numbers")
def _() -> Any:
    return [type(n) for n in torch.cuda.get_device_capability()] == [int, int]


@check("torch.cuda.get_device_capability() >= (7, 0)", translated=False)
def _() -> Any:
    return torch.cuda.get_device_capability() >= (7, 0)


@check("torch.cuda.get_device_properties: what programs read of it")
def _() -> Any:
    found = torch.cuda.get_device_properties("cuda")
    numbers = (found.total_memory, found.major, found.minor, found.multi_processor_count)
    return isinstance(found.name, str) and all(isinstance(n, int) for n in numbers) and found.total_memory / 1e9 > 0


@check("torch.cuda.get_device_properties(x.device)")
def _() -> Any:
    return torch.cuda.get_device_properties(torch.ones(2, device="cuda").device).total_memory > 0


@check("torch.cuda.get_device_properties of a device that is not there", NO_SUCH_ID, translated=True, npu=NO_SUCH_ID)
def _() -> Any:
    return torch.cuda.get_device_properties(97).total_memory > 0


@check("torch.cuda.get_device_name of a device that is not there", NO_SUCH_ID, translated=True, npu=NO_SUCH_ID)
def _() -> Any:
    return bool(torch.cuda.get_device_name(97))


@check(
    "torch.cuda.get_device_properties('cpu')",
    Raises(ValueError, "Expected a cuda device, but got: cpu"),
    translated=True,
    npu=Raises(ValueError, "but got: cpu"),
)
def _() -> Any:
    return torch.cuda.get_device_properties("cpu").total_memory > 0


@check("torch.cuda.get_arch_list() is a list")
def _() -> Any:
    return isinstance(torch.cuda.get_arch_list(), list)


@check("torch.cuda.is_bf16_supported() is True or False")
def _() -> Any:
    return type(torch.cuda.is_bf16_supported()) is bool


@check("torch.cuda.init(); torch.cuda.is_initialized()")
def _() -> Any:
    torch.cuda.init()
    return torch.cuda.is_initialized()


@check("torch.cuda.synchronize() in every spelling", [None] * 5)
def _() -> Any:
    return [torch.cuda.synchronize(*d) for d in ((), (0,), ("cuda",), ("cuda:0",), (torch.device("cuda"),))]


@check("torch.cuda.empty_cache(), ipc_collect()", [None, None])
def _() -> Any:
    return [torch.cuda.empty_cache(), torch.cuda.ipc_collect()]


@check(
    "torch.cuda.can_device_access_peer(0, 1) is True or False",
    npu=Raises(AssertionError, "Invalid peer device id"),
    needs_devices=2,
)
def _() -> Any:
    return type(torch.cuda.can_device_access_peer(0, 1)) is bool


@check("torch.cuda.is_current_stream_capturing()", False)
def _() -> Any:
    return torch.cuda.is_current_stream_capturing()


@check("torch.cuda.nvtx.range_push, range_pop, mark and range")
def _() -> Any:
    torch.cuda.nvtx.range_push("a")
    torch.cuda.nvtx.mark("b")
    torch.cuda.nvtx.range_pop()
    with torch.cuda.nvtx.range("c"):
        return torch.ones(1, device="cuda").item() == 1


@check("torch.cuda.profiler.start(), stop()")
def _() -> Any:
    torch.cuda.profiler.start()
    torch.cuda.profiler.stop()
    return True


@check("torch.cuda.OutOfMemoryError is torch.OutOfMemoryError")
def _() -> Any:
    return torch.cuda.OutOfMemoryError is torch.OutOfMemoryError and issubclass(torch.OutOfMemoryError, RuntimeError)


@check("torch.cuda.get_device_module: torch.get_device_module('cuda') is torch.cuda")
def _() -> Any:
    return torch.get_device_module("cuda") is torch.cuda


@check("import torch.cuda as c; from torch.cuda import is_available")
def _() -> Any:
    import torch.cuda as cuda
    from torch.cuda import device_count, is_available

    return is_available() and cuda.is_available() and device_count() == cuda.device_count()


@check(
    "torch.version.cuda is a version",
    translated=built_for_cuda,
    masqueraded=Differs(built_for_cuda, "torch is what it was built as"),
)
def _() -> Any:
    return bool(re.match(r"\d+\.\d+", str(torch.version.cuda)))


@check(
    "torch.backends.cuda.is_built()",
    translated=built_for_cuda,
    masqueraded=Differs(built_for_cuda, "torch is what it was built as"),
)
def _() -> Any:
    return torch.backends.cuda.is_built()


@check("torch.backends.cudnn.benchmark, deterministic, enabled, allow_tf32 can be set")
def _() -> Any:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32 = True, True, True, True
    found = cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32 = before
    return found == (True, True, True, True)


@check("torch.backends.cuda.matmul.allow_tf32 can be set")
def _() -> Any:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    found, matmul.allow_tf32 = matmul.allow_tf32, before
    return found


@check("torch.backends.cuda.enable_flash_sdp and its questions")
def _() -> Any:
    before = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(True)
    found = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(before)
    return found


@check("torch.set_float32_matmul_precision('high')", "high")
def _() -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    return found


@check(
    "a CUDA graph is captured and replayed",
    4.0,
    translated=Raises(RuntimeError),
    masqueraded=Differs(Raises(RuntimeError), "nothing is captured without CUDA"),
)
def _() -> Any:
    x = torch.ones(2, device="cuda")
    (x * 2).sum()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x * 2).sum()
    graph.replay()
    return y.item()


# -- torch.accelerator -------------------------------------------------------------------------------
@check("torch.accelerator.is_available()")
def _() -> Any:
    return torch.accelerator.is_available()


@check("torch.accelerator.current_accelerator() is where the tensors are", translated=True)
def _() -> Any:
    return torch.accelerator.current_accelerator().type == torch.ones(1, device="cuda").device.type


@check("torch.accelerator.device_count() is torch.cuda's")
def _() -> Any:
    return torch.accelerator.device_count() == torch.cuda.device_count()


@check("torch.accelerator.current_device_index(), synchronize()", [0, None])
def _() -> Any:
    return [torch.accelerator.current_device_index(), torch.accelerator.synchronize()]


@check("torch.accelerator.set_device_index(0)", 0)
def _() -> Any:
    torch.accelerator.set_device_index(0)
    return torch.cuda.current_device()


@check("torch.accelerator.current_accelerator() as a device for tensors", 3.0)
def _() -> Any:
    return torch.ones(3, device=torch.accelerator.current_accelerator()).sum().item()
