"""The page of a data audit: audit.html, made from audit.json.

The page needs no network and no scripts, and its content security policy forbids both: it shows text of data files,
which may be hostile. The same audit.json gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefine.data.audit.result_file import AUDIT_KEYS
from prefine.errors import CheckpointError
from prefine.formatting import MISSING, duration, listing, moment, percent, plural, whole
from prefine.json_reading import JsonError, read_json_object
from prefine.report.page import render
from prefine.report.parts import TableRow, Tile
from prefine.runs.atomic import storage_errors, write_json, write_text
from prefine.runs.ownership import refuse_foreign_page

JSON_NAME = "audit.json"
PAGE_NAME = "audit.html"
_BADGES = {
    "high": ("▲", "serious"),
    "medium": ("●", "look at it"),
    "low": ("○", "minor"),
    "none": ("✓", "nothing found"),
    "unchecked": ("–", "not checked"),
}
_WORDS_SHOWN = 8
_VALUES_SHOWN = 12


def require_audit_folder(folder: Path) -> None:
    """Check before any work that an audit can be written to a folder, which may not exist yet.

    Raises:
        CheckpointError: the folder is a file, or holds a file of these names that prefine did not write.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"--out: {folder} is not a folder", "Name a folder.")
    held = folder / JSON_NAME
    try:
        own = not held.exists() or set(AUDIT_KEYS) <= read_json_object(held).keys()
    except JsonError:
        own = False
    if not own:
        raise CheckpointError(f"--out: {held} was not written by prefine data audit", "Name another folder.")
    refuse_foreign_page(folder / PAGE_NAME)


def write_audit(held: Mapping[str, Any], folder: Path) -> Path:
    """Write audit.json and audit.html to a folder, which is created if missing; returns the page's path.

    Raises:
        CheckpointError: they cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON_NAME, dict(held))
    page = folder / PAGE_NAME
    write_text(page, render(audit_context(json.loads(json.dumps(held))), "audit.html.j2"))
    return page


@dataclass(frozen=True)
class FindingTable:
    """Further figures of a finding; a bar is a share of the table's largest one, 0 to 100."""

    title: str
    columns: list[str]
    rows: list[TableRow]


@dataclass(frozen=True)
class CueBar:
    """A word with how often the better and the worse answer have it; widths are of 100."""

    word: str
    better: int
    worse: int
    better_width: float
    worse_width: float


@dataclass(frozen=True)
class ShownFinding:
    """A finding as text for the page."""

    check: str
    severity: str
    symbol: str
    word: str
    title: str
    says: str
    remedy: str
    count: str
    share: str
    examples: list[Mapping[str, Any]] = field(default_factory=list)
    tables: list[FindingTable] = field(default_factory=list)
    cues: list[CueBar] = field(default_factory=list)


def audit_context(held: Mapping[str, Any]) -> dict[str, Any]:
    """All content of the page, by the template's names."""
    findings = [_shown(finding) for finding in held["findings"]]
    by = held["severities"]
    return {
        "title": f"Audit of {', '.join(held['sources'])} · prefine",
        "sources": held["sources"],
        "heldout": held["heldout"],
        "date": moment(held["made_at"]),
        "version": held["prefine"],
        "heading": _heading(by),
        "worst": "high" if by["high"] else "medium" if by["medium"] else "none",
        "standfirst": _standfirst(held),
        "tiles": _tiles(held),
        "findings": findings,
        "open": [each for each in findings if each.severity in ("high", "medium", "low")],
        "clean": [each for each in findings if each.severity == "none"],
        "unchecked": [each for each in findings if each.severity == "unchecked"],
        "droppable": [TableRow(why, [f"{count:,}"]) for why, count in held["droppable"].items()],
        "seconds": duration(held["seconds"]),
    }


def _heading(by: Mapping[str, int]) -> str:
    if by["high"]:
        rest = f" and {by['medium']} to look at" if by["medium"] else ""
        return f"{plural(by['high'], 'serious finding')}{rest}"
    if by["medium"]:
        return f"{plural(by['medium'], 'finding')} to look at, none serious"
    return "Nothing serious was found"


def _standfirst(held: Mapping[str, Any]) -> str:
    what = held["kind"] if held["records"] != 1 else held["kind"].removesuffix("s")
    where = listing(held["sources"]) if len(held["sources"]) < 4 else f"{len(held['sources'])} sources"
    return f"{held['records']:,} {what} in {plural(held['rows'], 'row')} of {where}."


def _tiles(held: Mapping[str, Any]) -> list[Tile]:
    facts, found = held["facts"], {finding["check"]: finding for finding in held["findings"]}
    tiles = [
        Tile("Records", f"{held['records']:,}", note=f"{held['counts']['quarantined']:,} rows cannot be used"),
        Tile("Exact duplicates", _share(found, "duplicates"), note=f"{found['duplicates']['count']:,} records"),
    ]
    if facts["shallow_accuracy"] is not None:
        tiles.append(Tile("Predicted by single words", percent(facts["shallow_accuracy"]), note="50 % is chance"))
    elif "near_duplicates" in found:
        near = found["near_duplicates"]
        tiles.append(Tile("Near duplicates", _share(found, "near_duplicates"), note=f"{near['count']:,} records"))
    tiles.append(
        Tile(
            "Tokens of 95 %, at most",
            whole(found["token_lengths"]["figures"].get("at_95_percent")),
            note="estimated" if found["token_lengths"]["figures"].get("estimated") else "counted",
        )
    )
    return tiles


def _share(found: Mapping[str, Any], check: str) -> str:
    share = found[check]["share"]
    return MISSING if share is None else percent(share, 1)


def _shown(finding: Mapping[str, Any]) -> ShownFinding:
    symbol, word = _BADGES[finding["severity"]]
    return ShownFinding(
        check=finding["check"],
        severity=finding["severity"],
        symbol=symbol,
        word=word,
        title=finding["title"],
        says=re.sub(r"(?<=\d) %", "\u202f%", finding["says"]),
        remedy=finding["remedy"],
        count=f"{finding['count']:,} of {finding['of']:,} {finding['unit']}" if finding["of"] else "",
        share="" if finding["share"] is None else percent(finding["share"], 1),
        examples=finding["examples"],
        tables=list(_tables(finding)),
        cues=_cue_bars(finding["figures"].get("cues", [])),
    )


def _tables(finding: Mapping[str, Any]) -> list[FindingTable]:
    figures = finding["figures"]
    tables = []
    for name, values in figures.get("columns", {}).items():
        total = figures["rows"][name]
        rows = [TableRow(value, [f"{n:,}", percent(n / total, 1)]) for value, n in list(values.items())[:_VALUES_SHOWN]]
        more = f", {len(values) - _VALUES_SHOWN} more not shown" if len(values) > _VALUES_SHOWN else ""
        tables.append(FindingTable(f"{name}{more}", ["value", "rows", "share"], rows))
    if figures.get("reasons"):
        rows = [TableRow(reason, [f"{count:,}"]) for reason, count in list(figures["reasons"].items())[:_VALUES_SHOWN]]
        tables.append(FindingTable("Reasons", ["reason", "rows"], rows))
    if figures.get("shares"):
        rows = [TableRow(code, [percent(share, 1)]) for code, share in list(figures["shares"].items())[:_VALUES_SHOWN]]
        tables.append(FindingTable("Languages, by ISO 639 code", ["language", "share"], rows))
    if figures.get("worst_annotators"):
        rows = [
            TableRow(str(each["annotator"]), [percent(each["agreement"]), f"{each['compared']:,}"])
            for each in figures["worst_annotators"]
        ]
        tables.append(FindingTable("Who agrees least with the others", ["annotator", "agreement", "compared"], rows))
    return tables


def _cue_bars(cues: list[Mapping[str, Any]]) -> list[CueBar]:
    most = max((max(cue["with_better"], cue["with_worse"]) for cue in cues), default=0) or 1
    return [
        CueBar(
            cue["word"],
            cue["with_better"],
            cue["with_worse"],
            round(100 * cue["with_better"] / most, 1),
            round(100 * cue["with_worse"] / most, 1),
        )
        for cue in cues
    ]
