"""A graph made ready for one device: the same steps everywhere, compiled where the device has a compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import devicekit as dk
from kernels.graph import Graph, GraphError
from kernels.steps import Schedule, Step, schedule

__all__ = ["Program", "walker"]


class Program:
    """Something to call with placed inputs; a context, after which threads are as they were before.

    Args:
        graph: what to compute.
        dm: where, and in which dtype.
        workers: threads that share a step, on a processor; None leaves it to the device.
        fuse: make one step of elementwise operations that only feed one another.
    """

    def __init__(self, graph: Graph, dm: dk.DeviceManager, *, workers: int | None = None, fuse: bool = True) -> None:
        self.graph = graph
        self.dm = dm
        self.schedule = schedule(graph, fuse=fuse)
        self._resources = ExitStack()
        self._walk = dm.compile(walker(self.schedule, self._engine(workers)))

    def _engine(self, workers: int | None) -> Callable[[Step, Sequence[Any]], Any]:
        if self.dm.backend == "numpy":
            from kernels.arrays import Arrays

            return self._resources.enter_context(Arrays(workers or 1)).run
        from kernels import tensors  # imports torch, which the numpy backend does without

        if workers is not None:
            self._resources.enter_context(tensors.threads(workers))
        return tensors.run

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    @property
    def compilation(self) -> Any:
        """``compiled`` and ``reason``; it can change at the first call, when the compiler sees the graph."""
        return self.dm.compilation(self._walk)

    def place(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Arrays by name, on the device and in its dtype, in the order in which a call takes them.

        Raises:
            GraphError: one is missing, has another shape, or is no input of this graph.
        """
        unknown = sorted(set(inputs) - set(self.graph.inputs))
        if unknown:
            raise GraphError(f"the graph has no input {unknown[0]!r}; it has {', '.join(self.graph.inputs)}")
        for name, value in self.graph.inputs.items():
            if name not in inputs:
                raise GraphError(f"the input {name!r} is missing")
            if tuple(inputs[name].shape) != value.shape:
                raise GraphError(f"the input {name!r} has the shape {value.shape}, not {tuple(inputs[name].shape)}")
        placed = self.dm.to(dict(inputs), self.dm.dtype)
        return [placed[name] for name in self.schedule.inputs]

    def __call__(self, placed: Sequence[Any]) -> dict[str, Any]:
        """The outputs by name, on the device."""
        return dict(zip(self.schedule.outputs, self._walk(*placed), strict=True))


def walker(plan: Schedule, engine: Callable[[Step, Sequence[Any]], Any]) -> Callable[..., tuple[Any, ...]]:
    """A function of the inputs that goes through the steps, and lets go of what nobody reads any more."""

    def walk(*inputs: Any) -> tuple[Any, ...]:
        slots: dict[int, Any] = dict(enumerate(inputs))
        for step in plan.steps:
            slots[step.target] = engine(step, [slots[slot] for slot in step.sources])
            for slot in step.finished:
                del slots[slot]
        return tuple(slots[slot] for slot in plan.outputs.values())

    return walk
