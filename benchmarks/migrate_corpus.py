"""What scan and migrate make of real repositories: recall against a census, share rewritten, what still compiles.

    python benchmarks/migrate_corpus.py FOLDER_OF_REPOSITORIES [--census census.json] [--sample 200 --seed 1]

The repositories are read, never written. The census is a JSON file: repository -> {"hits": [[pattern, detail, file,
line], ...]}, as an independent counter of CUDA idioms wrote it. ``--sample`` prints findings drawn at random, with the
lines around them, to be judged by a person.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from _table import Sheet, show

from devicekit.codemod.difference import new_lines
from devicekit.codemod.finding import Kind
from devicekit.codemod.scanning import Choice, Seen, scan
from devicekit.codemod.walking import files_under

# What a census counts that is no tie to CUDA by itself: moves to a variable, to the CPU, half precision, and the like.
NO_PLACE = {
    "dot_to_var",
    "dot_cpu",
    "dot_half",
    "torch_cuda_fn_guard",
    "non_blocking_kw",
    "compile_or_script",
    "torch_device_var",
    "torch_device_int",
    "device_map",
    "data_parallel",
}
ONLY_WITH = {
    "torch_load": ("no map_location", "cuda"),
    "safetensors_load": ("cuda",),
    "generator": ("cuda",),
    "autocast": ("cuda",),
    "ddp": ("device_ids",),
    "init_process_group": ("nccl",),
}
MECHANICAL = {
    "torch_cuda_fn",
    "dot_cuda",
    "device_kw_cuda",
    "torch_device_cuda",
    "autocast",
    "grad_scaler",
    "amp_custom_fwd",
    "assign_cuda_string",
    "param_default_cuda",
    "cli_default_cuda",
    "device_choice_ifexp",
    "dot_to_cuda",
    "ddp",
    "init_process_group",
    "generator",
    "safetensors_load",
    "default_tensor_type",
    "set_default_device",
}
"""Of these a reader would say that a program can rewrite them; and of is_available where it is a condition."""
CONDITIONS = ("if test", "ifexp test")


def is_place(pattern: str, detail: str) -> bool:
    """The census counts it as something that ties the code to CUDA."""
    if pattern in NO_PLACE or (pattern == "ddp" and detail != "device_ids"):
        return False
    return any(part in detail for part in ONLY_WITH.get(pattern, ("",)))


def is_mechanical(pattern: str, detail: str) -> bool:
    """And it can be rewritten without a reader."""
    return pattern in MECHANICAL or (pattern == "is_available" and any(part in detail for part in CONDITIONS))


def compiles(one: Seen) -> bool:
    """The result is still Python; a notebook's cells were parsed when they were read."""
    if one.file.endswith(".ipynb"):
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(one.after, one.file, "exec", dont_inherit=True)
        except SyntaxError:
            try:
                compile(one.before, one.file, "exec", dont_inherit=True)
            except SyntaxError:
                return True  # it was not before either
            return False
    return True


def lines_changed(one: Seen, *, bare: bool = False) -> int:
    """Added lines of the difference; with ``bare`` without blank ones, the import, and the manager."""
    before, after = (text.decode("utf-8", "replace") for text in (one.before, one.after))
    needs = ("import devicekit", "devicekit.DeviceManager.current()")
    added = new_lines(before, after)
    return sum(not bare or (bool(line.strip()) and not any(n in line for n in needs)) for line in added)


def against(census: dict[str, Any], root: Path, seen: dict[str, Seen], show: bool) -> list[list[str]]:
    """Rows of a table: pattern, places, found, mechanical places, rewritten."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for repository, found in census.items():
        for pattern, detail, file, line in found["hits"]:
            one = seen.get(str(root / repository / file))
            if not is_place(pattern, detail) or one is None or one.problem:
                continue
            here = [f for f in one.findings if f.span[0] <= max(line, 1) <= f.span[1]]
            kinds = {f.kind for f in here}
            for row in (pattern, "all"):
                counts[row]["places"] += 1
                counts[row]["found"] += bool(here)
                if is_mechanical(pattern, detail):
                    counts[row]["mechanical"] += 1
                    counts[row]["rewritten"] += Kind.REWRITE in kinds
            if show and not here:
                print(f"missed: {repository}/{file}:{line} {pattern} {detail}", file=sys.stderr)
            elif show and is_mechanical(pattern, detail) and Kind.REWRITE not in kinds:
                print(f"not rewritten: {repository}/{file}:{line} {pattern} {detail}", file=sys.stderr)
    order = sorted(counts, key=lambda pattern: -counts[pattern]["places"])
    return [
        [
            p,
            str(c["places"]),
            share(c["found"], c["places"]),
            str(c["mechanical"]),
            share(c["rewritten"], c["mechanical"]),
        ]
        for p in order
        for c in [counts[p]]
    ]


def share(part: int, whole: int) -> str:
    """Percent, or a dash."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def sample(seen: dict[str, Seen], root: Path, number: int, seed: int) -> None:
    """Findings to be judged, each with the lines around it."""
    every = [(one, f) for one in seen.values() for f in one.findings]
    for count, (one, finding) in enumerate(random.Random(seed).sample(every, min(number, len(every))), 1):
        name = Path(finding.file).relative_to(root)
        print(f"\n## {count}. {name}:{finding.line} {finding.kind} [{finding.rule}]\n{finding.message}")
        print(f"-> {finding.suggestion}")
        if finding.cell is None:
            lines = Path(one.file).read_text(encoding="utf-8", errors="replace").splitlines()
            for number_, line in list(enumerate(lines, 1))[max(0, finding.line - 2) : finding.span[1] + 1]:
                print(f"{number_:5} {line[:150]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--census", type=Path)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="name the places that were missed, on stderr")
    options = parser.parse_args()
    seen = {one.file: one for one in scan(files_under([str(options.root)]), Choice(rewrite=True))}
    if options.sample:
        sample(seen, options.root, options.sample, options.seed)
        return
    kinds = Counter(str(f.kind) for one in seen.values() for f in one.findings)
    changed = [one for one in seen.values() if one.changed]
    places = sum(f.kind is Kind.REWRITE for one in changed for f in one.findings)
    lines = sum(map(lines_changed, changed))
    again = [one.file for one in changed if twice(one) != one.after]
    unreadable = sum(bool(one.problem) for one in seen.values())
    broken = [one.file for one in changed if not compiles(one)]
    print(f"{len(seen)} files, {len(changed)} rewritten, {unreadable} unreadable; {dict(kinds)}")
    bare = sum(lines_changed(one, bare=True) for one in changed)
    each = f"{lines / max(places, 1):.2f} each, {bare / max(places, 1):.2f} without imports and managers"
    print(f"{places} places rewritten by {lines} new lines: {each}")
    print(f"that do not compile any more: {broken}; that change a second time: {again}")
    if options.census:
        rows = against(json.loads(options.census.read_text()), options.root, seen, options.show)
        columns = ("pattern of the census", "places", "found", "mechanical", "rewritten")
        show([Sheet("Against the census", columns, rows)], markdown=True)


def twice(one: Seen) -> bytes:
    """What a second run makes of the result."""
    from tempfile import TemporaryDirectory

    from devicekit.codemod.scanning import look

    with TemporaryDirectory() as folder:
        file = Path(folder, Path(one.file).name)
        file.write_bytes(one.after)
        return look(str(file), Choice(rewrite=True)).after or one.after


if __name__ == "__main__":
    main()
