"""Several processes: what would make them wait for ever is found before they wait.

torch waits where a process is missing, where two have one GPU, and where one fell back to the CPU and speaks gloo while
the others speak nccl. So they first tell each other, at the store where they meet, what they have.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from devicekit.backend import Backend
from devicekit.errors import DeviceKitError
from devicekit.request import local_rank

__all__ = ["Processes", "collective", "start"]

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in every process it starts (torch/distributed/run.py, "Environment Variables")."""

UNSHARED = "nccl"
"""Where processes share a GPU it ends in "deadlock or NCCL invalid usage" (docstring of init_process_group)."""

PATIENCE = timedelta(seconds=5)
"""At most so much longer they wait: the others for a rank 0 that came later, and it for all to hear an error."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that work together; a context, at whose end the process group is taken down.

    After an exception nothing is taken down, because that would wait for the others (pytorch/torchtitan#1342): the
    process should end, and they see its connections close.
    """

    rank: int
    """From 0 on, among all."""
    world_size: int
    local_rank: int | None
    """From 0 on, among those on this machine; None: somebody else made the process group, and nothing says it."""
    backend: str | None
    """The collective library; None: this process is alone, and no process group was made."""
    device: Any
    _group: _Group | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Rank 0: the one to write files and talk."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all have come here; alone there is nobody to wait for."""
        if self._group is not None:
            self._group.distributed.barrier()

    def close(self) -> None:
        """Take down the process group, if it was made here; harmless twice, and done when the process ends well."""
        if self._group is not None:
            self._group.close()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: Any, raised: BaseException | None, _: Any) -> None:
        if raised is None or (isinstance(raised, SystemExit) and not raised.code):
            self.close()
        elif self._group is not None:
            self._group.leave()

    def __str__(self) -> str:
        if self.backend is None:
            return f"the only process, on {self.device}"
        return f"rank {self.rank} of {self.world_size}, on {self.device}, through {self.backend}"


class _Group:
    """The process group, and whether it is ours to take down."""

    def __init__(self, distributed: Any, *, ours: bool) -> None:
        self.distributed = distributed
        self._made = distributed.group.WORLD if ours else None
        self._process = os.getpid()
        if ours:
            atexit.register(self._at_exit)

    def close(self) -> None:
        self.leave()
        made, self._made = self._made, None
        # A forked child has the parent's connections; and what was made since by somebody else is theirs.
        if made is not None and self._process == os.getpid() and self.distributed.group.WORLD is made:
            self.distributed.destroy_process_group()

    def leave(self) -> None:
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if getattr(sys, "last_value", None) is None:  # what an uncaught exception leaves behind
            self.close()


@dataclass(frozen=True, slots=True)
class _Place:
    """What the environment says about this process."""

    rank: int
    world_size: int
    local_rank: int


def collective(backend: Backend) -> str | None:
    """The library that moves this device's tensors between processes; None where this torch has it not."""
    distributed = _distributed(backend)
    return backend.collective if distributed is not None and _has(distributed, backend.collective) else None


def start(backend: Backend, device: Any, index: int | None, asked: str | None, timeout: float) -> Processes:
    """Join the processes that the environment tells of; alone, do nothing.

    Args:
        backend: of the device.
        device: this process's.
        index: the device's number; None where there is only one.
        asked: the collective; None: the device's own.
        timeout: seconds, for the others to come and for each collective.

    Raises:
        DeviceKitError: the environment makes no sense, the collective is missing, or they do not come together.
    """
    limit = _limit(timeout)
    env, distributed = backend.host.env, _distributed(backend)
    if distributed is not None and distributed.is_initialized():
        rank, size, name = distributed.get_rank(), distributed.get_world_size(), str(distributed.get_backend())
        return Processes(rank, size, local_rank(env), name, device, _Group(distributed, ours=False))
    place = _place(env)
    if place is None:
        return Processes(0, 1, 0, None, device)
    name = _chosen(backend, distributed, asked)
    backend.make_current(index or 0)
    for words in _join(backend, device, index, place, name, limit):
        warnings.warn(words, stacklevel=3)
    return Processes(
        place.rank, place.world_size, place.local_rank, name, device, _Group(backend.torch.distributed, ours=True)
    )


# -- what there is ---------------------------------------------------------------------------------
def _distributed(backend: Backend) -> Any | None:
    """``torch.distributed``; None without torch, and where torch was built without it."""
    if not backend.needs_torch:
        return None
    distributed = backend.torch.distributed
    return distributed if distributed.is_available() else None


def _has(distributed: Any, name: str) -> bool:
    with contextlib.suppress(ValueError):  # torch's answer to a pair such as "cpu:gloo:nccl"
        return bool(distributed.is_backend_available(name))
    return False


def _takes(distributed: Any, name: str, device_type: str) -> bool:
    """Whether a collective takes tensors of these devices, as far as torch knows."""
    known = distributed.Backend.backend_capability.get(name)
    return known is None or device_type in known


def _chosen(backend: Backend, distributed: Any | None, asked: str | None) -> str:
    if distributed is None:
        why = f"the {backend.name} backend has no collectives"
        if backend.needs_torch:
            why = f"torch {backend.torch.__version__} is built without torch.distributed"
        raise DeviceKitError("Several processes cannot work together here.", why=why, try_="one process")
    name = backend.collective if asked is None else asked
    if isinstance(name, str) and _has(distributed, name):
        return name
    slower = 'dm.init_distributed("gloo"), which is slower; or a torch that has it'
    never = f'a torch that has it, or DeviceManager("cpu"): gloo takes no {backend.device_type} tensors'
    raise DeviceKitError(
        f"{name!r} cannot be used between processes on {backend.name}.",
        why=f"torch {backend.torch.__version__} does not have it",
        try_=slower if _takes(distributed, "gloo", backend.device_type) else never,
    )


# -- what the environment says -----------------------------------------------------------------------
def _limit(timeout: Any) -> timedelta:
    # Torch counts nanoseconds in 64 bits, so 1e10 seconds would be over at once.
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout <= 1e9:
        return timedelta(seconds=timeout)
    raise DeviceKitError(f"timeout={timeout!r} is no time to wait.", try_="seconds, more than 0: timeout=600")


def _place(env: Mapping[str, str]) -> _Place | None:
    """Rank, size and local rank; None: nothing says that there are several processes."""
    said = {name: env.get(name, "").strip() for name in (*NUMBERS, *ADDRESS)}
    if not any(said[name] for name in NUMBERS):
        return None
    missing = [name for name, text in said.items() if not text]
    if missing:
        there = ", ".join(name for name in said if name not in missing)
        raise DeviceKitError(
            f"The environment tells of several processes, but not all of it: {', '.join(missing)} missing.",
            why=f"set: {there}; torchrun sets all five",
            try_=f"torchrun --nproc-per-node=2 script.py; or, for one process: unset {' '.join(NUMBERS)}",
        )
    rank, size, local = (_number(name, said[name], 0) for name in NUMBERS)
    port = _number("MASTER_PORT", said["MASTER_PORT"], 1)
    if rank >= size:
        raise DeviceKitError(f"RANK={rank} is no rank of WORLD_SIZE={size}.", why=f"the last one is {size - 1}")
    if port >= 2**16:
        raise DeviceKitError(f"MASTER_PORT={port} is no port.", why="the last one is 65535")
    return _Place(rank, size, local)


def _number(name: str, text: str, least: int) -> int:
    if text.isascii() and text.isdigit() and int(text) >= least:
        return int(text)
    raise DeviceKitError(f"{name}={text!r} is no number.", why=f"it must be a whole number from {least} on")


# -- coming together ---------------------------------------------------------------------------------
def _join(backend: Backend, device: Any, index: int | None, place: _Place, name: str, limit: timedelta) -> list[str]:
    """Make the process group; what was noticed on the way, in words."""
    host, distributed = backend.host, backend.torch.distributed
    # A later group must not find the keys of an earlier one: torchrun's store lives as long as its processes.
    count = host.memo["process groups"] = host.memo.get("process groups", 0) + 1
    # NCCL connects at once when it is told the device, so its errors come here; gloo knows no devices.
    own = index is not None and backend.collective in name and backend.collective != "gloo"
    card = _card(backend, device, name)
    try:
        # Torch reads the address from the environment itself.
        store, _, _ = next(distributed.rendezvous("env://", place.rank, place.world_size, timeout=limit))
        store.set_timeout(limit)
        words = _compare(distributed.PrefixStore(f"devicekit/{count}", store), place, card, limit)
        distributed.init_process_group(
            name,
            store=distributed.PrefixStore(f"process group/{count}", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=limit,
            **({"device_id": device} if own else {}),
        )
    except DeviceKitError:
        raise
    except Exception as exc:
        where = ":".join(host.env[variable].strip() for variable in ADDRESS)
        raise DeviceKitError(
            f"Rank {place.rank} of {place.world_size} could not join the others at {where}.",
            why=_without_stack(exc),
            try_="the first error in the other processes' output; all must have come, and must reach MASTER_ADDR",
        ) from exc
    if not _takes(distributed, name, backend.device_type):
        words.append(f"{name} takes no {backend.device_type} tensors: send those of the CPU, or train on the CPU")
    return words


def _without_stack(exc: BaseException) -> str:
    """Torch's message up to the stack of its C++ part."""
    return f"{type(exc).__name__}: {' '.join(str(exc).partition('Exception raised from')[0].split())}"


def _card(backend: Backend, device: Any, name: str) -> dict[str, str]:
    """What the others have to know about this process."""
    env = backend.host.env
    # Who has all of this in common has one device. A torchrun (GROUP_RANK) has a machine or a container of its own.
    place = [socket.gethostname(), env.get("GROUP_RANK", ""), str(device), *(env.get(m, "") for m in backend.masks)]
    return {"collective": name, "device": str(device), "place": "\n".join(place) if backend.accelerator else ""}


def _compare(store: Any, place: _Place, card: dict[str, str], limit: timedelta) -> list[str]:
    """Tell what this process has, and hear from rank 0 what follows from what all have.

    Raises:
        DeviceKitError: in all processes alike, where they would only wait for each other.
    """
    store.set(f"card {place.rank}", json.dumps(card))
    if place.rank:
        store.wait(["verdict"], limit + min(limit, PATIENCE))
        verdict = json.loads(store.get("verdict"))
        store.set(f"heard {place.rank}", "")
    else:
        cards = _cards(store, place.world_size, limit)
        verdict = _verdict(cards, place.world_size, limit)
        store.set("verdict", json.dumps(verdict))
        if verdict["error"]:
            with contextlib.suppress(RuntimeError):  # who is slower than that loses the store, which is a reason too
                store.wait([f"heard {rank}" for rank in cards if rank], PATIENCE)
    if verdict["error"]:
        what, why, try_ = verdict["error"]
        raise DeviceKitError(what, why=why, try_=try_)
    return list(verdict["words"])


def _cards(store: Any, size: int, limit: timedelta) -> dict[int, dict[str, str]]:
    """What each rank has that came in time."""
    keys = {rank: f"card {rank}" for rank in range(size)}
    with contextlib.suppress(RuntimeError):  # torch's timeout is one
        store.wait(list(keys.values()), limit)
    return {rank: json.loads(store.get(key)) for rank, key in keys.items() if store.check([key])}


def _verdict(cards: Mapping[int, dict[str, str]], size: int, limit: timedelta) -> dict[str, Any]:
    """What follows from the cards: the three lines of an ``error`` that all must raise, or ``words`` to warn with."""
    missing = [rank for rank in range(size) if rank not in cards]
    if missing:
        return _refusal(
            f"{_ranks(missing).capitalize()} of {size} did not come within {limit.total_seconds():g} s.",
            "not started, ended before it came here, still loading, or cut off from MASTER_ADDR",
            "the first error in its output; for slow starts a longer timeout=",
        )
    collectives = _alike(cards, "collective")
    if len(collectives) > 1:
        found = (f"{_ranks(ranks)}: {name} on {cards[ranks[0]]['device']}" for name, ranks in collectives.items())
        return _refusal(
            "The processes have different collectives, and would wait for each other for ever.",
            "; ".join(found),
            "DeviceManager(strict=True), which says why a device cannot be used; or the CPU for all",
        )
    shared = [ranks for place, ranks in _alike(cards, "place").items() if place and len(ranks) > 1]
    said = "; ".join(f"{_ranks(ranks)} share {cards[ranks[0]]['device']} of one machine" for ranks in shared)
    if said and UNSHARED in cards[0]["collective"]:
        return _refusal(
            f"{said.capitalize()}.",
            f"{UNSHARED} needs a device of its own for each process",
            "as many processes as devices (torchrun --nproc-per-node) and a device without an index; "
            'or dm.init_distributed("gloo"), which can share',
        )
    return {"error": None, "words": [said.capitalize()] if said else []}


def _refusal(*lines: str) -> dict[str, Any]:
    return {"error": lines, "words": []}


def _alike(cards: Mapping[int, dict[str, str]], key: str) -> dict[str, list[int]]:
    """The ranks that have each value."""
    found: dict[str, list[int]] = {}
    for rank, card in cards.items():
        found.setdefault(card[key], []).append(rank)
    return found


def _ranks(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{more}"
