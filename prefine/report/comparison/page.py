"""The page of a comparison: report.html, made from report.json, answers.jsonl and the folders of runs that they name.

The page needs no network. Its only script is its own: it searches and filters the answers, and the content security
policy allows it by its hash. The same files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prefine.comparisons.missing import with_missing
from prefine.comparisons.result import AnswerRow, Comparison, Side
from prefine.comparisons.statistics import ALL_CATEGORIES
from prefine.errors import CheckpointError
from prefine.formatting import duration, moment, whole
from prefine.report.comparison.figures import MARKS
from prefine.report.comparison.forest import forest
from prefine.report.comparison.pictures import answer_charts
from prefine.report.comparison.reading import PAGE_NAME, REGRESSION_NAME, read_answers, read_comparison
from prefine.report.comparison.samples import lengths_in_tokens, shown_samples
from prefine.report.comparison.win_rates import regression, win_rates
from prefine.report.facts import RunFacts, count, mapping, read_run
from prefine.report.overlay import NamedRun, SettingRow, events_of, overlaid, recipe_rows
from prefine.report.page import TEMPLATES, recipe_yaml, render
from prefine.report.parts import TableRow, cell_text
from prefine.report.plots import Ink
from prefine.runs.atomic import write_text
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import refuse_foreign_page


def write_comparison(folder: Path) -> Path:
    """Write the page of a comparison into its folder. Returns the page's path.

    Args:
        folder: it holds report.json and, except without answers, answers.jsonl.

    Raises:
        CheckpointError: there is no comparison, one of its files is damaged, or the page cannot be written.
    """
    comparison, rows = read_comparison(folder), read_answers(folder)
    page = folder / PAGE_NAME
    checked = read_answers(folder, REGRESSION_NAME)
    html = render(comparison_context(comparison, rows, checked), "comparison.html.j2")
    refuse_foreign_page(page)
    write_text(page, html)
    return page


def comparison_context(
    comparison: Comparison, rows: Sequence[AnswerRow], checked: Sequence[AnswerRow] = ()
) -> dict[str, Any]:
    """All content of the page as formatted text, by the template's names.

    Args:
        rows: of answers.jsonl. checked: of regression.jsonl.
    """
    samples = shown_samples(comparison, rows)
    runs, gone = _runs(comparison)
    script = (TEMPLATES / "comparison.js").read_text(encoding="utf-8").strip()
    return {
        "tight": _tight,
        "title": f"{comparison.candidate.name} against {comparison.baseline.name} · prefine",
        "script": Markup(script),  # noqa: S704 - a file of this package
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "candidate": comparison.candidate.name,
        "baseline": comparison.baseline.name,
        "prompt_count": _prompts(comparison, rows),
        "made_at": moment(comparison.made_at),
        "verdict": comparison.verdict,
        "mark": MARKS[comparison.verdict.decision],
        "marks": MARKS,
        "decided_by": _decided_by(comparison),
        "more_prompts": _more_prompts(comparison),
        "gate": comparison.gate,
        "gate_failed": sum(not rule.passed for rule in comparison.gate),
        "win_rates": win_rates(comparison),
        "pictures": answer_charts(rows, in_tokens=lengths_in_tokens(comparison)),
        "forest": forest(comparison),
        "regression": regression(comparison, checked),
        "lost": sum(group.lost for group in comparison.regression if group.category != ALL_CATEGORIES),
        "samples": samples,
        "not_computed": _not_computed(comparison),
        "warnings": comparison.warnings,
        "curves": overlaid(runs),
        "events": events_of(runs),
        "gone": gone,
        "data": fact_tables("Prompts", comparison.prompts),
        "sampling": fact_tables("How answers were generated", comparison.sampling),
        "sides": [_side("Candidate", comparison.candidate), _side("Baseline", comparison.baseline)],
        "recipes": [NamedRecipe(name, recipe_yaml(recipe)) for name, recipe in comparison.recipes.items()],
        "recipe_names": list(comparison.recipes),
        "settings": _settings(comparison),
        "command": shlex.join(comparison.command),
        "version": comparison.prefine,
        "seconds": [TableRow(part, [duration(value)]) for part, value in comparison.seconds.items()],
    }


def _tight(sentence: str) -> str:
    """A sentence whose percentages do not break at a line's end."""
    return re.sub(r"(?<=\d) %", "\u202f%", sentence)


def _decided_by(comparison: Comparison) -> str:
    """The title of the metric that decides, or the judge's name."""
    name = comparison.verdict.decided_by
    titles = {metric.name: metric.title for metric in (*comparison.metrics, *comparison.benchmarks)}
    return name if any(rate.judge == name for rate in comparison.win_rates) else titles.get(name, name)


def _more_prompts(comparison: Comparison) -> str:
    more = comparison.verdict.more_prompts
    said = "more prompt" in comparison.verdict.sentence
    return f"About {whole(more)} more prompts would settle it." if more and not said else ""


def _prompts(comparison: Comparison, rows: Sequence[AnswerRow]) -> int:
    """The number of prompts; with several samples of each there are more rows."""
    return count(comparison.prompts.get("count")) or len(rows)


def _not_computed(comparison: Comparison) -> list[TableRow]:
    return [TableRow(what, [why]) for what, why in with_missing(comparison).not_computed.items()]


_INKS: tuple[tuple[str, Ink], ...] = (("candidate", "after"), ("baseline", "before"))


def _runs(comparison: Comparison) -> tuple[list[NamedRun], list[str]]:
    """The sides that are runs whose folders can still be read, and why others have no curves."""
    runs, gone = [], []
    for kind, ink in _INKS:
        side: Side = getattr(comparison, kind)
        if side.kind != "run":
            continue
        facts, reason = _run_of(side)
        if facts is None:
            gone.append(f"No training curves of the {kind}: {reason}")
        else:
            runs.append(NamedRun(f"{kind}, {facts.name}", facts, ink))
    return runs, gone


def _run_of(side: Side) -> tuple[RunFacts | None, str]:
    path = Path(side.facts.get("path", side.name))
    if not RunDirectory(path).holds_run:
        return None, f"no run is found at {path}."
    try:
        facts = read_run(path)
    except CheckpointError as error:
        return None, error.problem + "."
    if any(side.facts.get(key, found) != found for key in ("run_id", "started") if (found := facts.manifest.get(key))):
        return None, f"{side.name} now holds another run than the one that was compared."
    return facts, ""


@dataclass(frozen=True)
class FactTable:
    """Facts with a heading, and the tables of facts that have parts of their own."""

    title: str
    rows: list[TableRow]
    parts: list[FactTable] = field(default_factory=list)


def fact_tables(title: str, value: Mapping[str, Any]) -> FactTable:
    """A JSON object as a table; an object in it becomes a table of its own."""
    rows = [TableRow(_spaced(key), [cell_text(item)]) for key, item in value.items() if not isinstance(item, Mapping)]
    parts = [
        FactTable(
            _spaced(key).capitalize(), [TableRow(str(name), [cell_text(each)]) for name, each in mapping(item).items()]
        )
        for key, item in value.items()
        if isinstance(item, Mapping) and item
    ]
    return FactTable(title, [row for row in rows if row.cells != [""]], parts)


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def _side(title: str, side: Side) -> FactTable:
    facts = {"name": side.name, "kind": side.kind, "identity": side.identity, **side.facts}
    return fact_tables(title, facts)


@dataclass(frozen=True)
class NamedRecipe:
    """A resolved recipe as YAML."""

    name: str
    yaml: str


def _settings(comparison: Comparison) -> list[SettingRow]:
    """The settings that differ, if both sides have a recipe."""
    recipes = list(comparison.recipes.values())
    return [row for row in recipe_rows(recipes) if row.differs] if len(recipes) > 1 else []
