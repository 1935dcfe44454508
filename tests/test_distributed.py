"""Several processes come together with the collective of their devices, or are told why not; nobody waits for ever."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import devicekit as dk
from devicekit import distributed, host
from devicekit.distributed import Processes
from devicekit.host import Host
from devicekit.testing import simulated_machine
from tests.third_party import Acme

HERE = Path(__file__).parent
PROGRAMS = HERE / "distributed"
ALL = ("nccl", "xccl", "hccl", "gloo")

VENDORS = {"cuda": "nccl", "rocm": "nccl", "xpu": "xccl", "npu": "hccl"}
"""The collective of each kind of machine that can have two devices."""


class FakeDistributed:
    """What devicekit asks of torch.distributed, written down; the store where ranks meet is torch's own."""

    PrefixStore = torch.distributed.PrefixStore
    Backend = torch.distributed.Backend

    def __init__(self, store: Any = None, *, has: tuple[str, ...] = ALL, fails: Exception | None = None) -> None:
        self.store = torch.distributed.HashStore() if store is None else store
        self.has = has
        self.fails = fails
        self.made: list[tuple[str, dict[str, Any]]] = []
        self.destroyed = 0
        self.barriers = 0
        self.group = SimpleNamespace(WORLD=None)

    def is_available(self) -> bool:
        return bool(self.has)

    def is_backend_available(self, name: str) -> bool:
        if name.count(":") > 1 and "," not in name:
            raise ValueError(f"Invalid device:backend pairing: {name}")
        return all(part.rpartition(":")[2] in self.has for part in name.split(","))

    def is_initialized(self) -> bool:
        return self.group.WORLD is not None

    def rendezvous(self, url: str, rank: int, world_size: int, timeout: timedelta) -> Iterator[Any]:
        assert url == "env://"
        yield self.store, rank, world_size

    def init_process_group(self, backend: str, *, store: Any, **options: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.made.append((backend, options))
        self.group.WORLD = object()

    def destroy_process_group(self) -> None:
        assert self.is_initialized()
        self.destroyed += 1
        self.group.WORLD = None

    def barrier(self) -> None:
        self.barriers += 1

    def get_rank(self) -> int:
        return 3

    def get_world_size(self) -> int:
        return 4

    def get_backend(self) -> str:
        return "mpi"


def told(rank: int, size: int, **more: str) -> dict[str, str]:
    """The environment of a rank, all on one machine."""
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    return {**{name: str(value) for name, value in names.items()}, **more}


class Ranks:
    """The ranks of one job, each on a machine of its own making, in a thread each; close() all when it is over."""

    def __init__(self) -> None:
        self.store = torch.distributed.HashStore()
        self.dms: list[dk.DeviceManager] = []
        self.fakes: list[FakeDistributed] = []
        self._machines = contextlib.ExitStack()

    def add(self, machine: dict[str, Any], size: int, asked: object = None, **env: str) -> None:
        rank = len(self.dms)
        made = self._machines.enter_context(simulated_machine(**machine, env=told(rank, size, **env)))
        made.torch().distributed = fake = FakeDistributed(self.store)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dk.DeviceFallbackWarning)
            self.dms.append(dk.DeviceManager(asked))
        self.fakes.append(fake)

    def join(self, *collective: str, timeout: float = 20) -> list[Processes | Exception]:
        """What each rank has at the end: the processes or the error."""

        def one(dm: dk.DeviceManager) -> Processes | Exception:
            try:
                return dm.init_distributed(*collective, timeout=timeout)
            except dk.DeviceKitError as error:
                return error

        with ThreadPoolExecutor(len(self.dms)) as pool:
            return list(pool.map(one, self.dms))

    def close(self) -> None:
        self._machines.close()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


def errors(ended: list[Processes | Exception]) -> set[str]:
    """The errors; all ranks must have one."""
    assert all(isinstance(each, dk.DeviceKitError) for each in ended), ended
    return {str(each) for each in ended}


@contextlib.contextmanager
def alone(env: dict[str, str] | None = None, **machine: Any) -> Iterator[tuple[dk.DeviceManager, FakeDistributed]]:
    """One process on a simulated machine."""
    with simulated_machine(**machine, env=env or {}) as made:
        made.torch().distributed = fake = FakeDistributed()
        yield dk.DeviceManager(), fake


# -- the collective ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "expected"),
    [*(({kind: 1}, name) for kind, name in VENDORS.items()), ({"mps": True}, "gloo"), ({}, "gloo")],
    ids=str,
)
def test_every_device_has_its_collective(machine: dict[str, Any], expected: str) -> None:
    """By torch's name; None where torch has it not, and where torch has no torch.distributed at all."""
    with alone(**machine) as (dm, fake):
        assert dm.distributed_backend == expected
        fake.has = tuple(name for name in ALL if name != expected)
        assert dm.distributed_backend is None
        fake.has = ()
        assert dm.distributed_backend is None


def test_the_real_torch_has_gloo_for_the_cpu() -> None:
    """And NumPy has none."""
    assert dk.DeviceManager("cpu").distributed_backend == "gloo"
    assert dk.DeviceManager("numpy").distributed_backend is None


# -- alone -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("asked", ["cpu", "numpy"])
def test_alone_nothing_is_made(asked: str) -> None:
    """Rank 0 of 1, without a process group; waiting, closing and the context do nothing."""
    elsewhere = Host(env={"MASTER_ADDR": "localhost", "WORLD_SIZE": " "})
    with host.use(elsewhere), dk.DeviceManager(asked).init_distributed() as world:
        world.barrier()
        assert (world.rank, world.world_size, world.local_rank, world.backend) == (0, 1, 0, None)
        assert world.is_main
        assert str(world) == "the only process, on cpu"
    world.close()
    assert not torch.distributed.is_initialized()


def test_alone_no_gpu_is_touched() -> None:
    """The runtime is not started, and nothing is asked of torch.distributed."""
    with alone(cuda=2) as (dm, fake):
        assert dm.init_distributed().backend is None
        assert not dm._backend.torch.cuda.is_initialized()
        assert fake.made == []


# -- together ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", VENDORS)
def test_each_rank_has_its_device(kind: str, ranks: Ranks) -> None:
    """Its number is LOCAL_RANK, it is current, and torch gets the vendor's collective, the device and the time."""
    for _ in range(2):
        ranks.add({kind: 2}, 2, kind)
    for rank, (world, fake, dm) in enumerate(zip(ranks.join(timeout=30), ranks.fakes, ranks.dms, strict=True)):
        assert isinstance(world, Processes), world
        assert (world.rank, world.world_size, world.local_rank, world.backend) == (rank, 2, rank, VENDORS[kind])
        assert world.is_main is (rank == 0)
        assert world.device == dm.device
        assert str(world) == f"rank {rank} of 2, on {dm.device}, through {VENDORS[kind]}"
        options = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=30), "device_id": dm.device}
        assert fake.made == [(VENDORS[kind], options)]
        assert getattr(dm._backend.torch, dm.device.type)._contexts == {rank}
        world.close()
        assert fake.destroyed == 1


@pytest.mark.parametrize(("machine", "warned"), [({}, False), ({"mps": True}, True)], ids=["cpu", "mps"])
def test_gloo_is_told_no_device(machine: dict[str, Any], warned: bool, ranks: Ranks) -> None:
    """Torch takes a device with an index only; on mps a warning says that gloo takes none of its tensors."""
    for _ in range(2):
        ranks.add(machine, 2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        ended = ranks.join()
    assert [each.backend for each in ended if isinstance(each, Processes)] == ["gloo", "gloo"]
    assert all("device_id" not in fake.made[0][1] for fake in ranks.fakes)
    words = {str(each.message) for each in heard}
    assert any("gloo takes no mps tensors" in each for each in words) is warned
    assert any("Ranks 0, 1 share mps" in each for each in words) is warned
    assert len(words) == 2 * warned
    assert all(each.filename == __file__ for each in heard)


def test_a_third_party_s_device_is_not_given_to_gloo() -> None:
    """It has an index, and gloo by default, which would refuse it; the words say what gloo takes."""
    with alone(told(0, 1)) as (dm, fake):
        acme = Acme(dm._backend.host)
        with pytest.warns(UserWarning, match="gloo takes no meta tensors"):
            world = distributed.start(acme, acme.device(1), 1, None, 20)
    world.close()
    assert (world.backend, str(world.device), "device_id" in fake.made[0][1]) == ("gloo", "meta:1", False)


def test_a_single_process_of_torchrun_has_a_group() -> None:
    """Whoever starts one process through torchrun may count on torch.distributed."""
    with alone(told(0, 1), cuda=1) as (dm, fake), dm.init_distributed() as world:
        assert (world.world_size, world.backend) == (1, "nccl")
        world.barrier()
        assert (len(fake.made), fake.barriers) == (1, 1)
    assert fake.destroyed == 1


def test_a_second_group_does_not_find_the_keys_of_the_first(ranks: Ranks) -> None:
    """Ranks meet again at the same store, as under torchrun, and hear of each other anew."""
    for _ in range(2):
        ranks.add({"cuda": 2}, 2)
    for _ in range(2):
        for world in ranks.join():
            assert isinstance(world, Processes), world
            world.close()
    ranks.dms[1] = dk.DeviceManager("cpu")
    assert [len(fake.made) for fake in ranks.fakes] == [2, 2]


def test_a_pair_of_collectives_is_torchs_to_read() -> None:
    """One for the CPU beside the device's own goes through, with the device; nonsense does not."""
    with alone(told(0, 1), cuda=1) as (dm, fake):
        dm.init_distributed("cpu:gloo,cuda:nccl").close()
        assert fake.made[0][0] == "cpu:gloo,cuda:nccl"
        assert fake.made[0][1]["device_id"] == dm.device
        for nonsense in ("cpu:gloo:nccl", "nonsense", "", 7):
            with pytest.raises(dk.DeviceKitError, match="cannot be used between processes"):
                dm.init_distributed(nonsense)  # type: ignore[arg-type]


# -- what would end in waiting for ever ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "size", "asked", "shared"),
    [
        (1, 2, "cuda", "Ranks 0, 1 share cuda:0"),
        (2, 2, "cuda:0", "Ranks 0, 1 share cuda:0"),
        (2, 3, None, " share cuda:"),
    ],
)
def test_nccl_refuses_to_share_a_gpu(count: int, size: int, asked: object, shared: str, ranks: Ranks) -> None:
    """More ranks than GPUs, or an index that is the same for all: an error in every rank, and no group is made."""
    for _ in range(size):
        ranks.add({"cuda": count}, size, asked)
    (said,) = errors(ranks.join())
    assert shared in said
    assert "nccl needs a device of its own" in said
    assert 'init_distributed("gloo")' in said
    assert all(fake.made == [] for fake in ranks.fakes)


def test_others_may_share_with_a_warning(ranks: Ranks) -> None:
    """Through gloo two ranks on one GPU work together, slowly, and hear of it."""
    for _ in range(2):
        ranks.add({"cuda": 1}, 2)
    with pytest.warns(UserWarning, match="Ranks 0, 1 share cuda:0 of one machine"):
        ended = ranks.join("gloo")
    assert all(isinstance(each, Processes) for each in ended)
    assert all(fake.made[0][0] == "gloo" and "device_id" not in fake.made[0][1] for fake in ranks.fakes)


@pytest.mark.parametrize(("kind", "mask"), [("cuda", "CUDA_VISIBLE_DEVICES"), ("rocm", "HIP_VISIBLE_DEVICES")])
def test_a_mask_for_each_rank_is_no_sharing(kind: str, mask: str, ranks: Ranks) -> None:
    """A launcher that shows each rank one GPU leaves all of them at index 0."""
    for rank in range(2):
        ranks.add({kind: 2}, 2, **{mask: str(rank)})
    assert [str(world.device) for world in ranks.join() if isinstance(world, Processes)] == ["cuda:0", "cuda:0"]


def test_containers_of_one_host_are_no_sharing(ranks: Ranks) -> None:
    """Each torchrun, of which there is one a machine or container, has devices of its own."""
    for rank in range(2):
        ranks.add({"cuda": 1}, 2, GROUP_RANK=str(rank))
    assert all(isinstance(each, Processes) for each in ranks.join())


def test_a_rank_that_fell_back_is_named(ranks: Ranks) -> None:
    """One on the CPU would wait in gloo for those that wait in nccl; all are told, and nobody waits."""
    for _ in range(2):
        ranks.add({"cuda": 3}, 3)
    ranks.add({}, 3)
    (said,) = errors(ranks.join())
    assert "ranks 0, 1: nccl on cuda:0; rank 2: gloo on cpu" in said


def test_who_does_not_come_is_named(ranks: Ranks) -> None:
    """The ranks that are there learn who is missing, when the time is over."""
    for _ in range(2):
        ranks.add({}, 12)
    assert errors(ranks.join(timeout=0.3)) == {
        "Ranks 2, 3, 4, 5, 6, 7, 8, 9 and 2 more of 12 did not come within 0.3 s.\n"
        "  why: not started, ended before it came here, still loading, or cut off from MASTER_ADDR\n"
        "  try: the first error in its output; for slow starts a longer timeout="
    }


def test_without_rank_0_nobody_waits_for_ever() -> None:
    """The error names the place where they were to meet."""
    with alone(told(1, 2)) as (dm, _), pytest.raises(dk.DeviceKitError, match="Rank 1 of 2 could not join") as caught:
        dm.init_distributed(timeout=0.2)
    assert "at localhost:29500." in str(caught.value)
    assert caught.value.__cause__ is not None


def test_what_torch_says_is_told_without_its_stack() -> None:
    """The runtime's own reason, and the error that it came from."""
    words = "NCCL error\nLast error:\nout of luck\nException raised from f at g.cpp:7\nframe #0: h"
    failure = torch.distributed.DistBackendError(words)
    with alone(told(0, 1), cuda=1) as (dm, fake):
        fake.fails = failure
        with pytest.raises(
            dk.DeviceKitError, match=r"DistBackendError: NCCL error Last error: out of luck\n"
        ) as caught:
            dm.init_distributed()
        assert caught.value.__cause__ is failure


# -- what is missing -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "way_out"),
    [
        ({"cuda": 1}, 'dm.init_distributed("gloo")'),
        ({"xpu": 1}, "gloo takes no xpu tensors"),
        ({"npu": 1}, "gloo takes no npu"),
    ],
    ids=str,
)
def test_an_accelerator_without_its_collective_is_an_error(machine: dict[str, Any], way_out: str) -> None:
    """It is not replaced in silence; the error says what works instead."""
    with alone(told(0, 1), **machine) as (dm, fake):
        fake.has = ("gloo",)
        with pytest.raises(
            dk.DeviceKitError, match=r"ccl' cannot be used between processes on .*\n.* does not have it"
        ) as caught:
            dm.init_distributed()
        assert way_out in caught.value.try_
        assert fake.made == []


def test_a_torch_without_distributed_says_so() -> None:
    """Under torchrun an error; alone nobody needs it."""
    with alone(told(0, 2)) as (dm, fake):
        fake.has = ()
        with pytest.raises(dk.DeviceKitError, match=r"torch 2.* is built without torch.distributed"):
            dm.init_distributed()
    with alone() as (dm, fake):
        fake.has = ()
        assert dm.init_distributed().world_size == 1


def test_numpy_has_no_collectives() -> None:
    """Under torchrun that is an error in words."""
    with host.use(Host(env=told(0, 2))), pytest.raises(dk.DeviceKitError, match="the numpy backend has no collectives"):
        dk.DeviceManager("numpy").init_distributed()


# -- a wrong environment -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"WORLD_SIZE": None},
            r"WORLD_SIZE missing.\n  why: set: RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; torchrun sets all five",
        ),
        ({"WORLD_SIZE": " "}, "WORLD_SIZE missing"),
        ({"RANK": None, "WORLD_SIZE": None}, "RANK, WORLD_SIZE missing"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR, MASTER_PORT missing"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK missing"),
        ({"RANK": "one"}, "RANK='one' is no number"),
        ({"RANK": "-1"}, "RANK='-1' is no number"),
        ({"RANK": "²"}, "RANK='²' is no number"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE='2.0' is no number"),
        ({"RANK": "2"}, r"RANK=2 is no rank of WORLD_SIZE=2.\n  why: the last one is 1"),
        ({"WORLD_SIZE": "0"}, "RANK=0 is no rank of WORLD_SIZE=0"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT='http' is no number"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT='0' is no number"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port"),
    ],
    ids=str,
)
def test_a_wrong_environment_is_named(changes: dict[str, str | None], words: str) -> None:
    """Which variable, what is wrong with it; nobody is waited for."""
    env = {name: text for name, text in {**told(0, 2), **changes}.items() if text is not None}
    with alone(env) as (dm, fake), pytest.raises(dk.DeviceKitError, match=words):
        dm.init_distributed()
    assert fake.made == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e10, "60", None, True])
def test_a_timeout_is_seconds(timeout: Any) -> None:
    """Nothing that would wait for ever, or not at all, also where nobody would be waited for."""
    with pytest.raises(dk.DeviceKitError, match=re.escape(f"timeout={timeout!r} is no time to wait.")):
        dk.DeviceManager("cpu").init_distributed(timeout=timeout)


# -- a group of somebody else's ----------------------------------------------------------------------------
@pytest.mark.parametrize(("env", "local"), [({}, None), ({"LOCAL_RANK": "1"}, 1)], ids=["unknown", "told"])
def test_a_group_that_is_there_is_kept(env: dict[str, str], local: int | None) -> None:
    """It is described as torch tells of it, whatever the environment says, and outlives what was closed here."""
    with alone(env, cuda=2) as (dm, fake):
        fake.group.WORLD = object()
        with dm.init_distributed() as world:
            assert (world.rank, world.world_size, world.local_rank, world.backend) == (3, 4, local, "mpi")
            world.barrier()
        assert (fake.made, fake.destroyed, fake.barriers) == ([], 0, 1)


def test_a_group_made_since_is_left_alone() -> None:
    """Who takes ours down and makes another one keeps it."""
    with alone(told(0, 1), cuda=1) as (dm, fake):
        world = dm.init_distributed()
        fake.destroy_process_group()
        world.close()
        assert fake.destroyed == 1
        again = dm.init_distributed()
        fake.group.WORLD = object()
        again.close()
        assert fake.destroyed == 1


# -- the end -----------------------------------------------------------------------------------------------
started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """What a failed test has started ends with it."""
    yield
    while started:
        process = started.pop()
        process.kill()
        process.communicate()


def start(program: str, *arguments: str, launcher: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    """A program of the folder beside this file, in a process of its own."""
    path = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, *launcher, str(PROGRAMS / f"{program}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, output and errors; a process that hangs is a failure."""
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def finish_together(*arguments: str) -> tuple[int, str, str]:
    """Under torchrun; once more, where torch itself aborted after the last line.

    A thread of gloo or of autograd that lets go of a tensor while Python is taken down waits for Python's lock, and
    ends the process (pytorch/pytorch#190489, #179291); on a busy machine one run in five.
    """
    for _ in range(5):
        ended = finish(start(*arguments, launcher=TORCHRUN))
        if "terminate called without an active exception" not in ended[2]:
            break
    return ended


def port() -> str:
    """One that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


ENDS = {
    "comes to its end": ("taken down", "status 0"),
    "exits": ("taken down", "status 0"),
    "closes": ("taken down", "status 0"),
    "leaves a context": ("taken down", "status 0"),
    "exits a context": ("taken down", "status 0"),
    "forks": ("its child has ended", "taken down", "status 0"),
    "raises": ("status 1",),
    "fails in a context": ("status 0",),
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_group_is_taken_down_once_and_never_after_an_error() -> None:
    """At the end of the process at the latest; not by a forked child, and not where that could wait for ever."""
    status, out, err = finish(start("leaving", *ENDS))
    assert status == 0, err
    assert out.splitlines() == [line for how, lines in ENDS.items() for line in (how, *lines)]
    assert err.count("Traceback") == 1


# -- real processes ------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_training_together_is_training_alone(tmp_path: Path) -> None:
    """Under torchrun both ranks have the gradients of one process with the whole batch; nobody complains at the end."""
    folders = [tmp_path / "together", tmp_path / "alone"]
    for folder in folders:
        folder.mkdir()
    single = start("training", str(folders[1]))
    ends = [finish_together("training", str(folders[0])), finish(single)]
    for status, _, err in ends:
        assert status == 0, err
        assert "Warning" not in err
        assert "destroy_process_group" not in err
    first, second = (json.loads((folders[0] / f"{rank}.json").read_text()) for rank in range(2))
    only = json.loads((folders[1] / "0.json").read_text())
    assert [first[key] for key in ("rank", "size", "local", "backend", "main", "device", "group")] == [
        0, 2, 0, "gloo", True, "cpu", True,
    ]  # fmt: skip
    assert (second["rank"], second["local"], second["main"]) == (1, 1, False)
    assert second["said"] == "rank 1 of 2, on cpu, through gloo"
    assert (only["size"], only["group"], only["backend"]) == (1, False, None)
    assert first["gradients"] == second["gradients"]
    for ours, theirs in zip(first["gradients"], only["gradients"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_real_ranks_have_their_own_device_and_meet_twice() -> None:
    """Under torchrun, on a simulated machine with two GPUs: each its own, current; a second group works as well."""
    status, out, err = finish(start("two_gpus", launcher=TORCHRUN))
    assert status == 0, err
    assert sorted(out.splitlines()) == [
        f"attempt {attempt}: rank {rank} of 2, on cuda:{rank}, through gloo; current {rank}; sum 1"
        for attempt in range(2)
        for rank in range(2)
    ]


def pair(program: str, *arguments: tuple[str, ...]) -> list[subprocess.Popen[str]]:
    """Rank 0 and rank 1, each with its arguments, without anybody who watches over them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "WORLD_SIZE": "2"}
    return [start(program, *each, RANK=str(i), LOCAL_RANK=str(i), **address) for i, each in enumerate(arguments)]


@pytest.mark.slow
def test_both_hear_that_they_disagree() -> None:
    """Also the one that does not have the store, though the other one lets go of it at once."""
    for status, out, err in map(finish, pair("disagreeing", ("gloo",), ("cpu:gloo",))):
        assert status == 0, err
        assert "rank 0: gloo on cpu; rank 1: cpu:gloo on cpu" in out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "exits", "is killed"])
def test_when_a_rank_ends_the_other_does_not_wait(how: str) -> None:
    """Long before the timeout it has an error, and ends with it."""
    survivor, lost = map(finish, pair("ending", *[(how, "3600")] * 2))
    assert lost[0] == {"raises": 1, "is killed": -9}.get(how, 0), lost
    assert survivor[0] == 1, survivor
    assert "went on" not in survivor[1]
    assert "RuntimeError" in survivor[2]


@pytest.mark.slow
def test_a_rank_that_never_comes_is_waited_for_as_long_as_was_said() -> None:
    """The other has an error after the timeout, while the first one still lives."""
    survivor, lost = pair("ending", *[("never comes", "15")] * 2)
    status, out, err = finish(survivor)
    assert (status, out, lost.poll()) == (1, "", None), err
    assert "imed out" in err


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_is_killed() -> None:
    """The whole job has failed, and says which rank it was."""
    status, out, err = finish(start("ending", "is killed", "3600", launcher=TORCHRUN))
    assert status == 1
    assert "went on" not in out
    assert "SIGKILL" in err


@pytest.mark.slow
def test_who_meets_nobody_learns_it_in_time() -> None:
    """A port where nobody listens, where nobody comes, and which somebody else has."""
    status, out, err = finish(start("meeting"))
    nobody, lonely, taken = out.split("--\n")[:3]
    assert status == 0, err
    assert "Rank 1 of 2 could not join the others at 127.0.0.1:" in nobody
    assert "1/2 clients joined" in lonely
    assert "EADDRINUSE" in taken or "in use" in taken
