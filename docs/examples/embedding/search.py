"""Print the lines of a file that are nearest in meaning to a query.

python -m embedding.search FILE QUERY [--top 5] [--vectors vectors.npy]

A line of the answer has the cosine, the line's number from 1 on, and the line. Blank lines are never an answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import devicekit as dk
from embedding.command import Parser, ending, engine_of, load_vectors, read_lines

__all__ = ["main", "nearest"]

PROG = "embedding.search"


def nearest(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """The rows that point most nearly where the query does, and their cosines, best first.

    Args:
        vectors: of length 1, of shape (rows, width).
        query: of length 1, of shape (width,).
        top: at most so many.
    """
    cosines = vectors @ query
    best = np.argsort(-cosines, kind="stable")[:top]
    return [(int(row), float(cosines[row])) for row in best]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    parser = Parser(PROG, "Print the lines of a file that are nearest in meaning to a query.")
    parser.add_argument("file", metavar="FILE", help="UTF-8, one text a line; - is stdin")
    parser.add_argument("query", metavar="QUERY", help="a text")
    parser.add_argument("--top", metavar="N", type=_count, default=5, help="lines to print (5)")
    parser.add_argument("--vectors", metavar="FILE", type=Path, help="what embedding.encode wrote for this file")
    options = parser.parse_args(argv)
    return ending(PROG, lambda: _run(options))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    lines = read_lines(options.file)
    rows = [row for row, line in enumerate(lines) if line.strip()]
    if not rows:
        raise dk.DeviceKitError(f"{options.file} has nothing to search.", why="all its lines are blank")
    known = None if options.vectors is None else _fitting(load_vectors(options.vectors), lines, options)
    engine = engine_of(options)
    if known is None:
        vectors = engine.encode([lines[row] for row in rows], options.batch_size, show_progress=sys.stderr.isatty())
    else:
        vectors = known[rows]
    (query,) = engine.encode([options.query])
    if len(query) != vectors.shape[1]:
        why = f"its vectors have {vectors.shape[1]} numbers, and the model's {len(query)}"
        raise dk.DeviceKitError(f"{options.vectors} is of another model.", why=why, try_="--model FOLDER")
    for row, cosine in nearest(vectors, query, options.top):
        sys.stdout.write(f"{cosine:.4f}  {rows[row] + 1}  {lines[rows[row]]}\n")


def _fitting(
    vectors: npt.NDArray[np.float32], lines: Sequence[str], options: argparse.Namespace
) -> npt.NDArray[np.float32]:
    if len(vectors) == len(lines):
        return vectors
    why = f"it has {len(vectors)} rows, and {options.file} {len(lines)} lines"
    raise dk.DeviceKitError(f"{options.vectors} is of another file.", why=why, try_="python -m embedding.encode")


if __name__ == "__main__":
    sys.exit(main())
