"""Time one statement in this fresh process and write what it cost and changed; started by import_cost.py."""

import os
import sys
import time

# Only what a bare interpreter has loaded already may be imported above: the rest would be taken off the cost.


def main() -> None:
    before, code, report = sys.argv[1:]
    names: dict[str, object] = {}
    exec(compile(before, "<before>", "exec"), names)
    statement = compile(code, "<measured>", "exec")
    modules, environment = set(sys.modules), dict(os.environ)
    start, busy = time.perf_counter_ns(), time.process_time_ns()
    exec(statement, names)
    busy, spent = time.process_time_ns() - busy, time.perf_counter_ns() - start
    added = sorted(set(sys.modules) - modules)
    after = dict(os.environ)
    changed = sorted(k for k in {*environment, *after} if environment.get(k) != after.get(k))

    import json
    from pathlib import Path

    told = json.dumps({"ms": spent / 1e6, "cpu_ms": busy / 1e6, "modules": added, "environment": changed})
    Path(report).write_text(told, encoding="utf-8")


main()
