"""Rows and files for tests of the audit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefine.data.audit.findings import AuditFinding
from prefine.data.audit.run import Audit, AuditSettings, audit_sources

_WORDS = tuple("alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november".split())  # noqa: SIM905


def text(seed: int, words: int = 30) -> str:
    """A text of random words; different seeds share no run of three words but by chance."""
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(_WORDS)}{draw.choice('abcdefghij')}" for _ in range(words))


def pair(seed: int, **columns: Any) -> dict[str, Any]:
    """A pair whose texts no other seed has."""
    return {"prompt": text(3 * seed), "chosen": text(3 * seed + 1), "rejected": text(3 * seed + 2), **columns}


def written(path: Path, rows: Sequence[Any]) -> str:
    """A JSON lines file of rows; its name."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def audited(tmp_path: Path, rows: Sequence[Any], **settings: Any) -> Audit:
    """The audit of these rows, in rows.jsonl."""
    return audit_sources(AuditSettings([written(tmp_path / "rows.jsonl", rows)], **settings))


def found(audit: Audit, check: str) -> AuditFinding:
    """One finding."""
    return next(finding for finding in audit.findings if finding.check == check)


def dropped_lines(audit: Audit) -> dict[int, str]:
    """Lines that a copy leaves out, with the reason."""
    return {line: row.why.value for (_, line), row in audit.drops.rows().items()}
