"""The readiness report as its readers get it: made from readiness.json alone, harmless, whole, the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.errors import CheckpointError
from prefine.evaluation.readiness.assess import Readiness, assess
from prefine.evaluation.readiness.page import JSON_NAME, PAGE_NAME, build_context, write_readiness
from prefine.recipe.reward import ReadinessSection
from prefine.records import Preference
from prefine.report.page import render
from tests.evaluation.readiness.test_measures import Fake, preference, sensible, words
from tests.report.test_page import HOSTILE, Page

NOW = datetime(2026, 3, 14, 15, 9, tzinfo=UTC)
VISIBLE = (*HOSTILE[:6], "␀␛[2J")  # a lone surrogate cannot be in a record


def records(count: int = 60, **more: Any) -> list[Preference]:
    return [
        preference(
            f"parcel{number} late{number} lyon{number}",
            f"parcel{number} late{number} lyon{number}{' so sorry' * (number % 3)}",
            "no idea" if number % 2 else "no idea at all my friend",
            **{name: value(number) for name, value in more.items()},
        )
        for number in range(count)
    ]


def readiness(given_records: Sequence[Preference] | None = None, reward: Fake | None = None, **more: Any) -> Readiness:
    rows = records() if given_records is None else given_records
    given = {"data": f"{len(rows)} held-out rows", "now": NOW, **more}
    return assess(reward or Fake(sensible), rows, ReadinessSection(), **given)


def page_of(found: Readiness) -> Page:
    """Through JSON, as the page is always made."""
    return Page(render(build_context(json.loads(json.dumps(found.as_json()))), "readiness.html.j2"))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2060", "")


# --- What is written -------------------------------------------------------------------------------------------------


def test_the_page_is_made_from_readiness_json_alone(tmp_path: Path) -> None:
    page = write_readiness(readiness(), tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / PAGE_NAME
    assert sorted(path.name for path in page.parent.iterdir()) == [PAGE_NAME, JSON_NAME]
    held = json.loads((page.parent / JSON_NAME).read_text("utf-8"))
    assert render(build_context(held), "readiness.html.j2") == page.read_text("utf-8")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = [write_readiness(readiness(), tmp_path / name) for name in ("one", "other")]
    for name in (PAGE_NAME, JSON_NAME):
        first, second = ((page.parent / name).read_bytes() for page in pages)
        assert first == second


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CheckpointError, match="taken"):
        write_readiness(readiness(records(4)), tmp_path / "taken")


def test_json_holds_every_figure_and_no_nan(tmp_path: Path) -> None:
    """Shares with their intervals, each pair's scores, suspects with their text."""
    flipped = preference("parcel late lyon", "no idea", "parcel late lyon", id="flipped", extra={"subset": "odd"})
    write_readiness(readiness([*records(), flipped]), tmp_path)
    held = json.loads((tmp_path / JSON_NAME).read_text("utf-8"), parse_constant=refuse)
    assert (held["model"], held["data"], held["verdict"]) == ("fake", "61 held-out rows", "go")
    assert held["accuracy"] == {
        "value": pytest.approx(60 / 61),
        "count": 61,
        "low": pytest.approx(0.9128, abs=1e-4),
        "high": pytest.approx(0.9971, abs=1e-4),
    }
    assert len(held["pairs"]) == 61
    assert held["pairs"][-1] == {
        "id": "flipped",
        "group": "odd",
        "chosen_score": pytest.approx(-0.2),
        "rejected_score": pytest.approx(2.7),
        "disagreement": 0.0,
        "chosen_tokens": 2,
        "rejected_tokens": 3,
        "data_margin": None,
    }
    (suspect,) = held["suspects"]
    assert suspect == {
        "id": "flipped",
        "trained_on": False,
        "margin": pytest.approx(-2.9),
        "probability": pytest.approx(0.0522, abs=1e-4),
        "prompt": [{"role": "user", "content": "parcel late lyon"}],
        "chosen": "no idea",
        "rejected": "parcel late lyon",
    }
    assert {"name", "level", "found", "rule", "meaning"} == set(held["findings"][0])


# --- What is read ----------------------------------------------------------------------------------------------------


def test_the_verdict_its_reasons_and_every_finding_are_on_the_page() -> None:
    found = readiness(reward=Fake(words))
    page = page_of(found)
    page.assert_harmless()
    text = plain(page.text)
    assert "no-go Not fit for PPO" in text
    assert "Readiness of fake" in text
    assert "60 held-out rows" in text
    for finding in found.findings:
        for said in (finding.name, finding.found, finding.rule):
            assert plain(said) in text, said
    assert all(reason.meaning in text for reason in found.reasons)
    order = [text.index(f"{reason.name} : {plain(reason.found)}") for reason in found.reasons]
    assert order == sorted(order)
    assert {finding.level for finding in found.reasons} == {"caution", "no-go"}


def test_reasons_come_with_the_worst_first() -> None:
    levels = [reason.level.value for reason in readiness(reward=Fake(words)).reasons]
    assert levels == sorted(levels, reverse=True)  # as words, too: "no-go" is behind "caution"


def test_a_model_without_reasons_against_it_is_told_so() -> None:
    found = readiness(
        [
            preference(f"p{n} q{n} r{n}", f"p{n} q{n} r{n}", "no idea" if n % 2 else "no idea at all my friend")
            for n in range(80)
        ]
    )
    assert (found.verdict.value, found.reasons) == ("go", [])
    text = page_of(found).text
    assert "Fit for PPO, as far as these figures can tell." in text
    assert "No finding is against it." in text


def test_categories_and_margins_are_on_the_page() -> None:
    kinds = ("chat", "safety")
    rows = records(8, extra=lambda number: {"subset": kinds[number % 2]}, margin=float)
    text = plain(page_of(readiness(rows)).text)
    for said in ("By category", "chat 4", "safety 4", "By the data's own margin", "6.00 to 7.00", "By the model's"):
        assert said in text, said


def test_suspects_are_shown_with_their_text_and_not_too_many() -> None:
    """130 flipped labels: 100 in the JSON, 30 on the page."""
    rows = [preference(f"p{n} q{n} r{n}", "no idea", f"p{n} q{n} r{n}") for n in range(130)]
    found = readiness(rows)
    assert len(found.as_json()["suspects"]) == 100
    page = page_of(found)
    text = page.text
    assert page.tags.count("article") == 30
    assert "130 of 130 pairs" in text
    assert "100 more; readiness.json lists the first hundred." in text
    assert "p0 q0 r0" in text
    assert "held out" in text


def test_a_suspect_that_was_trained_on_says_so() -> None:
    wrong = preference("parcel late lyon", "no idea", "parcel late lyon", id="w-1")
    page = page_of(readiness(records(20), trained_on=[(wrong, None)]))
    assert "w-1 · trained on · probability of the label under the model" in page.text
    assert "1 of 21 pairs" in page.text


def test_what_did_not_fit_is_counted() -> None:
    rows = [*records(4), preference("Q", " ".join(["long"] * 30), "a")]
    text = page_of(readiness(rows, Fake(sensible, longest=20))).text
    assert "1 record left out" in text


def test_the_page_has_a_date_a_scope_and_links_to_its_sections() -> None:
    page = page_of(readiness())
    assert "14 March 2026, 15:09 UTC" in page.text
    assert "Scored for this report: 60 held-out rows and 32 preferred answers corrupted in 5 ways." in page.text
    links = [value.removeprefix("#") for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["findings", "scores", "accuracy", "probes", "suspects"]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert set(links) <= set(ids)


# --- Little to show --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_very_few_pairs_give_a_page(count: int) -> None:
    """No groups, no margins of the data, no correlation, no suspects, nothing to swap answers with."""
    page = page_of(readiness(records(count)))
    page.assert_harmless()
    text = plain(page.text)
    assert f"None of {count} pair{'s' if count > 1 else ''}." in text
    assert "too few answers for a correlation" in text
    for absent in ("By category", "By the data's own margin", "None of 0", " nan", "None None"):
        assert absent not in text


def test_a_model_that_scores_everything_alike_gives_a_page() -> None:
    """No spread at all: deviations are told in units of 1, and nothing divides by 0."""
    found = readiness(reward=Fake(lambda prompt, answer: 0.25))
    assert (found.std, found.verdict.value) == (1.0, "no-go")
    page_of(found).assert_harmless()
    json.loads(json.dumps(found.as_json()), parse_constant=refuse)


def test_scores_far_apart_give_a_page() -> None:
    """Margins of a million are sure beyond all digits, and still numbers."""
    found = readiness(reward=Fake(lambda prompt, answer: 1e6 * sensible(prompt, answer)))
    page_of(found).assert_harmless()
    json.loads(json.dumps(found.as_json()), parse_constant=refuse)


# --- Hostile text ----------------------------------------------------------------------------------------------------


def hostile(said: str) -> Readiness:
    """`said` wherever a model's name, data or a record can carry it: the label of one record is flipped."""
    rows = [
        *records(6),
        preference(f"lyon {said}", "no", f"lyon {said}", id=said, extra={"subset": said}),
        preference("parcel late lyon", said, "parcel late lyon"),
    ]
    reward = Fake(sensible)
    reward.name = said
    return readiness(rows, reward, data=said)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    said = " ".join(HOSTILE).replace("\ud800", "")
    page = write_readiness(hostile(said), tmp_path)
    html = page.read_text("utf-8")
    read = Page(html)
    read.assert_harmless()
    for harmless in VISIBLE:
        assert harmless in read.text
    assert "\0" not in html
    assert "\x1b" not in html
    assert "<script" not in html.lower()
    assert not re.search(r"https?:|@import|url\((?!#)", html)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip))
def test_whatever_the_texts_are_the_page_is_harmless(said: str) -> None:
    page_of(hostile(said)).assert_harmless()
