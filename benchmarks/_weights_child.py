"""Load one checkpoint in a process that has loaded nothing yet, and say what it cost; started by weights.py.

It imports one contestant, then takes jobs from stdin, a JSON object a line, and forks for each: the imports are paid
once, and every sample still begins with the memory of a fresh process. A job for an accelerator runs without a fork.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _weights_files import files_of, shapes_of, size_of
from torch import nn

BLOCK = 8 << 20
PAGE = 4096
PORTION = 1 << 30
"""What the limits are measured on: enough to leave every cache."""
HEATINGS, HOT = 2, 3e9
"""Passes over the memory at most, and the bytes a second that show that the host had it ready."""
SPARE = 3 << 29
"""Memory that is left to everybody else while the sample's is touched."""
DROP = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Job:
    """What to load, and in what state the machine must be before the clock starts."""

    path: Path
    tiny: Path
    """Loaded first, so that no import and no start of a thread is timed."""
    dtype: str | None = None
    owned: bool = False
    touch: bool = False
    """Whether the clock runs until every page of the result was read once."""
    module: str | None = None
    """The dtype of the module to fill; None: return a dict."""
    meta: bool = False
    cold: bool = False
    heat: int = 0
    """Bytes of memory to touch beforehand."""
    verify: bool = False
    device: str = "cpu"

    @property
    def target(self) -> torch.dtype | None:
        """What the tensors are cast to; None: what the file says."""
        return self.dtype and getattr(torch, self.dtype)

    @property
    def result(self) -> torch.dtype | None:
        """What the tensors must be in the end."""
        wanted = self.dtype or self.module
        return wanted and getattr(torch, wanted)


Result = dict[str, torch.Tensor] | nn.Module


def devicekit(job: Job, module: nn.Module | None, *, direct: bool = False) -> Result:
    """load_safetensors: one call for every case."""
    from devicekit import DeviceManager

    dm = DeviceManager(job.device)
    if module is None:
        return dm.load_safetensors(job.path, dtype=job.target, copy=job.owned, direct=direct)
    dm.load_safetensors(job.path, dtype=job.target, into=module)
    return module


def safetensors(job: Job, module: nn.Module | None, **backend: str) -> Result:
    """load_file, then what its users write around it."""
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in files_of(job.path):
        loaded = load_file(file, device=job.device, **backend)
        if job.target is not None:
            loaded = {name: tensor.to(job.target) for name, tensor in loaded.items()}
        elif job.owned and not backend:
            loaded = {name: tensor.clone() for name, tensor in loaded.items()}
        state.update(loaded)
    if module is None:
        return state
    module.load_state_dict(state, assign=job.meta)
    return module


def safetensors_pread(job: Job, module: nn.Module | None) -> Result:
    """load_file by its backend that maps nothing: owned without a clone."""
    return safetensors(job, module, backend="pread")


def load_model(job: Job, module: nn.Module) -> Result:
    """The way of safetensors into a module that has memory."""
    from safetensors.torch import load_model as load

    (file,) = files_of(job.path)
    load(module, file)
    return module


def accelerate(job: Job, module: nn.Module) -> Result:
    """With the device map that its big-model guide gives, without which it ignores the dtype."""
    from accelerate import load_checkpoint_in_model

    load_checkpoint_in_model(module, str(job.path), device_map={"": "cpu"} if job.meta else None, dtype=job.target)
    return module


def transformers(job: Job, _: nn.Module | None) -> Result:
    """Builds its own module, on meta; the time that takes is told apart by _building."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(job.path.parent, dtype=job.result, local_files_only=True)


def runai(job: Job, _: nn.Module | None) -> Result:
    """One request over all files; its tensors are the caller's to keep, and let go of theirs buffer by buffer."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(file) for file in files_of(job.path)], device=job.device)
        tensors = streamer.get_tensors()
        return {name: tensor if job.target is None else tensor.to(job.target) for name, tensor in tensors}


def fastsafetensors(job: Job, _: nn.Module | None) -> Result:
    """All files at once; its tensors keep the memory they lie in, so they need no copy."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    # Direct reads, its default, pass by the page cache: fast when the cache is cold only.
    os.environ["FASTSAFETENSORS_ODIRECT"] = "1" if job.cold else "0"
    loader = SafeTensorsFileLoader(SingleGroup(), device=job.device, nogds=job.device == "cpu")
    loader.add_filenames({0: [str(file) for file in files_of(job.path)]})
    files = loader.copy_files_to_device()
    state = {name: files.get_tensor(name) for name in loader.get_keys()}
    if job.target is not None:
        state = {name: tensor.to(job.target) for name, tensor in state.items()}
    files.close()
    loader.close()
    return state


CONTESTANTS: dict[str, tuple[Callable[..., Result], tuple[str, ...]]] = {
    "devicekit": (devicekit, ("devicekit",)),
    "devicekit direct": (functools.partial(devicekit, direct=True), ("devicekit",)),
    "safetensors": (safetensors, ("safetensors.torch",)),
    "safetensors pread": (safetensors_pread, ("safetensors.torch",)),
    "load_model": (load_model, ("safetensors.torch",)),
    "accelerate": (accelerate, ("accelerate", "torch.distributed.checkpoint.state_dict")),
    "transformers": (transformers, ("transformers.models.llama.modeling_llama",)),
    "runai": (runai, ("runai_model_streamer",)),
    "fastsafetensors": (fastsafetensors, ("fastsafetensors",)),
}


def main() -> None:
    contestant = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print is no answer
    problem = _imports(contestant)
    for line in sys.stdin:
        told = json.loads(line)
        job = Job(**{**told, "path": Path(told["path"]), "tiny": Path(told["tiny"])})
        if problem:
            answer = {"problem": problem}
        elif job.device == "cpu":
            answer = _forked(contestant, job)
        else:
            answer = _tried(contestant, job)
        print(json.dumps(answer), file=answers, flush=True)


def _imports(contestant: str) -> str:
    try:
        for name in CONTESTANTS[contestant][1] if contestant in CONTESTANTS else ():
            importlib.import_module(name)
    except ModuleNotFoundError as exc:
        return "not installed" if exc.name == name.partition(".")[0] else str(exc)
    return ""


def _forked(contestant: str, job: Job) -> dict[str, Any]:
    inlet, outlet = os.pipe()
    child = os.fork()
    if not child:
        os.write(outlet, json.dumps(_tried(contestant, job)).encode())
        os._exit(0)
    os.close(outlet)
    with os.fdopen(inlet, encoding="utf-8") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return json.loads(told) if told else {"problem": f"died with status {status}"}


def _tried(contestant: str, job: Job) -> dict[str, Any]:
    try:
        return _sample(CONTESTANTS[contestant][0], job) if contestant in CONTESTANTS else limits(job)
    except Exception as exc:
        return {"problem": f"{type(exc).__name__}: {exc}".partition("\n")[0]}


def _sample(load: Callable[..., Result], job: Job) -> dict[str, Any]:
    """Everything ready, the clock, then the look at what came out."""
    small = replace(job, path=job.tiny)
    problem = _differs(small, _tensors(load(small, _module(small))))
    if problem:
        return {"problem": problem}
    read_files(job.path)
    told: dict[str, Any] = {"heat": heat(job)}
    module = _module(job)
    building = _building(job) if load is transformers else (0.0, 0.0)
    told["cache"] = drop_cache(job.path) if job.cold else read_files(job.path)
    gc.collect()
    before = _reset_peak()
    start, busy = time.perf_counter(), time.process_time()
    result = load(job, module)
    if job.touch:
        _read_through(_tensors(result))
    if job.device != "cpu":
        torch.cuda.synchronize()
    spent, busy = time.perf_counter() - start, time.process_time() - busy
    told.update(before=before, peak=_memory("VmHWM"), seconds=spent - building[0], cpu=busy - building[1])
    return {**told, "problem": _differs(job, _tensors(result)) if job.verify else ""}


def _module(job: Job) -> nn.Module | None:
    """A module with a parameter for every tensor of the file: on meta, or with memory that was written to."""
    if job.module is None:
        return None
    dtype, root = getattr(torch, job.module), nn.Module()
    for name, shape in shapes_of(job.path).items():
        *owners, leaf = name.split(".")
        owner = root
        for step in owners:
            if step not in owner._modules:
                owner.add_module(step, nn.Module())
            owner = owner._modules[step]
        empty = torch.empty(shape, dtype=dtype, device="meta" if job.meta else "cpu")
        owner.register_parameter(leaf, nn.Parameter(empty if job.meta else empty.fill_(1)))
    return root


def _building(job: Job) -> tuple[float, float]:
    """What transformers needs to build the module alone; the others get theirs before the clock starts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(job.path.parent)
    for _ in range(2):
        start, busy = time.perf_counter(), time.process_time()
        with torch.device("meta"):
            LlamaForCausalLM(config)
        spent = time.perf_counter() - start, time.process_time() - busy
    return spent


def _tensors(result: Result) -> dict[str, torch.Tensor]:
    return result if isinstance(result, dict) else dict(result.named_parameters())


def _read_through(tensors: dict[str, torch.Tensor]) -> None:
    """Read a byte of every page."""
    for tensor in tensors.values():
        if tensor.device.type == "cpu":
            tensor.detach().reshape(-1).view(torch.uint8)[::PAGE].sum()


def _differs(job: Job, found: dict[str, torch.Tensor]) -> str:
    """What is wrong with the result, beside load_file's."""
    from safetensors.torch import load_file

    if job.owned and (mapped := _mapped(job, found)):
        return f"{mapped} lies in the mapped file"
    left = set(found)
    for file in files_of(job.path):
        for name, tensor in load_file(file).items():
            expected = tensor.to(job.result or tensor.dtype)
            there = found.get(name)
            if there is None or there.dtype != expected.dtype or not torch.equal(there.detach().cpu(), expected):
                return f"{name} is not what load_file gives"
            if there.device.type != torch.device(job.device).type:
                return f"{name} is on {there.device}"
            left.discard(name)
    return f"{min(left)} is not in the file" if left else ""


def _mapped(job: Job, found: dict[str, torch.Tensor]) -> str:
    """A tensor that lies in a mapping of one of the files; empty: there is none."""
    files = {str(file.resolve()) for file in files_of(job.path)}
    spans = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if fields[-1] in files:
            spans.append([int(end, 16) for end in fields[0].split("-")])
    inside = (name for name, tensor in found.items() if any(a <= tensor.data_ptr() < b for a, b in spans))
    return next(inside, "")


def heat(job: Job) -> float:
    """Touch the memory that the sample will be given: in a virtual machine the first touch may wait for the host.

    Large blocks for those who ask for huge pages and, while these are held, other memory for those who ask for pages of
    4 KiB, which come from smaller blocks: neither kind of contestant shall find its memory colder than the other's.
    Bytes a second of the last pass.
    """
    size = max(PAGE, min(job.heat, (_available() - size_of(job.path) - SPARE) // 2))
    rate = 0.0
    for _ in range(HEATINGS):
        start = time.perf_counter()
        large, small = fresh(size), fresh(size, huge=False)
        large[::PAGE] = small[::PAGE] = 1
        rate = 2 * size / (time.perf_counter() - start)
        del small, large  # in this order: what was freed last is given out first, and a large block is broken up last
        if rate > HOT:
            break
    return rate


def _available() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) << 10
    return 0


def fresh(size: int, *, huge: bool = True) -> torch.Tensor:
    """Memory that nobody touched yet, in huge pages where the system has them; given back with the tensor."""
    memory = mmap.mmap(-1, max(size, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def read_files(path: Path) -> str:
    """Bring the files into the page cache."""
    block = memoryview(bytearray(BLOCK))
    for file in files_of(path):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(block):
                pass
    return "warm"


def drop_cache(path: Path) -> str:
    """Take the files out of the page cache, and say how."""
    try:
        DROP.write_text("3", encoding="ascii")
    except OSError:
        for file in files_of(path):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "posix_fadvise"
    return "drop_caches"


def _reset_peak() -> int | None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _memory("VmRSS")
    return None


def _memory(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) << 10
    return None


def limits(job: Job) -> dict[str, Any]:
    """How fast this machine is at what a load consists of: bytes of the file a second, by workers."""
    file = files_of(job.path)[0]
    if job.device != "cpu":
        if not torch.cuda.is_available():
            return {"problem": "no accelerator"}
        return {"rates": {"pinned host memory to the device": {"1": _pinned(job.device)}}}
    if job.cold:
        drop_cache(job.path)
        start = time.perf_counter()
        read_files(file)
        return {"rates": {"read the file, cold": {"1": file.stat().st_size / (time.perf_counter() - start)}}}
    heat(job)
    read_files(file)
    with file.open("rb", buffering=0) as stream:
        return {"rates": _rates(stream.fileno(), min(PORTION, file.stat().st_size // BLOCK * BLOCK))}


def _rates(file: int, size: int) -> dict[str, dict[str, float]]:
    """Chunk by chunk, one worker after another taking the next: what any loader could do at best."""
    small, large = fresh(size), fresh(2 * size)
    small[::PAGE] = large[::PAGE] = 1
    as_bf16, as_f32 = torch.bfloat16, torch.float32
    given = {
        "read, touched memory": lambda: _reader(file, small),
        "read, fresh memory": lambda: _reader(file, fresh(size)),
        "memcpy, touched memory": lambda: _copier(small, large[:size], 1),
        "bfloat16 to float32, touched memory": lambda: _copier(small.view(as_bf16), large.view(as_f32), 2),
        "bfloat16 to float32, fresh memory": lambda: _copier(small.view(as_bf16), fresh(2 * size).view(as_f32), 2),
        "float32 to bfloat16, touched memory": lambda: _copier(large.view(as_f32), small.view(as_bf16), 4),
        "float32 to bfloat16, fresh memory": lambda: _copier(large.view(as_f32), fresh(size).view(as_bf16), 4),
        "map and touch": lambda: _toucher(file, size),
    }
    workers = sorted({1, 2, min(8, os.cpu_count() or 1)})
    found: dict[str, dict[str, float]] = {}
    for name, prepare in given.items():
        length = 2 * size if name.startswith("float32") else size
        found[name] = {str(n): _rate(prepare, length, n) for n in workers}
    return found


def _rate(prepare: Callable[[], Callable[[int], object]], size: int, workers: int) -> float:
    start = time.perf_counter()
    step = prepare()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(step, range(0, size, BLOCK)):
            pass
    return size / (time.perf_counter() - start)


def _reader(file: int, into: torch.Tensor) -> Callable[[int], object]:
    view = memoryview(into.numpy())
    return lambda at: os.preadv(file, [view[at : at + BLOCK]], at)


def _copier(source: torch.Tensor, into: torch.Tensor, item: int) -> Callable[[int], object]:
    step = BLOCK // item
    return lambda at: into[at // item : at // item + step].copy_(source[at // item : at // item + step])


def _toucher(file: int, size: int) -> Callable[[int], object]:
    pages = np.frombuffer(mmap.mmap(file, size, prot=mmap.PROT_READ), np.uint8)
    return lambda at: pages[at : at + BLOCK : PAGE].sum()


def _pinned(device: str) -> float:
    """Bytes a second into memory of the accelerator, from memory that the system cannot move."""
    size, times = 256 << 20, 16
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    there.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        there.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    return size * times / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
