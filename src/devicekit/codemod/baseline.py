"""A file of findings that are known, so that a team can stop new ones today and remove the old ones later.

A finding is known by its file, its rule and the text of its line, so that it stays known when lines move. Of several
alike in one file the number counts: one more is new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from devicekit.codemod.finding import Finding
from devicekit.errors import DeviceKitError

__all__ = ["as_baseline", "known", "without_known"]

SCHEMA = "devicekit-scan-baseline/1"


def as_baseline(findings: Iterable[Finding]) -> str:
    """The content of a baseline file; the same findings give the same text."""
    counted = Counter(map(_key, findings))
    rows = [
        {"file": file, "rule": rule, "code": code, "count": count}
        for (file, rule, code), count in sorted(counted.items())
    ]
    return json.dumps({"schema": SCHEMA, "findings": rows}, indent=1, ensure_ascii=False) + "\n"


def known(text: str) -> Counter[tuple[str, str, str]]:
    """What a baseline file holds.

    Raises:
        DeviceKitError: it is none.
    """
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}")
        return Counter({(row["file"], row["rule"], row["code"]): int(row["count"]) for row in data["findings"]})
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        why = f"{type(exc).__name__}: {exc}"
        raise DeviceKitError("this is no baseline of devicekit scan.", why=why, try_="--write-baseline FILE") from exc


def without_known(findings: Iterable[Finding], there: Counter[tuple[str, str, str]]) -> list[Finding]:
    """Those that the baseline does not have."""
    left = Counter(there)
    new = []
    for finding in findings:
        key = _key(finding)
        if left[key] > 0:
            left[key] -= 1
        else:
            new.append(finding)
    return new


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.file.replace("\\", "/"), finding.rule, finding.code
