"""An audit as one JSON object: what `prefine data audit --json` prints and audit.json holds."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from prefine import __version__
from prefine.data.audit.facts import facts_of
from prefine.data.audit.findings import Severity
from prefine.data.audit.run import Audit

FORMAT = 1
"""Of the object; increased when a key changes its meaning."""
AUDIT_KEYS = ("audit", "sources", "findings", "facts")
"""Keys that every such object has."""


def audit_json(audit: Audit) -> dict[str, Any]:
    """All of an audit but the rows that a copy leaves out."""
    settings = audit.settings
    return {
        "audit": FORMAT,
        "prefine": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": list(settings.sources),
        "heldout": list(settings.heldout),
        "kind": audit.kind,
        "rows": audit.rows,
        "records": audit.records,
        "counts": audit.counts,
        "severities": severities(audit),
        "findings": [finding.as_json() for finding in audit.findings],
        "facts": facts_of(audit).as_json(),
        "droppable": dict(Counter(row.why.value for row in audit.drops.rows().values())),
        "seconds": round(audit.seconds, 2),
    }


def severities(audit: Audit) -> dict[str, int]:
    """Findings by severity, the most serious first."""
    found = Counter(finding.severity for finding in audit.findings)
    return {severity.value: found[severity] for severity in Severity}
