"""From a graph to steps: elementwise operations that feed only one another become one step, and memory is let go.

Run one by one, each elementwise operation reads and writes a whole array. Fused, the numbers in between never leave
the processor's cache (``arrays.py``), are written over in place (``tensors.py``), or exist in registers only, where a
compiler makes one loop of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.graph import ELEMENTWISE, Graph, Shape, Value

__all__ = ["Link", "Schedule", "Step", "schedule"]


@dataclass(frozen=True)
class Link:
    """One operation inside of a step."""

    operation: str
    settings: Mapping[str, Any]
    operands: tuple[int, ...]
    """Numbers below the step's number of sources are these; the others are results of links before, counted on."""


@dataclass(frozen=True)
class Step:
    """What is run at once: one operation, or several fused ones, whose last result is the step's."""

    links: tuple[Link, ...]
    sources: tuple[int, ...]
    """Slots that are read."""
    target: int
    """The slot that is written."""
    shape: Shape
    finished: tuple[int, ...]
    """Slots that nobody reads after this step."""

    def __str__(self) -> str:
        return "+".join(link.operation for link in self.links)


@dataclass(frozen=True)
class Schedule:
    """Steps over numbered slots; the first slots hold the inputs."""

    inputs: tuple[str, ...]
    outputs: Mapping[str, int]
    steps: tuple[Step, ...]
    most_numbers: int
    """Alive at once, inputs included, when it is most: times the bytes of one it is the memory, but for what a step
    needs on its way."""


def schedule(graph: Graph, *, fuse: bool = True) -> Schedule:
    """The steps of a graph, each after those that it needs."""
    absorbed = _absorbed(graph) if fuse else {}
    slots: dict[Value, int] = {value: slot for slot, value in enumerate(graph.inputs.values())}
    drafts: list[tuple[tuple[Link, ...], tuple[Value, ...], Value]] = []
    for value in graph.values:
        if value.operation != "input" and value not in absorbed:
            slots[value] = len(slots)
            drafts.append((*_links(value, absorbed), value))
    kept = {slots[value] for value in graph.outputs.values()}
    last = {slots[source]: number for number, (_, sources, _) in enumerate(drafts) for source in sources}
    steps = []
    for number, (links, sources, value) in enumerate(drafts):
        read = tuple(slots[source] for source in sources)
        finished = tuple(slot for slot in dict.fromkeys(read) if last[slot] == number and slot not in kept)
        steps.append(Step(links, read, slots[value], value.shape, finished))
    names = {name: slots[value] for name, value in graph.outputs.items()}
    sizes = {slot: math.prod(value.shape) for value, slot in slots.items()}
    return Schedule(tuple(graph.inputs), names, tuple(steps), _most(len(graph.inputs), steps, sizes))


def _absorbed(graph: Graph) -> dict[Value, Value]:
    """Value to the one that computes it on the way: its only reader, elementwise as itself, and of the same shape."""
    readers: dict[Value, set[Value]] = {}
    for value in graph.values:
        for argument in value.arguments:
            readers.setdefault(argument, set()).add(value)
    wanted = set(graph.outputs.values())
    found = {}
    for value in graph.values:
        if value.operation in ELEMENTWISE and value not in wanted and len(readers[value]) == 1:
            (reader,) = readers[value]
            if reader.operation in ELEMENTWISE and reader.shape == value.shape:
                found[value] = reader
    return found


def _links(value: Value, absorbed: Mapping[Value, Value]) -> tuple[tuple[Link, ...], tuple[Value, ...]]:
    """The operations that end in this value, in order, and the values that they read from outside."""
    members: list[Value] = []
    waiting = [value]
    while waiting:  # from the end; what is read stands behind its reader, so that the reverse is an order
        member = waiting.pop()
        members.append(member)
        waiting.extend(argument for argument in dict.fromkeys(member.arguments) if absorbed.get(argument) is member)
    members.reverse()
    inside = set(members)
    sources = tuple(dict.fromkeys(a for member in members for a in member.arguments if a not in inside))
    numbers = {source: number for number, source in enumerate(sources)}
    links = []
    for member in members:
        links.append(Link(member.operation, member.settings, tuple(numbers[a] for a in member.arguments)))
        numbers[member] = len(sources) + len(links) - 1
    return tuple(links), sources


def _most(inputs: int, steps: list[Step], sizes: Mapping[int, int]) -> int:
    """Inputs belong to the caller and stay; what a step writes is there beside all that it reads."""
    alive = most = sum(sizes[slot] for slot in range(inputs))
    for step in steps:
        alive += sizes[step.target]
        most = max(most, alive)
        alive -= sum(sizes[slot] for slot in step.finished if slot >= inputs)
    return most
