"""A run's result as lines for a console: the report's headline with its intervals, and warnings."""

from __future__ import annotations

from collections.abc import Iterator

from prefine.report.cautions import cautions
from prefine.report.facts import RunFacts, texts
from prefine.report.headline import headline
from prefine.report.stages.registry import stage_report


def closing_lines(facts: RunFacts) -> list[str]:
    """The result and the warnings of a finished run, without typographic spaces."""
    return [line.replace("\u202f", " ").replace("\u2060", "") for line in _lines(facts)]


def _lines(facts: RunFacts) -> Iterator[str]:
    found = headline(facts)
    yield f"result: {found.sentence}"
    yield from (f"  {line}" for line in found.standfirst if line)
    printed = texts(facts.manifest.get("warnings")) if stage_report(facts).prints_its_warnings else []
    yield from (f"warning: {caution.title}" for caution in cautions(facts) if caution.title not in printed)
