"""Looks at a user's files: what kind of records each has, how many, and what the judgements of all of them say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from prefine.advice.situation import ReadingOptions, Situation, situation_of
from prefine.data.audit.facts import MOST_RECORDS, DataFacts, data_facts
from prefine.data.reading.rows import RowError
from prefine.data.reading.source_names import source_names
from prefine.data.reading.sources import locate, read_part
from prefine.data.records.column_names import ColumnNames
from prefine.row_rules import RowRules


def look(
    sources: Sequence[str],
    reward: str | None = None,
    seen: Callable[[str, DataFacts], None] = lambda name, facts: None,
    options: ReadingOptions | None = None,
) -> Situation:
    """The situation in files.

    Args:
        sources: files, folders, dataset ids or sample:….
        reward: what scores any answer, as in reward.name.
        seen: called with each source and its facts.
        options: how the files are read; a file without one of its columns is read without that one.

    Raises:
        DataError: a source cannot be read, or has no usable row; no file has a column that is named.
    """
    options = options or ReadingOptions()
    different = list(dict.fromkeys(sources))
    columns = _columns_of(different, options)
    found = []
    for source in different:
        rules = RowRules(columns[source])
        facts = data_facts([source], split=options.split, text=options.text, rules=rules)
        seen(source, facts)
        found.append((source, facts))
    return situation_of(found, reward, options=options, columns=columns, together=_together(found, columns, options))


def _together(
    found: Sequence[tuple[str, DataFacts]],
    columns: Mapping[str, Mapping[str, str | None]],
    options: ReadingOptions,
) -> dict[str, DataFacts]:
    """The facts of the files of a kind as a stage reads them, where each was read to its end, with the same columns:
    judgements of one file may contradict those of another.
    """
    made = {}
    for kind in dict.fromkeys(facts.kind for _, facts in found):
        files = [source for source, facts in found if facts.kind == kind]
        complete = all(facts.complete for _, facts in found if facts.kind == kind)
        if len(files) > 1 and complete and all(columns[each] == columns[files[0]] for each in files):
            made[kind] = data_facts(
                files,
                kind=kind,
                split=options.split,
                text=options.text,
                rules=RowRules(columns[files[0]]),
                most_records=MOST_RECORDS * len(files),
            )
    return made


def _columns_of(sources: Sequence[str], options: ReadingOptions) -> Mapping[str, Mapping[str, str | None]]:
    """Of the columns that the user named, those that each source has."""
    if len(sources) == 1 or not options.columns:
        return dict.fromkeys(sources, options.columns)
    everywhere, found = ColumnNames(options.columns), {}
    for source in sources:
        names = ColumnNames(options.columns)
        parts = [part for name in source_names([source]) for part in locate(name, options.text)]
        rows = (row for part in parts for row in read_part(part, split=options.split))
        for row in islice(rows, MOST_RECORDS):
            for each in (names, everywhere):
                with suppress(RowError):
                    each.applied(row.value or {})
        found[source] = names.used
    everywhere.require_seen(", ".join(sources))
    return found
