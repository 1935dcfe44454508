"""Run a graph on every backend that can be used here, and compare.

python -m kernels.run [--backend NAME ...] [--size BATCHxLENGTHxWIDTH] [--dtype NAME] [--json]

Exit codes: 0 good; 1 a backend is wrong or failed, or one that was asked for cannot be used; 2 the words make no sense.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

import devicekit as dk
from kernels.block import Size, block, draw
from kernels.comparison import ALLOWED, Row, Settings, compare
from kernels.graph import Graph, GraphError
from kernels.steps import schedule

__all__ = ["main"]

COULD_NOT_WORK = 2


class Parser(argparse.ArgumentParser):
    """An error is one line."""

    def error(self, message: str) -> NoReturn:
        """Say it, and end."""
        self.exit(COULD_NOT_WORK, f"{self.prog}: {message}\n")


def _parser() -> Parser:
    parser = Parser(prog="kernels.run", description="Run a graph on every usable backend, and compare with NumPy.")
    parser.add_argument("--backend", metavar="NAME", nargs="+", default=[], help="names that devicekit knows; else all")
    parser.add_argument("--size", metavar="BATCHxLENGTHxWIDTH", default="4x128x256", help="the width in steps of 64")
    parser.add_argument("--dtype", choices=ALLOWED, help="by default what each device computes fastest")
    parser.add_argument("--repeat", metavar="N", type=_count, default=5, help="runs that are timed (5)")
    parser.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the numbers that go in (0)")
    parser.add_argument("--no-fuse", action="store_true", help="one step for each operation")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    options = _parser().parse_args(argv)
    try:
        size = Size.of(options.size)
        graph = block(size)
        inputs = draw(graph, options.seed)
        settings = Settings(dtype=options.dtype, repeat=options.repeat, fuse=not options.no_fuse)
        rows = compare(graph, inputs, settings, options.backend)
    except (dk.DeviceKitError, GraphError, MemoryError) as error:
        told = f"{size} does not fit into this machine's memory" if isinstance(error, MemoryError) else error
        sys.stderr.write(f"kernels.run: {told}\n")
        return COULD_NOT_WORK
    if options.json:
        document = {"size": str(size), "graph": _described(graph, settings.fuse), "rows": [r.to_dict() for r in rows]}
        sys.stdout.write(json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")
    else:
        _print(size, graph, settings.fuse, rows)
    bad = {"wrong", "failed", *(["not usable"] if options.backend else [])}
    return 1 if any(row.status in bad for row in rows) else 0


def _described(graph: Graph, fuse: bool) -> dict[str, Any]:
    made = schedule(graph, fuse=fuse)
    operations = len(graph.values) - len(graph.inputs)
    return {"operations": operations, "steps": len(made.steps), "fused": [str(s) for s in made.steps if "+" in str(s)]}


def _finite(data: Any) -> Any:
    """JSON has no infinity; None stands for a difference that is none."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if data == float("inf") else data


# -- for people --------------------------------------------------------------------------------
def _print(size: Size, graph: Graph, fuse: bool, rows: Sequence[Row]) -> None:
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    told = _described(graph, fuse)
    fused = f"; fused: {', '.join(told['fused'])}" if told["fused"] else ""
    console.print(f"A block of {size}: {told['operations']} operations in {told['steps']} steps{fused}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("backend", "device", "dtype", "first", "median", "peak memory", "difference", "compiled"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    console.print(table)
    for row in rows:
        if row.plan is not None:
            console.print(f"\nPlan for {row.backend}")
            for name, choice in row.plan.to_dict().items():
                value = "-" if choice["value"] is None else choice["value"]
                console.print(f"  {name:<10}  {value:<4}  {choice['reason']}")


def _cells(row: Row) -> tuple[str, ...]:
    if row.seconds is None:
        return row.backend, row.device, row.dtype, "", "", "", "", f"{row.status}: {row.reason}"
    return (
        row.backend,
        row.device,
        row.dtype,
        _milliseconds(row.first),
        _milliseconds(row.seconds),
        "unknown" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.1f} MiB",
        f"{row.difference:.1e}" + (" (wrong)" if row.status == "wrong" else ""),
        "yes" if row.compiled else f"no: {row.reason}",
    )


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:,.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
