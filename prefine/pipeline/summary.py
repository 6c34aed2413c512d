"""The page of a pipeline: where each stage stands, its main figures, and a link to its own report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.formatting import duration
from prefine.json_reading import JsonError, read_json_object
from prefine.pipeline.prediction import in_words
from prefine.pipeline.records import PipelineRecords, StageRecord
from prefine.pipeline.standing import StageStanding
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.report.facts import dictionaries, mapping, read_run, text
from prefine.report.headline import headline, tiles
from prefine.report.pipeline_page import StageFigure, StageLine, write_pipeline_page

_NOT_RUN = "not run"


def write_summary(pipeline: Pipeline, records: PipelineRecords, found: Mapping[str, StageStanding], page: Path) -> Path:
    """Write the page of a pipeline; returns its path.

    Args:
        found: where the stages stand now, each as if it were chosen; {} if that cannot be said.

    Raises:
        CheckpointError: it cannot be written.
    """
    lines = [
        _line(stage, records.read(stage.name), found.get(stage.name), pipeline.folder)
        for stage in pipeline.stages.values()
    ]
    return write_pipeline_page(pipeline.name, lines, page)


def _line(stage: PipelineStage, record: StageRecord | None, now: StageStanding | None, folder: Path) -> StageLine:
    state, why = _state(record, now)
    done = record is not None and record.status == "done" and state != _NOT_RUN
    sentence, figures = _result(stage) if done else ("", [])
    pages = () if now is not None and now.state == "blocked" else _pages(stage)
    planned = in_words({} if record is None else record.planned)
    figures = [replace(each, before=each.before or planned.get(each.label, "")) for each in figures]
    return StageLine(
        name=stage.name,
        method=stage.method,
        state=state,
        why=why,
        parents=list(stage.parents),
        seconds=duration(record.seconds) if record is not None and record.seconds else "",
        sentence=sentence,
        figures=figures,
        links=[(name, os.path.relpath(path, folder)) for name, path in pages if path.is_file()],
    )


def _state(record: StageRecord | None, now: StageStanding | None) -> tuple[str, str]:
    if now is not None and now.state == "blocked":
        return _NOT_RUN, now.why
    if record is None:
        return _NOT_RUN, ""
    if record.status == "done":
        if now is not None and now.runs:
            return "out of date", now.why
        return ("gate not passed" if record.gate is False else "done"), ""
    if record.status == "failed":
        return "failed", record.reason
    return "interrupted", "The same command goes on where it was."


def _pages(stage: PipelineStage) -> Iterator[tuple[str, Path]]:
    yield "report", stage.folder / "report.html"
    yield "readiness", stage.folder / "readiness.html"
    if stage.method == "export" and stage.folder.is_dir():
        for each in sorted(stage.folder.iterdir()):
            yield each.name, each / "README.md"


def _result(stage: PipelineStage) -> tuple[str, list[StageFigure]]:
    """The main result in a sentence, and figures."""
    try:
        if stage.trains:
            facts = read_run(stage.folder)
            found = [StageFigure(each.label, f"{each.value} {each.unit}".strip(), each.before) for each in tiles(facts)]
            return headline(facts).sentence, found
        if stage.method == "evaluate":
            return _of_comparison(read_json_object(stage.folder / "report.json"))
        if stage.method == "export":
            return "", list(_of_exports(stage.folder))
    except (CheckpointError, OSError, JsonError):
        return "Its result cannot be read.", []
    return "", []


def _of_comparison(values: dict[str, Any]) -> tuple[str, list[StageFigure]]:
    verdict = mapping(values.get("verdict"))
    figures = [
        StageFigure(text(rule.get("rule")) or "gate", "passed" if rule.get("passed") is True else "not passed")
        for rule in dictionaries(values.get("gate"))
    ]
    return text(verdict.get("sentence")) or "", figures


def _of_exports(folder: Path) -> Iterator[StageFigure]:
    for file in sorted(folder.glob("*/export.json")):
        values = read_json_object(file)
        yield StageFigure(file.parent.name, "proven" if values.get("proven") is True else "kept, not proven")
