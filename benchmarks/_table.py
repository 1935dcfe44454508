"""What the benchmarks share: where and when a run took place, medians, and tables for people and programs."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = (
    "torch",
    "accelerate",
    "lightning-fabric",
    "diffusers",
    "deepspeed",
    "safetensors",
    "transformers",
    "runai-model-streamer",
    "fastsafetensors",
    "psutil",
    "numpy",
)


@dataclass
class Sheet:
    """One table of results."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as GitHub shows it."""
        lines = [f"### {self.title}", "", _pipes(self.columns), _pipes(["---"] * len(self.columns))]
        return "\n".join([*lines, *(_pipes(row) for row in self.rows), ""])

    def table(self) -> Table:
        """The table for a terminal."""
        made = Table(title=self.title, title_justify="left")
        for column in self.columns:
            made.add_column(column, overflow="fold")
        for row in self.rows:
            made.add_row(*row)
        return made


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def show(sheets: Iterable[Sheet], *, markdown: bool) -> None:
    """Data goes to stdout."""
    console = Console(width=None if os.isatty(1) else 200)
    for sheet in sheets:
        print(sheet.markdown()) if markdown else console.print(sheet.table())


def save(path: Path | None, **results: Any) -> None:
    """The run as JSON, with where and when it took place."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Date, processor, load and versions: without them a figure means nothing."""
    return {
        "date": datetime.date.today().isoformat(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed(name)) is not None},
    }


def machine_line() -> str:
    """The same in one line."""
    here = machine()
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    cpus = f"{here['cpus']} x {here['processor']}"
    return f"{here['date']}, {cpus}, Python {here['python']}, load {here['load']}, {versions}"


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def installed(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is missing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def median(samples: Sequence[float]) -> float:
    """The middle sample; NaN of none."""
    return statistics.median(samples) if samples else float("nan")


def verdict(value: float, target: float | None) -> str:
    """Whether the target was met; a blank where there is none."""
    return "" if target is None else "yes" if value < target else "no"
