"""The facade: between threads, between processes, across a fork, and what it reports."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import devicekit as dk
from devicekit.host import current
from devicekit.testing import simulated_machine


@pytest.fixture(autouse=True)
def _cpu_machine() -> Iterator[None]:
    """A machine without an accelerator, wherever these tests run."""
    with simulated_machine("cpu"):
        yield


def test_it_knows_its_device() -> None:
    """Device, dtype, backend, index and warning are there; the dtype may be given."""
    with simulated_machine(cuda=2, memory="24GiB", architecture="sm_86"):
        dm = dk.DeviceManager("cuda:1")
        assert (str(dm.device), dm.backend, dm.index, dm.warning) == ("cuda:1", "cuda", 1, None)
        assert dm.dtype is torch.bfloat16
        assert dk.DeviceManager("cuda:1", dtype=torch.float16).dtype is torch.float16


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "bfloat17"), ("cpu", "nn"), ("cpu", 16), ("numpy", torch.half)])
def test_what_is_no_dtype_is_refused(backend: str, dtype: Any) -> None:
    """A word or another framework's dtype is an error at once, and not deep inside a model."""
    with pytest.raises(dk.DeviceKitError, match="is no dtype of"):
        dk.DeviceManager(backend, dtype=dtype)
    with pytest.raises(dk.DeviceKitError, match="is no dtype of"):
        dk.DeviceManager(backend).to([], dtype)


@pytest.mark.parametrize("name", ["float16", "torch.float16"])
def test_a_dtype_has_a_name(name: str) -> None:
    """As a command line gives it."""
    assert dk.DeviceManager("cpu", dtype=name).dtype is torch.float16
    assert dk.DeviceManager("cpu").to(torch.ones(2), name).dtype is torch.float16
    assert dk.DeviceManager("numpy", dtype="float16").dtype == "float16"


def test_its_repr_says_what_it_is() -> None:
    """The device and the backend, and the warning where there is one."""
    assert repr(dk.DeviceManager("cpu")) == "DeviceManager('cpu', backend='cpu')"
    with pytest.warns(dk.DeviceFallbackWarning):
        assert "warning=\"'cuda' was asked for" in repr(dk.DeviceManager("cuda"))


def test_housekeeping_works_without_an_accelerator() -> None:
    """Emptying the cache, waiting and resetting the peak never raise for there being no accelerator."""
    for backend in ("cpu", "numpy"):
        dm = dk.DeviceManager(backend)
        dm.empty_cache()
        dm.synchronize()
        dm.reset_peak_memory()


def test_memory_is_this_process_and_this_machine() -> None:
    """On the CPU the resident set is counted, the peak is no lower, and what is free is less than the total."""
    stats = dk.DeviceManager("cpu").memory_stats()
    assert stats.total is not None
    assert stats.available is not None
    assert stats.allocated is not None
    assert stats.peak is not None
    assert 0 < stats.allocated <= stats.peak
    assert 0 < stats.available <= stats.total
    assert stats.reserved is None
    assert stats.unified


def test_the_report_is_json() -> None:
    """A health page can show it as it is."""
    report = json.loads(json.dumps(dk.DeviceManager("cpu").report()))
    assert report["device"] == "cpu"
    assert report["dtype"] in {"bfloat16", "float16", "float32"}
    assert report["versions"]["torch"] == current().torch().__version__
    assert report["memory"]["total"] > 0
    assert report["source"] == "argument"


def test_the_report_carries_the_warning() -> None:
    """An operator who pinned what is not there sees why on the health page."""
    with pytest.warns(dk.DeviceFallbackWarning):
        report = dk.DeviceManager("xpu").report()
    assert "built without XPU" in report["warning"]
    assert report["requested"] == "xpu"


def test_it_can_be_pickled() -> None:
    """The same device, dtype and warning come out."""
    with pytest.warns(dk.DeviceFallbackWarning):
        dm = dk.DeviceManager("cuda", dtype=torch.float16)
    again = pickle.loads(pickle.dumps(dm))
    assert (again.device, again.dtype, again.backend, again.warning) == (dm.device, dm.dtype, dm.backend, dm.warning)


def test_a_pickle_from_another_machine_is_checked() -> None:
    """A manager of a GPU that the receiving machine has not falls back, with the reason."""
    with simulated_machine(cuda=2, memory="24GiB", architecture="sm_86"):
        sent = pickle.dumps(dk.DeviceManager("cuda:1"))
    again = pickle.loads(sent)
    assert again.backend == "cpu"
    assert again.warning is not None
    assert "built without CUDA" in again.warning


def test_one_manager_serves_many_threads() -> None:
    """Threads that share a manager get the numbers of their own seed."""
    dm = dk.DeviceManager("cpu")
    expected = [dm.randn((64,), seed=seed).tolist() for seed in range(8)]
    got: list[Any] = [None] * 8

    def work(seed: int) -> None:
        for _ in range(20):
            got[seed] = dm.to(dm.randn((64,), seed=seed)).tolist()
            dm.memory_stats()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


class Squares(Dataset[torch.Tensor]):
    """A dataset that uses the manager in the worker."""

    def __init__(self, dm: dk.DeviceManager) -> None:
        self.dm = dm

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        assert dk.resolve_device("cpu") == self.dm.device
        moved: torch.Tensor = self.dm.to(torch.tensor([float(index)])) ** 2
        return moved


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_data_loaders_worker(method: str) -> None:
    """Forked and spawned workers use the manager that they were given, and resolve anew."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 dislikes fork beside threads
        loader = DataLoader(Squares(dk.DeviceManager("cpu")), num_workers=1, multiprocessing_context=method)
        assert [float(x) for x in loader] == [0.0, 1.0, 4.0, 9.0]


def _resolve_in_child(queue: Any) -> None:
    queue.put(str(dk.resolve_device()))


def _ask_again(queue: Any) -> None:
    queue.put([str(dk.resolve_device("cuda:0")), dk.explain("cuda:0").warning])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_forked_child_asks_anew() -> None:
    """The parent may use CUDA, the child that was forked after it had started may not, and is told so."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with simulated_machine(cuda=1, memory="24GiB", architecture="sm_86") as host:
        assert str(dk.resolve_device("cuda:0")) == "cuda:0"
        host.torch().cuda.init()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = context.Process(target=_ask_again, args=(queue,))
            child.start()
        device, warning = queue.get(timeout=30)
        child.join(30)
    assert device == "cpu"
    assert "before this process was forked" in warning


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_fork_while_another_thread_decides_does_not_hang() -> None:
    """The lock of the deciding thread is not inherited by the child."""
    from devicekit import host as _host

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    release = threading.Event()
    holds = threading.Event()

    def hold() -> None:
        with _host.current().lock:
            holds.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait(30)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = context.Process(target=_resolve_in_child, args=(queue,))
            child.start()
        assert queue.get(timeout=30) == "cpu"
        child.join(30)
    finally:
        release.set()
        holder.join()
    assert child.exitcode == 0
