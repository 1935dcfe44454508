"""The results as a picture: one panel for each unit, one bar for each row that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devicekit.bench.rows import Row
from devicekit.host import Host

__all__ = ["ENDINGS", "draw"]

ENDINGS = (".png", ".svg", ".pdf")
UNITS = {
    "bandwidth": ("gigabytes_per_second", "GB/s"),
    "matmul": ("teraflops_per_second", "TFLOP/s"),
    "attention": ("teraflops_per_second", "TFLOP/s"),
    "convolution": ("teraflops_per_second", "TFLOP/s"),
    "model": ("tokens_per_second", "tokens/s"),
}
"""Kind, to the figure that is drawn and its unit."""


def draw(host: Host, rows: Sequence[Row], path: Path) -> None:
    """Write the picture; its format goes by the ending."""
    figures = host.import_module("matplotlib.figure")  # without pyplot, which would look for a screen
    panels = {kind: [row for row in rows if row.kind == kind and row.rates] for kind in UNITS}
    panels = {kind: found for kind, found in panels.items() if found}
    heights = [1 + 0.4 * len(found) for found in panels.values()]
    figure = figures.Figure(figsize=(9, 0.5 + sum(heights)), layout="constrained")
    if panels:
        axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axis, (kind, found) in zip(axes, panels.items(), strict=True):
            _panel(axis, kind, found)
    figure.savefig(path)


def _panel(axis: Any, kind: str, found: Sequence[Row]) -> None:
    figure, unit = UNITS[kind]
    names = [f"{row.device}  {row.dtype}\n{row.words}" for row in found]
    bars = axis.barh(range(len(found)), [row.rates[figure] for row in found])
    axis.bar_label(bars, fmt="%.4g", padding=3)
    axis.set_yticks(range(len(found)), names, fontsize="x-small")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_title(kind, fontsize="medium", loc="left")
    axis.set_xlabel(unit)
