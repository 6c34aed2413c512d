"""The data set that comes with prefine keeps its promises (prefine/samples/support_desk/README.md)."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import prefine
from prefine.data.inspection import NotingQuarantine, inspect_sources
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.selection import group_of
from prefine.data.records.stream import read_records
from prefine.records import Demonstration, Preference, Prompt, Vote

FOLDER = Path(prefine.__file__).parent / "samples" / "support_desk"
CATEGORIES = ["account", "advice", "billing", "changes", "delivery", "faulty", "returns", "setup"]
FLAWS = ["curt", "overpromising", "rambling", "vague"]
# What a support agent who answers the person in front of them does not write.
STOCK_PHRASES = re.compile(
    r"I understand your frustration|dear customer|rest assured|valued customer|as an AI|\[|\blorem\b", re.IGNORECASE
)


def records(name: str, kind: Any) -> list[Any]:
    quarantine = Quarantine()
    found = list(read_records(source_names(f"sample:support_desk/{name}"), kind, quarantine=quarantine))
    assert quarantine.total == 0
    return found


PREFERENCES: list[Preference] = records("preferences", Preference)
VOTES: list[Vote] = records("votes", Vote)
PROMPTS: list[Prompt] = records("prompts", Prompt)


def words(text: str) -> int:
    return len(text.split())


def of(category: str, found: list[Any]) -> list[Any]:
    return [record for record in found if record.extra["category"] == category]


def test_sizes() -> None:
    assert (len(PREFERENCES), len(VOTES), len(PROMPTS)) == (320, 240, 60)
    assert Counter(record.extra["category"] for record in PREFERENCES) == dict.fromkeys(CATEGORIES, 40)
    assert Counter(record.extra["category"] for record in VOTES) == dict.fromkeys(CATEGORIES, 30)
    assert sorted(Counter(record.extra["category"] for record in PROMPTS)) == CATEGORIES


@pytest.mark.parametrize("name", ["preferences", "votes", "prompts"])
def test_prefine_finds_nothing_to_quarantine_or_to_warn_of(name: str) -> None:
    found = inspect_sources(
        [f"sample:support_desk/{name}"], name, template=None, max_length=1024, quarantine=NotingQuarantine()
    )
    assert found.counts["quarantined"] == found.counts["duplicates"] == found.counts["contradictions"] == 0
    assert found.counts["duplicate_ids"] == found.ties == 0
    assert found.answer_lengths is None or not found.answer_lengths.length_decides


def test_preferences_are_demonstrations_too() -> None:
    assert len(records("preferences", Demonstration)) == 320


def test_ids_are_unique_and_name_their_category() -> None:
    ids = [record.id for record in [*PREFERENCES, *VOTES, *PROMPTS]]
    assert len(set(ids)) == len(ids)
    for record in [*PREFERENCES, *VOTES, *PROMPTS]:
        assert str(record.id).startswith(f"{record.extra['category']}-")


def test_no_prompt_comes_twice_in_any_spelling() -> None:
    groups = Counter(group_of(record) for record in [*PREFERENCES, *VOTES, *PROMPTS])
    assert max(groups.values()) == 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_length_does_not_decide(category: str) -> None:
    pairs, votes = of(category, PREFERENCES), of(category, VOTES)
    chosen, rejected = ([words(getattr(pair, name)) for pair in pairs] for name in ("chosen", "rejected"))
    assert fmean(chosen) == pytest.approx(fmean(rejected), rel=0.05)
    longer = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    assert 0.45 * len(pairs) <= longer <= 0.55 * len(pairs)
    up, down = ([words(vote.completion) for vote in votes if vote.label is label] for label in (True, False))
    assert len(up) == len(down) == 15
    assert fmean(up) == pytest.approx(fmean(down), rel=0.08)


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_flaw_is_there_as_often_as_any_other(category: str) -> None:
    assert Counter(pair.extra["flaw"] for pair in of(category, PREFERENCES)) == dict.fromkeys(FLAWS, 10)


def test_good_answers_are_of_a_readable_length_and_say_nothing_by_rote() -> None:
    good = [pair.chosen for pair in PREFERENCES] + [vote.completion for vote in VOTES if vote.label]
    for text in good:
        assert 40 <= words(text) <= 95
        assert not STOCK_PHRASES.search(text), text
    openings = Counter(" ".join(text.split()[:3]).lower() for text in good)
    assert max(openings.values()) <= 4, openings.most_common(5)


def test_texts_are_clean() -> None:
    for line in (line for file in FOLDER.glob("*.jsonl") for line in file.read_text("utf-8").splitlines()):
        assert line.isprintable()
        assert "  " not in line
        assert "\\n" not in line
    for record in [*PREFERENCES, *VOTES, *PROMPTS]:
        answers = [getattr(record, name, "x") for name in ("chosen", "rejected", "completion")]
        assert all(text == text.strip() for text in (record.prompt[0].content, *answers))


def test_the_readme_names_every_category_flaw_and_field() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    for word in [*CATEGORIES, *FLAWS, "id", "category", "prompt", "chosen", "rejected", "completion", "label", "flaw"]:
        assert f"`{word}`" in page, word
    assert "Apache-2.0" in page
