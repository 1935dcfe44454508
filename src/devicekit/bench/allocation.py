"""What an allocator's settings are worth: they count only for a process that starts with them, so children measure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from devicekit import host as _host
from devicekit.bench.sizes import tuning_size
from devicekit.bench.stage import TorchStage
from devicekit.bench.timing import timed
from devicekit.errors import DeviceKitError
from devicekit.host import Host
from devicekit.resolve import resolver
from devicekit.tuning import SWITCH

__all__ = ["Figures", "Question", "answer", "ask_child"]

MARK = "\x1edevicekit "
"""Begins our line; what plugins print beside it is noise."""
PATIENCE = 120.0
"""Seconds for importing torch and for starting a runtime, beside the measuring itself."""

# The child stands where this process stands: the same sys.path, set before anything is imported from it.
BOOT = "import sys; sys.path[:] = sys.argv[2:]; from devicekit.bench.allocation import answer; answer(sys.argv[1])"


@dataclass(frozen=True, slots=True)
class Question:
    """What a child is to measure."""

    device: str
    """Its label, such as ``cuda:0``."""
    dtype: str
    threads: int | None
    duration: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What it found."""

    seconds: float
    """Of forwards of several lengths, one after the other; the fastest sample."""
    reserved: int | None
    """Bytes that the allocator holds afterwards; None: the runtime cannot tell."""


def ask_child(host: Host, question: Question, settings: Mapping[str, str]) -> Figures:
    """The figures under these environment variables.

    Raises:
        DeviceKitError: the child failed, or this machine is only simulated.
    """
    if host.to_json() is not None:
        raise DeviceKitError("an allocator cannot be measured.", why="this machine is simulated")
    command = [sys.executable, "-c", BOOT, json.dumps(asdict(question)), *(sys.path or [""])]
    environment = {**host.env, **settings, SWITCH: "off"}
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE + 2 * question.duration,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DeviceKitError("an allocator cannot be measured.", why=str(exc)) from exc
    for line in done.stdout.split("\n"):  # splitlines() would split at the mark
        if MARK in line:
            return Figures(**json.loads(line.partition(MARK)[2]))
    words = done.stderr.strip().splitlines()
    why = words[-1] if words else f"the process ended with exit status {done.returncode}"
    raise DeviceKitError("an allocator cannot be measured.", why=why)


def answer(asked: str) -> None:
    """Be the child: measure, and print the figures."""
    question = Question(**json.loads(asked))
    decision = resolver(_host.current()).decide(question.device, strict=True)
    stage = TorchStage(decision.backend, decision.device, decision.index or 0)
    if question.threads is not None:
        stage.torch.set_num_threads(question.threads)
    size = tuning_size(stage)
    with stage.quiet():
        lengths = (size.seq, size.seq // 2, size.seq - 8)  # what is kept for one fits no other
        made = size.transformer(stage, question.dtype)
        batches = [stage.tokens(size.batch, length, size.shape.vocabulary) for length in lengths]
        timing = timed(
            lambda: [made(tokens) for tokens in batches], stage.measure, samples=5, duration=question.duration
        )
    figures = Figures(min(timing.samples), stage.backend.memory_stats(stage.index).reserved)
    print("\n" + MARK + json.dumps(asdict(figures)), flush=True)  # noqa: T201  # this is the answer
