"""Run the battery under one policy: a line of JSON for each check, as it ends.

    python -m tests.redirect.battery POLICY [--only GROUP] [--ordinary | --processes]

Those that change the process, or start some, run in a second one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict

from tests.redirect.battery import CHECKS, POLICIES, Outcome, entered, run

SECONDS = 1200


def main() -> None:
    """Print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", choices=POLICIES)
    parser.add_argument("--only", metavar="GROUP", default="", help="the checks of one group")
    parser.add_argument("--ordinary", action="store_true", help="leave out those that need a process of their own")
    parser.add_argument("--processes", action="store_true", help="these only, in this process")
    options = parser.parse_args()
    chosen = [one for one in CHECKS.values() if options.only in ("", one.group)]
    if any(one.process == options.processes for one in chosen):
        with entered(options.policy, children=options.processes) as device:
            for one in chosen:
                if one.process == options.processes:
                    _tell(run(one, options.policy, device))
    if not options.ordinary and not options.processes:
        _in_a_second_process(options.policy, options.only, [one.name for one in chosen if one.process])


def _in_a_second_process(policy: str, only: str, names: list[str]) -> None:
    if not names:
        return
    command = [
        sys.executable,
        "-m",
        "tests.redirect.battery",
        policy,
        "--processes",
        *(["--only", only] if only else []),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    found = {said["name"]: Outcome(**said) for line in done.stdout.splitlines() if (said := _outcome(line))}
    for name in names:
        _tell(found.get(name) or Outcome(name, "error", f"exit code {done.returncode}", "the process ended before"))


def _outcome(line: str) -> dict[str, str]:
    """What a line says; nothing where a library has written it."""
    return dict(json.loads(line)) if line.startswith('{"name": ') else {}


def _tell(outcome: Outcome) -> None:
    print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
