"""What a check of an audit found: how serious, how many, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

MOST_EXAMPLES = 5


class Severity(StrEnum):
    """How much a finding matters for training, the most serious first."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    NONE = "none"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class AuditExample:
    """One case of a finding.

    Attributes:
        places: its row, then the rows that it repeats or contradicts, as file:line.
        text: the start of it, with personal data masked.
        note: what is particular about it.
    """

    places: list[str]
    text: str = ""
    note: str = ""


@dataclass(frozen=True)
class AuditFinding:
    """The result of one check.

    Attributes:
        check: its name in JSON.
        count: cases found.
        of: of how many; `unit` names them.
        says: the finding in one or two sentences.
        remedy: what to do; empty if there is nothing to do.
        figures: further numbers of this check.
    """

    check: str
    title: str
    severity: Severity
    says: str
    count: int = 0
    of: int = 0
    unit: str = "records"
    remedy: str = ""
    examples: Sequence[AuditExample] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Cases as a fraction; None without any rows to look at."""
        return self.count / self.of if self.of else None

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        found = {**asdict(self), "examples": [asdict(example) for example in self.examples]}
        return {**found, "says": plain(self.says), "severity": self.severity.value, "share": self.share}


def plain(text: str) -> str:
    """A sentence without the spaces and joiners that keep figures together on a page."""
    return text.replace("\u202f", " ").replace("\u2060", "")


def unchecked(check: str, title: str, why: str, remedy: str = "") -> AuditFinding:
    """The finding of a check that could not be made."""
    return AuditFinding(check, title, Severity.UNCHECKED, why, remedy=remedy)


def by_share(count: int, of: int, *, medium: float, high: float) -> Severity:
    """The severity of a share: low if there is any case, medium and high from a fraction on."""
    share = count / of if of else 0.0
    if not count:
        return Severity.NONE
    return Severity.HIGH if share >= high else Severity.MEDIUM if share >= medium else Severity.LOW
