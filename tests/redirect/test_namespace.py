"""torch.cuda as the program sees it: every public name is decided on, and answers for the target."""

from __future__ import annotations

import inspect
import pickle
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devicekit.errors import DeviceUnavailableError
from devicekit.redirect.marks import mark
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.refusals import REFUSED
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")

LEFT_ALONE = {
    "stays an exception, and is raised by nobody": "AcceleratorError CudaError DeferredCudaCallError OutOfMemoryError",
    "a figure of torch itself": "cudaStatus has_half has_magma",
    "what torch was built for, which is what is asked": "get_arch_list get_gencode_flags",
    "says itself that there is no GPU, when it is used": "gds green_contexts jiterator",
    "gone since torch 2: torch says so itself": (
        "BFloat16Storage BoolStorage ByteStorage CharStorage ComplexDoubleStorage ComplexFloatStorage DoubleStorage "
        "FloatStorage HalfStorage IntStorage LongStorage ShortStorage"
    ),
    "calls or holds what is replaced": (
        "StreamContext amp default_generators device device_of graphs memory nccl nvtx profiler random sparse stream "
        "streams tunable comm"
    ),
    "imported there by torch, for itself": (
        "Any Callable DEVICE_REQUIREMENT Device List NewType Optional PYTORCH_RELEASES_CODE_CC TYPE_CHECKING Tuple "
        "Union cast classproperty importlib lru_cache os platform threading torch traceback warnings"
    ),
}
"""Every public name of torch.cuda that is not replaced, in torch 2.6 to 2.13."""

NOT_ON_A_PROCESSOR = tuple(
    (module, name) for module, names in REFUSED.items() for name in names if module != "torch.cuda.comm"
)


def replaced(redirect: Redirect) -> list[str]:
    replacements = {id(new) for _, new in redirect.layer.replaced()}
    return [name for name in dir(torch.cuda) if id(getattr(torch.cuda, name)) in replacements]


def test_every_public_name_is_decided_on(redirect: Redirect) -> None:
    """A torch that has a name which nobody thought about fails here."""
    left = {name for names in LEFT_ALONE.values() for name in names.split()}
    public = {name for name in dir(torch.cuda) if not name.startswith("_")}
    assert public - left - set(replaced(redirect)) == set()
    assert left & set(replaced(redirect)) == set()


def test_what_defines_a_function_shows_the_same() -> None:
    assert torch.cuda.memory.memory_allocated is torch.cuda.memory_allocated
    assert torch.cuda.random.get_rng_state is torch.cuda.get_rng_state
    assert torch.cuda.streams.Event is torch.cuda.Event


def test_replacements_look_like_the_originals() -> None:
    assert torch.cuda.synchronize.__name__ == "synchronize"
    assert list(inspect.signature(torch.cuda.set_device).parameters) == ["device"]
    assert pickle.loads(pickle.dumps(torch.cuda.synchronize)) is torch.cuda.synchronize


# -- is there one ----------------------------------------------------------------------------------
def test_there_is_one() -> None:
    assert torch.cuda.is_available() is True
    assert torch.cuda.is_initialized() is True
    assert torch.cuda.device_count() == 1
    torch.cuda.init()


def test_torch_itself_is_told_the_truth() -> None:
    """torch's own code works with the real device, so it must know it."""
    asked = "def answers():\n    import torch\n    return torch.cuda.is_available(), torch.cuda.device_count()"
    module = types.ModuleType("torch.a_part")
    exec(asked, module.__dict__)
    program = types.ModuleType("a_program")
    exec(asked, program.__dict__)
    assert module.answers() != (True, 1) or torch.cuda._is_compiled()
    assert program.answers() == (True, 1)


def test_also_inside_one_another() -> None:
    """The inner redirect asks through the outer one, and that is nobody's program."""
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        test_torch_itself_is_told_the_truth()


def test_the_outer_one_left_first_leaves_the_inner_one_right() -> None:
    first, second = (Redirect(DecidedTarget(resolver().decide("cpu"), count)) for count in (2, 3))
    first.__enter__()
    second.__enter__()
    assert torch.cuda.device_count() == 3
    second.layer.on = False  # as when it is left while another one stands above
    assert torch.cuda.device_count() == 2
    second.__exit__(None, None, None)
    first.__exit__(None, None, None)


def test_what_was_to_be_done_at_the_start_is_done_now() -> None:
    """Libraries queue it, because CUDA starts late."""
    done: list[int] = []
    torch.cuda._lazy_init()
    torch.cuda._lazy_call(lambda: done.append(1))
    assert done == [1]


# -- which one -------------------------------------------------------------------------------------
@pytest.fixture
def three() -> Iterator[Redirect]:
    """The processor stands for three devices."""
    with Redirect(DecidedTarget(resolver().decide("cpu"), 3)) as redirect:
        yield redirect


@pytest.mark.parametrize("device", [2, "cuda:2", torch.device("cuda:2")])
def test_a_device_is_current_until_another_is(three: Redirect, device: Any) -> None:
    torch.cuda.set_device(device)
    assert torch.cuda.current_device() == 2
    with torch.cuda.device(1):
        assert torch.cuda.current_device() == 1
        with torch.cuda.device(None), torch.cuda.device(-1):
            assert torch.cuda.current_device() == 1
    assert torch.cuda.current_device() == 2
    torch.cuda.set_device(-1)
    assert torch.cuda.current_device() == 2


def test_each_thread_has_its_own(three: Redirect) -> None:
    torch.cuda.set_device(1)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.cuda.current_device()))
    thread.start()
    thread.join()
    assert found == [0]


def test_the_device_of_a_tensor(three: Redirect) -> None:
    with torch.cuda.device_of(mark(torch.ones(2), 2)):
        assert torch.cuda.current_device() == 2
    with torch.cuda.device_of(torch.ones(2)):
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("device", [None, 0, 7, -1, "cuda", "cuda:0", torch.device("cuda"), torch.device("cpu")])
def test_on_a_processor_any_number_is_the_processor(device: Any) -> None:
    torch.cuda.synchronize(device)
    assert torch.cuda.memory_allocated(device) > 0
    assert torch.cuda.current_stream(device) is not None


def test_the_device_of_a_tensor_is_taken_as_well() -> None:
    """Tensors say the truth, and programs ask about ``x.device``."""
    assert torch.cuda.get_device_name(torch.ones(1, device="cuda").device) == "CPU"


@pytest.mark.parametrize("wrong", ["cuad", "meta"])
def test_another_device_is_an_error(wrong: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match="device"):
        torch.cuda.set_device(wrong)


class Numbered(DecidedTarget):
    """A target whose devices have numbers."""

    def exists(self, index: int) -> bool:
        return 0 <= index < self.count


def test_a_number_too_high_is_the_error_of_cuda() -> None:
    with Redirect(Numbered(resolver().decide("cpu"), 2)):
        assert torch.cuda.get_device_name(1) == "CPU"
        kind = getattr(torch, "AcceleratorError", RuntimeError)
        for call in (torch.cuda.set_device, torch.cuda.synchronize, torch.cuda.mem_get_info):
            with pytest.raises(kind, match="CUDA error: invalid device ordinal"):
                call(2)
        for call in (torch.cuda.get_device_properties, torch.cuda.get_device_name):
            with pytest.raises(AssertionError, match="Invalid device id"):
                call("cuda:2")
        with pytest.raises(AssertionError, match="Invalid peer device id"):
            torch.cuda.can_device_access_peer(0, 2)
        with pytest.raises(kind, match="ordinal"), torch.cuda.device(2):
            pass


# -- what it is ------------------------------------------------------------------------------------
def test_properties() -> None:
    props = torch.cuda.get_device_properties("cuda")
    assert (props.name, props.major, props.minor) == ("CPU", 0, 0)
    assert torch.cuda.get_device_capability() == (0, 0)
    assert props.total_memory == torch.cuda.mem_get_info()[1] > 2**20
    assert props.multi_processor_count >= 1
    assert props.warp_size == 32
    assert "CPU" in repr(props)
    assert len(str(props.uuid)) == 36


def test_properties_have_what_torchs_own_have() -> None:
    """Every attribute that torch's stubs list is there."""
    stub = (Path(torch.__file__).parent / "_C" / "__init__.pyi").read_text(encoding="utf-8")
    found = stub.partition("class _CudaDeviceProperties:\n")[2].partition("\n\n")[0]
    names = [line.strip().partition(":")[0] for line in found.splitlines() if line.startswith("    ")]
    props = torch.cuda.get_device_properties()
    assert len(names) > 5
    assert [name for name in names if not hasattr(props, name)] == []


def test_bfloat16_runs_on_a_processor() -> None:
    """Natively or not; so programs do not fall back to float16, for which the same holds."""
    native = torch.bfloat16 in resolver().decide("cpu").backend.autocast_dtypes()
    assert torch.cuda.is_bf16_supported() is True
    assert torch.cuda.is_bf16_supported(including_emulation=False) is native


def test_figures_of_the_driver_are_nought() -> None:
    for name in ("utilization", "temperature", "power_draw", "clock_rate", "memory_usage"):
        assert getattr(torch.cuda, name)() == 0
    assert not torch.cuda.can_device_access_peer(0, 1)
    assert torch.cuda.is_current_stream_capturing() is False
    torch.cuda.ipc_collect()


def test_the_debug_mode_is_remembered() -> None:
    torch.cuda.set_sync_debug_mode("warn")
    assert torch.cuda.get_sync_debug_mode() == 1
    with pytest.raises(RuntimeError, match="invalid value of debug_mode"):
        torch.cuda.set_sync_debug_mode("loud")


def test_flags_stay_torchs_own() -> None:
    """They may be set, and tell the truth about what torch was built with."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = True, True
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before
    assert torch.backends.cuda.is_built() == torch.cuda._is_compiled()
    assert issubclass(torch.cuda.OutOfMemoryError, RuntimeError)


# -- memory ----------------------------------------------------------------------------------------
def test_memory_is_told_in_whole_bytes() -> None:
    names = "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_cached max_memory_cached"
    figures = {name: getattr(torch.cuda, name)() for name in names.split()}
    assert {type(figure) for figure in figures.values()} == {int}
    assert figures["max_memory_allocated"] >= figures["memory_allocated"] // 2 > 0
    free, total = torch.cuda.mem_get_info(0)
    assert 0 < free <= total
    assert torch.cuda.device_memory_used(0) <= total


def test_memory_grows_with_what_is_there() -> None:
    before = torch.cuda.memory_allocated()
    block = torch.ones(2**24, device="cuda")
    assert torch.cuda.memory_allocated() - before > 2**25
    del block
    torch.cuda.empty_cache()


def test_statistics_have_torchs_keys() -> None:
    """``memory_stats()["allocated_bytes.all.peak"]``, and the same nested."""
    flat, nested = torch.cuda.memory_stats(), torch.cuda.memory_stats_as_nested_dict()
    assert list(flat) == sorted(flat)
    assert flat["allocated_bytes.all.current"] > 0
    assert flat["num_ooms"] == 0
    for kind in ("allocation", "segment", "active", "inactive_split_bytes", "requested_bytes"):
        for pool in ("all", "large_pool", "small_pool"):
            assert set(nested[kind][pool]) == {"current", "peak", "allocated", "freed"}
    assert "oversize_segments.current" in flat


def test_what_is_reset_and_given_back() -> None:
    """Nothing of it fails, and nothing of it is needed."""
    torch.cuda.reset_peak_memory_stats("cuda:0")
    torch.cuda.reset_max_memory_allocated()
    torch.cuda.reset_accumulated_memory_stats()
    torch.cuda.caching_allocator_enable(False)
    assert torch.cuda.memory_snapshot() == []
    assert torch.cuda.get_allocator_backend() == "native"


def test_summaries_name_the_device() -> None:
    assert "CPU" in torch.cuda.memory_summary()
    assert len(torch.cuda.memory_summary(device="cuda", abbreviated=True)) < len(torch.cuda.memory_summary())
    assert "this process" in torch.cuda.list_gpu_processes(0)


def test_a_part_of_the_memory() -> None:
    torch.cuda.set_per_process_memory_fraction(0.5, 0)
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):
        assert torch.cuda.get_per_process_memory_fraction() == 0.5
    with pytest.raises(ValueError, match="Allowed range: 0~1"):
        torch.cuda.set_per_process_memory_fraction(1.5)
    with pytest.raises(TypeError, match="must be `float`"):
        torch.cuda.set_per_process_memory_fraction(1)


# -- tools -----------------------------------------------------------------------------------------
def test_marks_for_a_profiler_do_nothing() -> None:
    torch.cuda.nvtx.range_push("a")
    torch.cuda.nvtx.range_pop()
    torch.cuda.nvtx.mark("b")
    with torch.cuda.nvtx.range("step {}", 1):
        pass
    torch.cuda.profiler.start()
    torch.cuda.profiler.stop()
    with torch.cuda.profiler.profile():
        pass


def test_the_runtimes_library() -> None:
    cudart = torch.cuda.cudart()
    torch.cuda.check_error(cudart.cudaProfilerStart())
    torch.cuda.check_error(cudart.cudaProfilerStop())
    assert cudart.cudaMemGetInfo(0)[1] == torch.cuda.mem_get_info()[1]
    assert cudart.cudaGetErrorString(cudart.cudaError.success) == "CUDA error 0"
    with pytest.raises(torch.cuda.CudaError, match="2"):
        torch.cuda.check_error(2)
    with pytest.raises(AttributeError, match="cudaHostRegister cannot be called here"):
        cudart.cudaHostRegister(0, 0, 0)


def test_there_is_no_nccl_and_nothing_to_tune() -> None:
    assert not torch.cuda.nccl.version() >= (2, 10)
    assert torch.cuda.nccl.is_available([torch.ones(1, device="cuda")]) is False
    torch.cuda.tunable.enable()
    assert torch.cuda.tunable.is_enabled() is False


@pytest.mark.parametrize(("module", "name"), NOT_ON_A_PROCESSOR)
def test_what_only_cuda_can_do_says_so(module: str, name: str) -> None:
    """One error, with the reason and the way out, that is a RuntimeError as torch's is."""
    owner = torch.cuda if module == "torch.cuda" else getattr(torch.cuda, module.rpartition(".")[2])
    if not hasattr(owner, name):
        pytest.skip("this torch does not have it")
    with pytest.raises(DeviceUnavailableError, match="cannot work on cpu") as caught:
        getattr(owner, name)()
    assert isinstance(caught.value, RuntimeError)
    assert "\n  try: " in str(caught.value)


def test_what_cannot_be_made_can_be_asked_about_and_built_on() -> None:
    class Mine(torch.cuda.CUDAGraph):
        pass

    assert not isinstance(1, torch.cuda.CUDAGraph)
    with pytest.raises(DeviceUnavailableError, match="CUDAGraph"):
        Mine()


def test_refusals_are_recorded() -> None:
    from devicekit.redirect.recording import Record

    record = Record()
    with Redirect(DecidedTarget(resolver().decide("cpu")), record=record):
        torch.cuda.synchronize()
        with pytest.raises(DeviceUnavailableError):
            torch.cuda.graph_pool_handle()
    counted = {(place.what, place.refused): n for place, n in record.counts.items()}
    assert counted["torch.cuda.synchronize", False] == 1
    assert counted["torch.cuda.graph_pool_handle", True] == 1
