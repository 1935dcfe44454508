"""What loading a checkpoint costs beside its peers and beside the machine: a load should cost what the hardware asks.

Every sample is a process that has loaded nothing yet, and memory that the host has at hand (see _weights_child.py).
The contestants of a case take turns, and the order turns round each time, so that a slow minute hits all of them alike;
medians are shown. Peaks are what the load added to the process. Results are held against load_file's before the clock
starts, on a small checkpoint of the same kind, and with --verify on the large one after it has stopped. For Linux; the
disk and the memory must each hold four times the checkpoint, and some.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from _table import Sheet, machine_line, median, save, show
from _weights_files import make, size_of

HERE = Path(__file__).resolve().parent
GIB = 2**30
NOISE = 1.05
"""What "no slower" leaves to chance."""
COLD, WARM = "cold", "warm"
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


@dataclass(frozen=True)
class Goal:
    """How many times as fast as a rival, and with what share of its peak; a speed of 1 allows for noise."""

    rival: str = "safetensors"
    """A contestant, or "peers": the fastest of them."""
    speed: float = 1.0
    peak: float | None = None
    states: tuple[str, ...] = (WARM,)

    def told(self) -> str:
        """The goal as the table shows it."""
        speed = "no slower than" if self.speed == 1 else f"{self.speed:g} times"
        peak = "" if self.peak is None else f", {self.peak:g} of its peak"
        return f"{speed} {self.rival}{peak}"


@dataclass
class Case:
    """One kind of load, and who can do it."""

    title: str
    source: str
    job: dict[str, Any]
    contestants: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    limit: str = ""
    """Of the machine's limits, the one that this load cannot beat while the files are in the page cache."""
    states: tuple[str, ...] = (WARM,)
    size: int = 0
    """Bytes on disk."""
    samples: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    """By state and contestant."""
    problems: dict[tuple[str, str], str] = field(default_factory=dict)


OURS = ("devicekit", "devicekit direct")
"""Direct reads, past the page cache, are for a cold one."""
READERS = (*OURS, "safetensors", "runai", "fastsafetensors")
FILLERS = ("devicekit", "safetensors", "accelerate", "transformers")
COPIERS = ("devicekit", "safetensors", "load_model", "accelerate")
PAIR = ("devicekit", "safetensors")
BOTH = (WARM, COLD)
WIDER = {"dtype": "float32"}
WIDEN, NARROW = "bfloat16 to float32, fresh memory", "float32 to bfloat16, fresh memory"
PINNED = "pinned host memory to the device"
FRESH, TOUCHED, MAP = "read, fresh memory", "read, touched memory", "map and touch"
FIRST = Goal("peers", states=BOTH)
CAST = (Goal(speed=2.3, peak=0.7, states=BOTH),)
CAST_SHARDS = (Goal(speed=2.3, states=BOTH),)  # no share of a peak: load_file shard by shard holds one of them twice
OWN = (Goal(speed=3.3), Goal("peers", states=(COLD,)))
FILL = (Goal("accelerate", 2.5), Goal("transformers", 2.5))
CASES = [
    Case("dict, bfloat16 to float32", "file", WIDER, READERS, CAST, WIDEN, BOTH),
    Case("dict, bfloat16 to float32, shards", "shards", WIDER, READERS, CAST_SHARDS, WIDEN, BOTH),
    Case(
        "dict, float32 to bfloat16",
        "float32",
        {"dtype": "bfloat16"},
        READERS,
        (Goal(speed=2.8, peak=0.36),),
        NARROW,
    ),
    Case("dict, memory owned", "file", {"owned": True}, (*READERS, "safetensors pread"), OWN, FRESH, BOTH),
    Case("dict, memory owned, shards", "shards", {"owned": True}, READERS, OWN, FRESH, BOTH),
    Case("dict, mapped, nothing touched", "file", {}, PAIR, (FIRST,)),
    Case("dict, mapped, every page touched", "file", {"touch": True}, READERS, (FIRST,), MAP, BOTH),
    Case(
        "meta module, bfloat16 to float32", "file", {"module": "float32", "meta": True, **WIDER}, FILLERS, FILL, WIDEN
    ),
    Case(
        "meta module, same dtype, every page touched",
        "file",
        {"module": "bfloat16", "meta": True, "touch": True},
        FILLERS,
        (FIRST,),
        MAP,
    ),
    Case("bfloat16 module with memory", "file", {"module": "bfloat16"}, COPIERS, (FIRST,), TOUCHED),
    Case(
        "float32 module with memory",
        "file",
        {"module": "float32"},
        COPIERS,
        (FIRST,),
        "bfloat16 to float32, touched memory",
    ),
    Case("10,000 small tensors, mapped", "lora", {}, PAIR, (Goal(),)),
    Case("10,000 small tensors, memory owned", "lora", {"owned": True}, READERS, (Goal(),)),
    Case("10,000 small tensors, bfloat16 to float32", "lora", WIDER, READERS, (Goal(),)),
]
LIMITS = Case("limits", "file", {}, ("limits",), states=BOTH)
ONTO = Case("cuda", "file", {"device": "cuda:0"}, READERS, (FIRST,), PINNED, BOTH)


def main() -> int:
    options = _options()
    with contextlib.ExitStack() as stack:
        if options.folder is None:
            options.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devicekit-weights-")))
        options.folder.mkdir(parents=True, exist_ok=True)
        print(f"checkpoints in {options.folder}", file=sys.stderr)
        chosen = [one for one in CASES if _wanted(one, options.cases)]
        bench = stack.enter_context(Bench(options))
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # show what there is
        if chosen:
            bench.measure([LIMITS, *chosen], options.gib)
        if _wanted(ONTO, options.cases):
            bench.measure_accelerator()
    print(machine_line(), file=sys.stderr)
    show([_limit_sheet(), *(sheet for one in [*chosen, ONTO] for sheet in _sheets(one))], markdown=options.markdown)
    save(options.json, gib=options.gib, cases=[_plain(one) for one in [LIMITS, *chosen, ONTO]])
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoints are made, and kept (default: a temporary one)"
    )
    parser.add_argument("--gib", type=float, default=2.7, help="size of the checkpoint in bfloat16 (default 2.7)")
    parser.add_argument("--cuda-gib", type=float, default=8.0, help="size of the one for an accelerator (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="samples for each contestant of a case (default 5)")
    parser.add_argument("--cases", default="", metavar="WORDS", help="only cases with one of these in their title")
    parser.add_argument(
        "--touch", type=float, metavar="GIB", help="memory touched beforehand (default: what a case uses)"
    )
    parser.add_argument("--verify", action="store_true", help="compare all of each result as well, once; takes long")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--only-warm", dest="states", action="store_const", const=(WARM,), default=BOTH)
    state.add_argument("--only-cold", dest="states", action="store_const", const=(COLD,))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    return parser.parse_args()


def _wanted(case: Case, words: str) -> bool:
    return any(word.strip() in case.title for word in words.split(","))


class Server:
    """A process that has imported one contestant, and answers with what a load cost."""

    def __init__(self, contestant: str) -> None:
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "_weights_child.py"), contestant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env={**os.environ, **QUIET},
            text=True,
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job; a problem where the process is gone."""
        try:
            _open(self.process.stdin).write(json.dumps(job) + "\n")
            _open(self.process.stdin).flush()
        except BrokenPipeError:
            line = ""
        else:
            line = _open(self.process.stdout).readline()
        if line:
            return json.loads(line)
        self.said.seek(0)
        return {"problem": (self.said.read().strip().splitlines() or ["it died without a word"])[-1]}

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            _open(self.process.stdin).close()
        self.process.wait()
        _open(self.process.stdout).close()
        self.said.close()


class Bench:
    """The contestants' processes, and the rounds they take part in."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.servers: dict[str, Server] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.close()

    def measure(self, cases: list[Case], gib: float) -> None:
        """All the rounds of some cases."""
        for case in cases:
            make(self.options.folder, f"tiny_{case.source}", gib)
            make(self.options.folder, case.source, gib)
        for number in range(self.options.rounds):
            for case in cases:
                for state in self._states(case):
                    told = f"round {number + 1} of {self.options.rounds}: {case.title}, {state}"
                    print(told, file=sys.stderr, flush=True)
                    self._turn(case, state, number, gib)

    def measure_accelerator(self) -> None:
        """The case that needs one, beside how fast the accelerator takes data from memory that is pinned."""
        tiny = str(make(self.options.folder, "tiny_file", 0))
        told = self._ask("limits", {"path": tiny, "tiny": tiny, **ONTO.job})
        if "rates" in told:
            ONTO.samples[WARM, "limits"] = [told]
            self.measure([ONTO], self.options.cuda_gib)
        else:
            ONTO.problems.update({(WARM, name): told["problem"] for name in ONTO.contestants})

    def _states(self, case: Case) -> list[str]:
        return [state for state in case.states if state in self.options.states]

    def _turn(self, case: Case, state: str, number: int, gib: float) -> None:
        """One sample of every contestant."""
        path = make(self.options.folder, case.source, gib)
        case.size = size_of(path)
        job = {"path": str(path), "tiny": str(make(self.options.folder, f"tiny_{case.source}", gib)), **case.job}
        job.update(cold=state == COLD, verify=self.options.verify and number == 0, heat=self._heat(case, path))
        for contestant in case.contestants if number % 2 else reversed(case.contestants):
            key = state, contestant
            if key in case.problems or (contestant == OURS[1] and state == WARM):
                continue
            told = self._ask(contestant, job)
            if told.get("problem"):
                case.problems[key] = told["problem"]
                print(f"{case.title}, {state}, {contestant}: {told['problem']}", file=sys.stderr, flush=True)
            else:
                case.samples.setdefault(key, []).append(told)

    def _heat(self, case: Case, path: Path) -> int:
        """Bytes to touch beforehand: the new memory that the hungriest contestant takes, and some."""
        if self.options.touch is not None:
            return int(self.options.touch * GIB)
        source = size_of(path)
        if case is LIMITS:
            return 5 * GIB
        wanted = case.job.get("dtype") or case.job.get("module")
        factor = {None: 2, "float32": 4, "bfloat16": 2}[wanted] / (4 if case.source == "float32" else 2)
        lasting = source * factor if wanted or case.job.get("owned") or case.job.get("touch") else 0
        buffers = source if "dtype" in case.job and "runai" in case.contestants else 0
        return int(lasting + buffers) + GIB // 2

    def _ask(self, contestant: str, job: dict[str, Any]) -> dict[str, Any]:
        server = self.servers.pop(contestant, None) or Server(contestant)
        told = server.ask(job)
        if server.process.poll() is None and "device" not in job:
            self.servers[contestant] = server
        else:
            server.close()
        return told


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _limit_sheet() -> Sheet:
    """What the machine can do, in GB of the file a second."""
    rates = {**_rates(LIMITS, WARM), **_rates(LIMITS, COLD), **_rates(ONTO, WARM)}
    workers = sorted({count for found in rates.values() for count in found}, key=int)
    sheet = Sheet("Limits of the machine, GB of the file a second", ("limit", *(f"{n} at once" for n in workers)))
    for name, found in rates.items():
        sheet.rows.append((name, *(f"{found[n] / 1e9:.2f}" if n in found else "" for n in workers)))
    return sheet


def _rates(case: Case, state: str) -> dict[str, dict[str, float]]:
    """Medians over the rounds, by limit and number of workers."""
    samples = [sample["rates"] for sample in case.samples.get((state, "limits"), [])]
    names = samples[0] if samples else {}
    return {name: {n: median([one[name][n] for one in samples]) for n in names[name]} for name in names}


def _limit(case: Case, state: str) -> tuple[float, str] | None:
    """The seconds that the machine needs at least, whatever the number of workers, and for what."""
    rates = {**_rates(LIMITS, WARM), **_rates(ONTO, WARM)}
    needed = {name: found for name, found in rates.items() if name == case.limit}
    if state == COLD:
        needed.update(_rates(LIMITS, COLD))
    return max(((case.size / max(found.values()), name) for name, found in needed.items()), default=None)


def _sheets(case: Case) -> Iterator[Sheet]:
    """A table for each state that was asked for."""
    columns = ("contestant", "s", "min", "GB/s", "x safetensors", "peak GiB", "CPU s", "of limit", "goal", "met")
    for state in case.states:
        told = [name for name in case.contestants if {(state, name)} & {*case.samples, *case.problems}]
        if not told:
            continue
        limit = _limit(case, state)
        beside = f" (limit {limit[0]:.2f} s: {limit[1]})" if limit else ""
        sheet = Sheet(f"{case.title}, {state}{beside}", columns)
        for name in told:
            if (state, name) in case.problems:
                sheet.rows.append((name, f"skipped: {case.problems[state, name]}", *[""] * (len(columns) - 2)))
            else:
                sheet.rows.append((name, *_figures(case, state, name, limit), *_verdicts(case, state, name)))
        yield sheet


def _figures(case: Case, state: str, name: str, limit: tuple[float, str] | None) -> list[str]:
    seconds = _seconds(case, state, name)
    assert seconds is not None
    usual, peak = _seconds(case, state, "safetensors"), _peak(case, state, name)
    return [
        f"{seconds:.3f}",
        f"{min(one['seconds'] for one in case.samples[state, name]):.3f}",
        f"{case.size / seconds / 1e9:.2f}",
        f"{usual / seconds:.2f}" if usual else "",
        f"{peak / GIB:.2f}" if peak is not None else "",
        f"{median([one['cpu'] for one in case.samples[state, name]]):.2f}",
        f"{limit[0] / seconds:.0%}" if limit else "",
    ]


def _verdicts(case: Case, state: str, name: str) -> list[str]:
    """The goals and whether they were met; blanks for a peer."""
    goals = [goal for goal in case.goals if state in goal.states and name in OURS]
    return ["; ".join(goal.told() for goal in goals), "; ".join(_met(case, state, goal, name) for goal in goals)]


def _met(case: Case, state: str, goal: Goal, name: str) -> str:
    rivals = [goal.rival] if goal.rival != "peers" else [rival for rival in case.contestants if rival not in OURS]
    theirs = [seconds for rival in rivals if (seconds := _seconds(case, state, rival)) is not None]
    ours = _seconds(case, state, name)
    if not theirs or ours is None:
        return "not measured"
    speed = min(theirs) / ours
    met, told = speed >= (goal.speed if goal.speed != 1 else 1 / NOISE), f"{speed:.2f} times"
    if goal.peak is not None:
        mine, peak = _peak(case, state, name), _peak(case, state, goal.rival)
        if mine is None or not peak:
            return f"{'yes' if met else 'no'} ({told}, peak not known)"
        met, told = met and mine / peak <= goal.peak, f"{told}, {mine / peak:.2f}"
    return f"{'yes' if met else 'no'} ({told})"


def _seconds(case: Case, state: str, name: str) -> float | None:
    samples = case.samples.get((state, name))
    return median([one["seconds"] for one in samples]) if samples else None


def _peak(case: Case, state: str, name: str) -> float | None:
    """Bytes that the load added to the process at its highest."""
    samples = case.samples.get((state, name), [])
    added = [one["peak"] - one["before"] for one in samples if None not in (one["peak"], one["before"])]
    return median(added) if added else None


def _plain(case: Case) -> dict[str, Any]:
    """The case as JSON can say it."""
    told = {field.name: getattr(case, field.name) for field in fields(case)}
    told["goals"] = [goal.told() for goal in case.goals]
    for name in ("samples", "problems"):
        told[name] = {" ".join(key): value for key, value in told[name].items()}
    return told


if __name__ == "__main__":
    sys.exit(main())
