"""Write the vectors of a file's lines.

python -m embedding.encode FILE --out vectors.npy [--batch-size auto] [--device auto] [--dtype float32]

FILE has one text a line; - is stdin. Line n becomes row n. Exit codes: 0 good, 2 could not work, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from embedding.command import Parser, ending, engine_of, read_lines, save_vectors, vectors_file

__all__ = ["main"]

PROG = "embedding.encode"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    parser = Parser(PROG, "Write the vectors of a file's lines.")
    parser.add_argument("file", metavar="FILE", help="UTF-8, one text a line; - is stdin")
    parser.add_argument("--out", metavar="FILE", type=vectors_file, required=True, help=".npy or .safetensors")
    parser.add_argument("--json", action="store_true", help="what was done, and engine.report(), as JSON on stdout")
    options = parser.parse_args(argv)
    return ending(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    lines = read_lines(options.file)
    engine = engine_of(options)
    with engine.dm.measure("encode") as encoding:
        vectors = engine.encode(lines, options.batch_size, show_progress=sys.stderr.isatty())
    save_vectors(vectors, options.out)
    told = {"texts": len(lines), "seconds": round(encoding.seconds, 3), "out": str(options.out), **engine.report()}
    if options.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        where = f"{told['device']} in {told['dtype']}"
        sys.stderr.write(f"{len(lines)} texts in {encoding.seconds:.1f} s on {where}: {options.out}\n")


if __name__ == "__main__":
    sys.exit(main())
