"""``simulated_machine``: the whole of devicekit on a machine that is not there.

    with simulated_machine("mac"): ...
    with simulated_machine("two-gpus", faults="no_kernels"): ...
    with simulated_machine(cuda=2, memory="24GiB", architecture="sm_86", env={"CUDA_VISIBLE_DEVICES": "1"}): ...

The real backends run, on the answers of a simulated torch, driver and system. Tensors stay on the CPU: what is
simulated is dtypes, memory that runs out, and every answer; not speed, and not the device's arithmetic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from devicekit import host as _host
from devicekit.testing.fake_host import FakeHost
from devicekit.testing.machines import Faults, Machine, accelerated, machine_named

__all__ = ["simulated_machine"]


@contextlib.contextmanager
def simulated_machine(
    machine: str | Machine | None = None,
    *,
    cuda: int | None = None,
    rocm: int | None = None,
    xpu: int | None = None,
    npu: int | None = None,
    mps: bool | None = None,
    memory: int | str | None = None,
    architecture: str | None = None,
    faults: Faults | str | Iterable[str] | Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    **changes: Any,
) -> Iterator[FakeHost]:
    """Ask devicekit inside this block, in all threads, and it sees this machine; afterwards all is as it was.

    ``machine`` is the name of one of :data:`~devicekit.testing.MACHINES`, or a Machine. Or say how many cards there are
    (0: torch is built for them, and there is none) and what each has: ``memory="24GiB"``, ``architecture="sm_86"``.
    Without either it is a CPU. ``faults`` are names or names with values of :class:`~devicekit.testing.Faults`, ``env``
    adds to the machine's variables, ``changes`` are other fields of Machine, such as ``container="2GiB"``.

    Raises:
        ValueError: no machine has this name, a size or an architecture is none, or two kinds of cards are asked for.
        DeviceUnavailableError: the machine has torch, and this process has none to lend it.
    """
    kinds = {"cuda": cuda, "rocm": rocm, "xpu": xpu, "npu": npu, "mps": None if mps is None else int(mps)}
    chosen = _choose(machine, {kind: n for kind, n in kinds.items() if n is not None}, memory, architecture)
    if faults is not None:
        changes["faults"] = Faults.of(faults)
    host = FakeHost(replace(chosen, **{**changes, "env": {**chosen.env, **(env or {})}}))
    try:
        with _host.use(host):
            yield host
    finally:
        host.close()


def _choose(
    machine: str | Machine | None, kinds: Mapping[str, int], memory: int | str | None, architecture: str | None
) -> Machine:
    if len(kinds) > 1 or (kinds and machine is not None):
        asked = ", ".join([*kinds, *([] if machine is None else ["a machine"])])
        raise ValueError(f"one kind of accelerator at a time, for torch has one a process; asked for were {asked}")
    for kind, count in kinds.items():
        return accelerated(kind, count, memory, architecture)
    if machine is None:
        machine = "cpu"
    chosen = machine_named(machine) if isinstance(machine, str) else machine
    of_card: dict[str, Any] = {} if memory is None else {"memory": memory, "free": None}
    if architecture is not None:
        of_card["architecture"] = architecture
    return replace(chosen, cards=tuple(replace(card, **of_card) for card in chosen.cards)) if of_card else chosen
