"""One run of the kernel graph, placed, timed and brought back: through the facade, and with torch alone.

Both go through the same steps with the same operations, in float32, compiled where there is a C++ compiler. By hand the
device, the dtype, the compiler, the clock and the memory's peak are written out for a processor.
"""

from __future__ import annotations

import resource
import shutil
import time
from typing import Any

import numpy as np
import torch

import devicekit as dk
from _systems import Pair

SIZE = "8x256x512"


def pair() -> Pair:
    """The pair; docs/examples is on the path. Compiling takes some seconds once, and is not part of the work."""
    from kernels import tensors
    from kernels.block import Size, block, draw
    from kernels.program import Program, walker
    from kernels.steps import schedule

    graph = block(Size.of(SIZE))
    inputs = draw(graph, seed=0)
    dm = dk.DeviceManager("cpu", dtype=torch.float32)
    program = Program(graph, dm)
    steps = schedule(graph)
    walk = walker(steps, tensors.run)
    compiled = torch.compile(walk) if shutil.which("g++") else walk

    def facade() -> dict[str, Any]:
        placed = program.place(inputs)
        with dm.measure() as run:
            outputs = program(placed)
        return {**dk.DeviceManager("numpy").to(outputs), "seconds": run.seconds, "peak": run.peak_memory}

    def by_hand() -> dict[str, Any]:
        placed = [torch.from_numpy(inputs[name]).to(device="cpu", dtype=torch.float32) for name in steps.inputs]
        start = time.perf_counter()
        outputs = compiled(*placed)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        named = {name: tensor.numpy() for name, tensor in zip(steps.outputs, outputs, strict=True)}
        return {**named, "seconds": seconds, "peak": peak}

    def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
        return all(np.array_equal(ours[name], theirs[name]) for name in steps.outputs)

    return Pair(f"one run of a transformer block of {SIZE} as a compiled graph", facade, by_hand, same)
