"""What the facade costs the example systems: each beside the same work with the device layer written by hand.

    python benchmarks/example_overhead.py [--only NAME] [--rounds 25] [--markdown] [--json FILE]

The systems are in docs/examples, the work and its hand-written version in benchmarks/_systems. Both run in one process
and take turns, and who goes first changes every round; the ratio is the median of the rounds' ratios. Each system has a
process of its own, so that none meets what another has set. Exit code 1 if the two do not come to the same numbers.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from _systems import NAMES, Pair
from _table import Sheet, machine_line, median, save, show, verdict

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
COLUMNS = ("system", "work", "by hand, ms", "facade, ms", "facade / by hand", "middle half", "goal", "met", "same")
TARGET = 1.01
"""Times the hand-written version."""
LEAST = 0.2
"""Seconds that one turn takes at least; short work is repeated."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="NAME", help="systems with this in their name")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(machine_line(), file=sys.stderr)
    sheet, taken = Sheet("The example systems", COLUMNS), {}
    for name in NAMES:
        if options.only in name:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                what, taken[name], same = alone.submit(measure, name, options.rounds).result()
            sheet.rows.append([name, what, *_told(taken[name]), "yes" if same else "no"])
    show([sheet], markdown=options.markdown)
    save(options.json, seconds=taken)
    return 0 if all(row[-1] == "yes" for row in sheet.rows) else 1


def measure(name: str, rounds: int) -> tuple[str, dict[str, list[float]], bool]:
    """The work in words, seconds by who did it, and whether both came to the same."""
    sys.path.insert(0, str(EXAMPLES))
    pair: Pair = importlib.import_module(f"_systems.{name}").pair()
    same = pair.same(pair.facade(), pair.by_hand())
    return pair.what, _in_turns(pair, rounds), same


def _in_turns(pair: Pair, rounds: int) -> dict[str, list[float]]:
    times = max(1, round(LEAST / _seconds(pair.by_hand, 1)))
    found: dict[str, list[float]] = {"by hand": [], "facade": []}
    for number in range(rounds):
        ways = [("by hand", pair.by_hand), ("facade", pair.facade)]
        for way, do in ways[:: 1 if number % 2 else -1]:
            found[way].append(_seconds(do, times))
    return found


def _seconds(do: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        do()
    return (time.perf_counter() - start) / times


def _told(taken: dict[str, list[float]]) -> list[str]:
    ratios = sorted(ours / theirs for ours, theirs in zip(taken["facade"], taken["by hand"], strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    milliseconds = [f"{median(taken[way]) * 1e3:.1f}" for way in ("by hand", "facade")]
    ratio = median(ratios)
    return [*milliseconds, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{TARGET:.2f}", verdict(ratio, TARGET)]


if __name__ == "__main__":
    sys.exit(main())
