"""Findings as SARIF 2.1.0, which code hosts show beside the lines.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from devicekit.codemod.catalogue import entries
from devicekit.codemod.finding import Finding, Kind

__all__ = ["as_sarif"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Kind.REWRITE: "warning", Kind.REVIEW: "warning", Kind.CANNOT: "error", Kind.HARMLESS: "note"}


def as_sarif(findings: Iterable[Finding], version: str) -> dict[str, Any]:
    """One run of this tool.

    Args:
        findings: what to tell.
        version: devicekit's.
    """
    every = list(findings)
    rules = [entry for entry in entries() if entry.name in {finding.rule for finding in every}]
    position = {entry.name: at for at, entry in enumerate(rules)}
    driver = {
        "name": "devicekit",
        "version": version,
        "rules": [
            {"id": e.name, "shortDescription": {"text": e.title}, "fullDescription": {"text": e.reason}} for e in rules
        ],
    }
    results = [_result(finding, position[finding.rule]) for finding in every]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    text = finding.message if not finding.suggestion else f"{finding.message}. Instead: {finding.suggestion}"
    uri = quote(finding.file.replace("\\", "/"))
    region: dict[str, Any] = {"startLine": finding.line, "startColumn": finding.column}
    if finding.cell is not None:  # a notebook's lines are not its file's
        region, text = {"startLine": 1}, f"cell {finding.cell}, line {finding.line}: {text}"
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": LEVELS[finding.kind],
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}],
        "partialFingerprints": {"devicekit/line": _fingerprint(finding)},
        "properties": {"class": str(finding.kind)},
    }


def _fingerprint(finding: Finding) -> str:
    return hashlib.sha256(f"{finding.file}\0{finding.rule}\0{finding.code}".encode()).hexdigest()[:16]
