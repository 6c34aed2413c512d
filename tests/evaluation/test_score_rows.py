"""Rows in, rows with scores out: each in its place, none lost, none read before it is wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import Row
from prefine.data.records import stream as dataset
from prefine.errors import DataError
from prefine.evaluation.score_rows import ScoredRows
from prefine.models.scoring.scorer import RewardModel, ScoreScale
from tests.evaluation.readiness.test_measures import Fake, words

TOO_LONG = "completion leaves its prompt no room within the model's length"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def scored(
    reward: RewardModel, *sources: Path, into: Path | None = None
) -> tuple[list[dict[str, Any]], ScoredRows, Quarantine]:
    with Quarantine(into) as quarantine:
        rows = ScoredRows([str(source) for source in sources], quarantine)
        return list(rows.by(reward)), rows, quarantine


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# --- What comes out --------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order_with_all_they_held(tmp_path: Path) -> None:
    """Two neighbours share a prompt, a third row does not; columns that nobody asked for stay."""
    rows = [
        {"prompt": "Q", "completion": "a b", "id": "one", "model": "m-1"},
        {"prompt": "Q", "completion": "a b c", "id": 2},
        {"prompt": "R", "completion": "a", "score": 99},
    ]
    found, summary, quarantine = scored(Fake(words), write(tmp_path / "a.jsonl", rows))
    assert found == [
        {"prompt": "Q", "completion": "a b", "id": "one", "model": "m-1", "score": 2.0},
        {"prompt": "Q", "completion": "a b c", "id": 2, "score": 3.0},
        {"prompt": "R", "completion": "a", "source_score": 99, "score": 1.0},
    ]
    assert "score as source_score" in summary.summary(Fake(words))[-1]
    assert (summary.scored, quarantine.total) == (3, 0)


def test_a_prompt_is_computed_once_for_neighbours_that_share_it(tmp_path: Path) -> None:
    """Four runs of neighbours: 3 rows, 1, 2, and 1 with the first prompt again."""
    rows = [{"prompt": prompt, "completion": f"a{number}"} for number, prompt in enumerate("QQQRSSQ")]
    reward = Fake(words)
    found, _, _ = scored(reward, write(tmp_path / "a.jsonl", rows))
    assert reward.asked == 4
    assert [row["completion"] for row in found] == [f"a{number}" for number in range(7)]


def test_a_prompt_of_very_many_answers_is_split(tmp_path: Path) -> None:
    """One prompt with 100 answers is not held whole."""
    rows = [{"prompt": "Q", "completion": " ".join("a" * (number + 1))} for number in range(100)]
    reward = Fake(words)
    found, _, _ = scored(reward, write(tmp_path / "a.jsonl", rows))
    assert [row["score"] for row in found] == [number + 1.0 for number in range(100)]
    assert reward.asked == 4  # 32 each


def test_pairs_get_both_scores(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "chosen": "a b", "rejected": "a", "margin": 2.0, "subset": "chat"},
        {"prompt": "Q", "chosen": "a", "rejected": "a b c", "tie": True},
    ]
    found, summary, _ = scored(Fake(words), write(tmp_path / "a.jsonl", rows))
    assert found == [
        {**rows[0], "score_of_chosen": 2.0, "score_of_rejected": 1.0},
        {**rows[1], "score_of_chosen": 1.0, "score_of_rejected": 3.0},
    ]
    assert summary.scored == 2


def test_scores_of_several_heads_come_with_their_disagreement(tmp_path: Path) -> None:
    """Heads say 2 and 4: 3, 1 apart from it."""
    reward = Fake(words, lambda prompt, answer: 2 * words(prompt, answer))
    (one,), _, _ = scored(reward, write(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": "a b"}]))
    assert (one["score"], one["score_disagreement"]) == (3.0, 1.0)
    (two,), _, _ = scored(reward, write(tmp_path / "b.jsonl", [{"prompt": "Q", "chosen": "a b", "rejected": "a"}]))
    assert (two["score_of_chosen_disagreement"], two["score_of_rejected_disagreement"]) == (1.0, 0.5)


def test_votes_responses_demonstrations_and_conversations_are_single_answers(tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "a b"}
    earlier = [question, {"role": "assistant", "content": "Which?"}]
    files: dict[str, list[dict[str, Any]]] = {
        "votes": [{"prompt": "Q", "completion": "a b", "label": False}],
        "responses": [{"prompt": "Q", "response": "a b"}],
        "chats": [{"messages": [question, answer]}, {"messages": [*earlier, question, answer]}],
        "sharegpt": [{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a b"}]}],
        "completions": [{"prompt": said("Q"), "completion": [answer]}],
    }
    for name, rows in files.items():
        found, _, quarantine = scored(Fake(words), write(tmp_path / f"{name}.jsonl", rows))
        assert found == [{**row, "score": 2.0} for row in rows], name
        assert quarantine.total == 0


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
@pytest.mark.parametrize("column", ["completion", "response"])
def test_blank_answers_are_scored(blank: str, column: str, tmp_path: Path) -> None:
    """Models write that, too."""
    reward = Fake(lambda prompt, answer: 1.0 if answer.strip() else -1.0)
    rows = [{"prompt": "Q", column: "a"}, {"prompt": "Q", column: blank}]
    found, _, quarantine = scored(reward, write(tmp_path / "a.jsonl", rows))
    assert [(row[column], row["score"]) for row in found] == [("a", 1.0), (blank, -1.0)]
    assert quarantine.total == 0


def test_rows_that_say_the_same_are_each_scored(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "a b"}] * 3
    assert [row["score"] for row in scored(Fake(words), write(tmp_path / "a.jsonl", rows))[0]] == [2.0] * 3


def test_what_was_scored_can_be_scored_again(tmp_path: Path) -> None:
    """The output is a valid input, and comes back as it is, with the new score behind it."""
    rows = [{"prompt": "Q", "completion": "a b", "extra": {"kind": "x"}}, {"prompt": "R", "completion": ""}]
    first, _, _ = scored(Fake(words), write(tmp_path / "a.jsonl", rows))
    again, _, quarantine = scored(Fake(words), write(tmp_path / "b.jsonl", first))
    assert [{"score": row.pop("source_score"), **row} for row in again] == first
    assert [list(row) for row in again] == [
        ["prompt", "completion", "extra", "score"],
        ["prompt", "completion", "score"],
    ]
    assert quarantine.total == 0


def test_pairs_that_were_scored_can_be_scored_again(tmp_path: Path) -> None:
    """Also those the model does not agree with, and its scores are no margins of the data."""
    rows = [{"prompt": "Q", "chosen": "a b", "rejected": "a"}, {"prompt": "R", "chosen": "a", "rejected": "a b"}]
    first, _, _ = scored(Fake(words), write(tmp_path / "a.jsonl", rows))
    again, _, quarantine = scored(Fake(words), write(tmp_path / "b.jsonl", first))
    assert quarantine.total == 0
    for was, now in zip(first, again, strict=True):
        names = ["score_of_chosen", "score_of_rejected"]
        assert now == {**was, **{f"source_{name}": was[name] for name in names}}


# --- What does not fit -----------------------------------------------------------------------------------------------


def test_too_long_answers_go_to_the_quarantine_alone(tmp_path: Path) -> None:
    """Their neighbours share the prompt, and are scored all the same, in order."""
    long = "much too long an answer"
    rows = [{"prompt": "Q", "completion": text} for text in ("a", long, "a b", "a b c")]
    rows += [{"prompt": "R", "completion": long}, {"prompt": "S", "completion": "a"}]
    source, bad = write(tmp_path / "a.jsonl", rows), tmp_path / "bad.jsonl"
    found, summary, quarantine = scored(Fake(words, longest=3), source, into=bad)
    assert [(row["prompt"], row["score"]) for row in found] == [("Q", 1), ("Q", 2), ("Q", 3), ("S", 1)]
    assert (summary.scored, quarantine.total) == (4, 2)
    assert dict(quarantine.reasons) == {TOO_LONG: 2}
    entries = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [(entry["file"], entry["field"]) for entry in entries] == [(str(source), "completion")] * 2
    assert all(long in entry["row"] for entry in entries)


def test_a_pair_with_one_answer_too_long_is_refused_whole(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "chosen": "a", "rejected": "much too long an answer"},
        {"prompt": "Q", "chosen": "a b", "rejected": "a"},
    ]
    found, _, quarantine = scored(Fake(words, longest=3), write(tmp_path / "a.jsonl", rows))
    assert [(row["score_of_chosen"], row["score_of_rejected"]) for row in found] == [(2.0, 1.0)]
    assert dict(quarantine.reasons) == {TOO_LONG: 1}


def test_a_row_that_is_too_long_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    sources = [
        write(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": "a"}]),
        write(
            tmp_path / "b.jsonl",
            [{"prompt": "Q", "completion": "a"}, {"prompt": "Q", "completion": "much too long an answer"}],
        ),
    ]
    scored(Fake(words, longest=3), *sources, into=tmp_path / "bad.jsonl")
    (entry,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert (entry["file"], entry["line"]) == (str(sources[1]), 2)


ROWS = st.lists(
    st.one_of(
        st.builds(
            lambda prompt, size: {"prompt": prompt, "completion": " ".join("a" * size)},
            st.sampled_from(["Q", "R", "S"]),
            st.integers(0, 6),
        ),
        st.sampled_from(["oops", {"prompt": "Q", "completion": None}, {"prompt": "", "completion": "a"}, {"other": 1}]),
    ),
    max_size=80,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_every_row_is_scored_or_in_the_quarantine(rows: list[Any], tmp_path: Path) -> None:
    """And those that are scored keep their order and get their own answer's score."""
    fitting = [row for row in rows if isinstance(row, dict) and isinstance(row.get("completion"), str)]
    fitting = [row for row in fitting if row["prompt"] and len(row["completion"].split()) <= 3]
    source = write(tmp_path / "a.jsonl", [{"prompt": "first", "completion": "a"}, *rows])
    found, summary, quarantine = scored(Fake(words, longest=3), source)
    assert len(found) + quarantine.total == len(rows) + 1
    assert summary.scored == len(found)
    told = [(row["prompt"], row["completion"], row["score"]) for row in found]
    assert told[1:] == [(row["prompt"], row["completion"], float(len(row["completion"].split()))) for row in fitting]


# --- While it is read ------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of 20,000 rows comes when two have been read: one more than is scored, to see whether it shares the
    prompt."""
    read: list[int] = []
    whole = dataset.read_part

    def counting(*arguments: Any, **options: Any) -> Iterator[Row]:
        for row in whole(*arguments, **options):
            read.append(row.line)
            yield row

    monkeypatch.setattr(dataset, "read_part", counting)
    rows = [{"prompt": f"Q{number}", "completion": "a"} for number in range(20_000)]
    reward = Fake(words)
    with Quarantine() as quarantine:
        found = ScoredRows([str(write(tmp_path / "a.jsonl", rows))], quarantine).by(reward)
        assert (read, reward.asked) == ([], 0)
        assert next(found)["score"] == 1.0
        assert (read, reward.asked) == ([1, 2], 1)
        assert next(found)["prompt"] == "Q1"
        assert (read, reward.asked) == ([1, 2, 3], 2)


# --- Sources and words -----------------------------------------------------------------------------------------------


def test_several_sources_are_scored_one_after_the_other(tmp_path: Path) -> None:
    sources = [
        write(tmp_path / "b.jsonl", [{"prompt": "Q", "completion": "a b"}]),
        write(tmp_path / "a.jsonl", [{"prompt": "Q", "response": "a"}]),
    ]
    found, _, _ = scored(Fake(words), *sources)
    assert [row["score"] for row in found] == [2.0, 1.0]


def test_prompts_without_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fit no format of a completion"):
        scored(Fake(words), write(tmp_path / "a.jsonl", [{"prompt": "Q"}]))


def test_a_missing_source_is_found_at_once(tmp_path: Path) -> None:
    with Quarantine() as quarantine, pytest.raises(DataError, match="no such file"):
        ScoredRows([str(tmp_path / "none.jsonl")], quarantine)


def test_a_file_in_which_no_row_is_valid_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 rows is a completion"):
        scored(Fake(words), write(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": None}]))


def test_the_summary_says_what_became_of_the_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "a"}] * 1_200 + ["oops", {"prompt": "Q", "completion": "a b c d"}]
    source, bad = write(tmp_path / "a.jsonl", rows), tmp_path / "bad.jsonl"
    reward = Fake(words, longest=3)
    _, summary, _ = scored(reward, source, into=bad)
    counted, uncentred, refused = summary.summary(reward)
    assert counted == "1,200 rows scored by fake"
    assert "The scores are not centred" in uncentred
    assert refused.startswith("2 rows could not be scored: ")
    assert f"line is not valid JSON: expecting value (1, first at {source}:1201)" in refused
    assert f"{TOO_LONG} (1, first at {source}:1202)" in refused
    assert refused.endswith(f"({bad})")
    _, summary, _ = scored(reward, source)
    assert summary.summary(reward)[2].endswith("(not written: name a file with --quarantine)")


def test_the_summary_of_a_measured_model_and_clean_rows_is_one_line(tmp_path: Path) -> None:
    reward = Fake(words)
    reward.scale = ScoreScale(bias=(0.0,), std=1.0, answers=10, max_length_tokens=512)
    _, summary, _ = scored(reward, write(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": "a"}]))
    assert summary.summary(reward) == ["1 row scored by fake"]
