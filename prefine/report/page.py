"""The before/after report: one HTML page, made only from the files of a run's folder.

The page needs no network and no scripts, and its content security policy forbids both: it shows text of models and data
files, which may be hostile. The same files give the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from prefine.degeneration import is_blank
from prefine.formatting import (
    MISSING,
    duration,
    figure,
    moment,
    percent,
    plural,
    tokens,
    visible,
    whole,
)
from prefine.report.answers import lengths
from prefine.report.cautions import cautions, rows_add_up
from prefine.report.charts import length_chart
from prefine.report.facts import RunFacts, count, dictionaries, mapping, number, read_run, text, texts
from prefine.report.guard_events import guard_events
from prefine.report.headline import headline, tiles
from prefine.report.parts import TableRow, cell_text
from prefine.report.stages.registry import stage_report, stage_title
from prefine.runs.atomic import write_text
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import refuse_foreign_page

_OPEN_SAMPLES = 6
_MOST_SAMPLES = 100
_MOST_CHARACTERS = 6_000
TEMPLATES = Path(__file__).parent / "templates"
_COUNTS = {
    "rows_in": "rows in",
    "kept": "kept",
    "quarantined": "quarantined",
    "left_out": "left out, with a reason",
    "duplicates": "duplicates",
    "contradictions": "contradictions",
    "duplicate_ids": "duplicate ids",
    "dropped_too_long": "too long, dropped",
    "dropped_identical": "identical answers, dropped",
    "dropped_unusable": "not usable in this stage, dropped",
    "leaks_removed": "leaks removed",
    "prompts_cut": "prompts cut to fit",  # of earlier releases
    "rows_cut": "cut to fit",
    "turns_dropped": "turns dropped from them",
    "texts_cut": "user turns shortened",
    "turns_not_learned": "turns not learned",
    "rows": "used",
}
# Shown only if above 0: most runs have none.
_RARE = {
    "left_out",
    "contradictions",
    "duplicate_ids",
    "dropped_identical",
    "dropped_unusable",
    "prompts_cut",
    "rows_cut",
    "turns_dropped",
    "texts_cut",
    "turns_not_learned",
}
# Sections that only some stages have, by the template's names.
_NO_SECTIONS: dict[str, Any] = {
    "sources": [],
    "rollouts": [],
    "shifts": [],
    "shift_summary": "",
    "directions": [],
    "chosen_falls": False,
    "length_split": [],
}


def write_report(run_path: Path, page: Path | None = None) -> Path:
    """Write the report of a run, from those of its files that exist. Returns the page's path.

    Args:
        page: where to write it; None for the run's folder.

    Raises:
        CheckpointError: there is no run, one of its files is damaged, or the page cannot be written.
    """
    page = page or RunDirectory(run_path).report
    html = render(build_context(read_run(run_path)))
    refuse_foreign_page(page)
    write_text(page, html)
    return page


def render(context: Mapping[str, Any], template: str = "report.html.j2") -> str:
    """A page as HTML, from one of the templates."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def _finalize(value: object) -> object:
    # In one place, so that no text reaches the page without it.
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def build_context(facts: RunFacts) -> dict[str, Any]:
    """All content of the page as formatted text, by the template's names."""
    report = stage_report(facts)
    return {
        "title": f"{facts.name} · prefine report",
        "stage": stage_title(facts),
        "kicker": _kicker(facts),
        "finished": facts.finished,
        "readiness": text(facts.manifest.get("readiness")),
        "overridden": texts(facts.manifest.get("overridden")),
        "status": text(facts.manifest.get("status")),
        "headline": headline(facts),
        "scales": report.scales(facts),
        "tiles": tiles(facts),
        "learning": report.charts(facts),
        "guard_events": guard_events(facts),
        **_NO_SECTIONS,
        **report.sections(facts),
        "length_chart": length_chart(facts),
        "length_rows": _length_rows(facts),
        "samples": _samples(facts),
        "open_samples": _OPEN_SAMPLES,
        "samples_left_out": max(0, len(facts.samples) - _MOST_SAMPLES),
        "data": _data_parts(facts),
        "example": _clipped(facts.manifest.get("example")),
        "checks": _checks(facts),
        "cautions": cautions(facts),
        "details": _details(facts),
        "recipe": _recipe(facts),
    }


def _kicker(facts: RunFacts) -> list[str]:
    model = mapping(facts.manifest.get("model"))
    return [
        part for part in (facts.name, text(model.get("name")), moment(_started(facts.manifest))) if part is not None
    ]


def _started(manifest: Mapping[str, Any]) -> str | None:
    return text(manifest.get("started_at")) or text(manifest.get("started"))


@dataclass(frozen=True)
class Turn:
    """One message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True)
class ShownAnswer:
    """An answer of the model before or after training.

    Attributes:
        length: "34 tokens", empty if unknown.
        ended: whether it ended by itself; None if unknown.
        fault: blank, stuck or looping; empty for other answers, or if unknown.
    """

    when: str
    content: str
    length: str
    ended: bool | None
    fault: str


@dataclass(frozen=True)
class Sample:
    """A held-out prompt with the answers before and after."""

    id: str
    category: str
    prompt: list[Turn] = field(default_factory=list)
    answers: list[ShownAnswer] = field(default_factory=list)
    reference: str = ""


def _samples(facts: RunFacts) -> list[Sample]:
    return [_sample(row) for row in facts.samples[:_MOST_SAMPLES]]


def _sample(row: Mapping[str, Any]) -> Sample:
    prompt = row.get("prompt")
    turns = (
        [Turn("user", _clipped(prompt))]
        if isinstance(prompt, str)
        else [Turn(text(turn.get("role")) or "unknown", _clipped(turn.get("content"))) for turn in dictionaries(prompt)]
    )
    return Sample(
        id=cell_text(row.get("id")),
        category=cell_text(row.get("category")),
        prompt=turns,
        answers=[_answer(row, when) for when in ("before", "after")],
        reference=_clipped(row.get("reference")),
    )


def _answer(row: Mapping[str, Any], when: str) -> ShownAnswer:
    length, ended = count(row.get(f"{when}_tokens")), row.get(f"{when}_ended")
    content = _clipped(row.get(when))
    blank = is_blank(content)
    return ShownAnswer(
        when=when,
        content="" if blank else content,
        length=plural(length, "token") if length is not None else "",
        ended=ended if isinstance(ended, bool) else None,
        fault="" if blank else text(row.get(f"{when}_degenerate")) or "",
    )


def _clipped(value: object) -> str:
    found = value if isinstance(value, str) else ""
    if len(found) <= _MOST_CHARACTERS:
        return found
    left_out = plural(len(found) - _MOST_CHARACTERS, "more character")
    return f"{found[:_MOST_CHARACTERS]}… [{left_out} in samples.jsonl]"


def _length_rows(facts: RunFacts) -> list[TableRow]:
    was, now = lengths(facts, "before"), lengths(facts, "after")
    rows = [
        TableRow("mean, tokens", [figure(was.mean_tokens, 1), figure(now.mean_tokens, 1)]),
        TableRow("median, tokens", [tokens(was.median_tokens), tokens(now.median_tokens)]),
        TableRow("ended by themselves", [percent(was.ended), percent(now.ended)]),
        TableRow("blank, stuck or looping", [percent(was.degenerate), percent(now.degenerate)]),
    ]
    return [row for row in rows if set(row.cells) != {MISSING}]


@dataclass(frozen=True)
class DataPart:
    """Counts of the rows of one part of the data."""

    name: str
    counts: list[TableRow]
    adds_up: bool | None
    sum: str
    split_off: bool
    reasons: list[TableRow]
    left_out: list[TableRow]
    files: list[TableRow]


def _data_parts(facts: RunFacts) -> list[DataPart]:
    data = mapping(facts.manifest.get("data"))
    return [_data_part(name, value) for name, value in data.items() if isinstance(value, Mapping)]


def _data_part(name: str, part: Mapping[str, Any]) -> DataPart:
    known = {key: count(part.get(key)) for key in _COUNTS}
    rows_in, kept, quarantined = (whole(known[key]) for key in ("rows_in", "kept", "quarantined"))
    left_out = f" + {whole(known['left_out'])} left out" if known["left_out"] else ""
    return DataPart(
        name={"train": "Training", "heldout": "Held-out"}.get(name, name),
        counts=[TableRow(label, [whole(known[key])]) for key, label in _COUNTS.items() if _is_shown(key, known[key])],
        adds_up=rows_add_up(part),
        sum=f"{rows_in} rows in = {kept} kept + {quarantined} quarantined{left_out}",
        split_off=part.get("split_off") is True,
        reasons=_reasons(part, "reasons"),
        left_out=_reasons(part, "left_out_reasons"),
        files=[
            TableRow(cell_text(file.get("path")), [cell_text(file.get("sha256"))])
            for file in dictionaries(part.get("files"))
        ],
    )


def _reasons(part: Mapping[str, Any], key: str) -> list[TableRow]:
    return [TableRow(reason, [whole(number(hits))]) for reason, hits in mapping(part.get(key)).items()]


def _is_shown(key: str, value: int | None) -> bool:
    return value is not None and (value > 0 or key not in _RARE)


@dataclass(frozen=True)
class Check:
    """One self-check of a run."""

    name: str
    value: str
    rule: str
    passed: bool | None


def _checks(facts: RunFacts) -> list[Check]:
    return [
        Check(
            cell_text(check.get("name")),
            cell_text(check.get("value")),
            cell_text(check.get("rule")),
            passed if isinstance(passed := check.get("passed"), bool) else None,
        )
        for check in dictionaries(facts.manifest.get("self_checks"))
    ]


def _details(facts: RunFacts) -> list[TableRow]:
    manifest = facts.manifest
    command, seconds = manifest.get("command"), number(manifest.get("seconds"))
    versions = {**_versions(manifest), **mapping(manifest.get("versions"))}
    found: list[tuple[str, str]] = [
        ("command", shlex.join(map(str, command)) if isinstance(command, list) else cell_text(command)),
        ("status", cell_text(manifest.get("status"))),
        ("started", moment(_started(manifest)) or ""),
        ("finished", moment(text(manifest.get("finished_at"))) or ""),
        ("time", duration(seconds) if seconds is not None else ""),
        ("seed", str(manifest["seed"]) if isinstance(manifest.get("seed"), int) else ""),
        ("git commit", cell_text(manifest.get("git_commit"))),
        *((f"model {_spaced(key)}", cell_text(value)) for key, value in mapping(manifest.get("model")).items()),
        *((f"device {_spaced(key)}", cell_text(value)) for key, value in mapping(manifest.get("device")).items()),
        *((f"{key} version", cell_text(value)) for key, value in versions.items()),
    ]
    return [TableRow(name, [value]) for name, value in found if value]


def _versions(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The versions as written by prefine.runs.directory.run_provenance."""
    here = {key: manifest[key] for key in ("prefine", "python", "platform") if key in manifest}
    return {**here, **mapping(manifest.get("libraries"))}


def _recipe(facts: RunFacts) -> str:
    return recipe_yaml(mapping(facts.manifest.get("recipe")))


def recipe_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML; empty without one."""
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100) if recipe else ""


def _spaced(key: str) -> str:
    return key.replace("_", " ")
