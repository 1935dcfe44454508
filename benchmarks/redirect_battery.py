"""What a CUDA program's idioms give: on a real GPU, and under each policy of the redirect. One line for each policy.

    python benchmarks/redirect_battery.py [--policy translate] [--verbose] [--json FILE] [--against ORACLE]

The checks are in tests/redirect/battery; each says what a real GPU gives. Record the judge on a machine with one:

    python benchmarks/redirect_battery.py --policy native --json oracle.json

and compare with ``--against oracle.json``: then what counts is what came out there, not what the checks say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from _table import Sheet, machine, machine_line, show  # noqa: E402

POLICIES = ("native", "translate", "masquerade", "npu")
VERDICTS = ("ok", "differs", "error", "skipped")
SECONDS = 600


def outcomes(policy: str, only: str) -> dict[str, dict[str, str]]:
    """Every check's outcome, by its name; processes of their own, because the policy and some checks change theirs."""
    command = [sys.executable, "-m", "tests.redirect.battery", policy, *(["--only", only] if only else [])]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS * 6, check=False)
    if done.returncode:
        sys.exit(f"{policy}: {done.stderr.strip()[-2000:]}")
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


def compared(found: dict[str, dict[str, str]], oracle: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The outcomes, judged by what came out on the other machine."""
    judged = {}
    for name, one in found.items():
        there = oracle.get(name)
        if there is None or "skipped" in (one["verdict"], there["verdict"]):
            judged[name] = {**one, "verdict": "skipped", "why": "it did not run on both"}
        elif one["value"] == there["value"]:
            judged[name] = {**one, "verdict": "ok", "why": ""}
        else:
            judged[name] = {**one, "verdict": "differs", "why": f"there {there['value']}"}
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append", choices=POLICIES, help="by default all but native")
    parser.add_argument("--only", default="", metavar="GROUP", help="the checks of one group")
    parser.add_argument("--verbose", action="store_true", help="a line for each check that is not ok")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an oracle's outcomes, recorded with --json")
    options = parser.parse_args()
    oracle: dict[str, Any] = {}
    if options.against:
        oracle = json.loads(options.against.read_text())["outcomes"]["native"]
    sheet = Sheet("The battery", ("policy", "checks", *VERDICTS))
    found: dict[str, dict[str, dict[str, str]]] = {}
    for policy in options.policy or POLICIES[1:]:
        found[policy] = outcomes(policy, options.only)
        judged = compared(found[policy], oracle) if oracle else found[policy]
        counts = Counter(one["verdict"] for one in judged.values())
        sheet.rows.append((policy, str(len(judged)), *(str(counts[verdict]) for verdict in VERDICTS)))
        for name, one in judged.items():
            if options.verbose and one["verdict"] in ("differs", "error"):
                print(f"{policy}: {one['verdict']}: {name}: {one['value']} ({one['why']})", file=sys.stderr)
    print(machine_line())
    show([sheet], markdown=options.markdown)
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "outcomes": found}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
