"""Near duplicates: what is one and what is not; the estimate against the exact Jaccard similarity."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.data.audit import near
from prefine.data.audit.similar import shingles, signatures, similarity
from tests.data.audit.test_judgements import swapped
from tests.data.audit.writing import audited, dropped_lines, found, pair, text


def edited(row: dict[str, str], word: str = "otherwise") -> dict[str, str]:
    """One word of the chosen answer changed."""
    words = row["chosen"].split()
    return row | {"chosen": " ".join([*words[:10], word, *words[11:]])}


def test_estimated_similarity_is_near_the_jaccard_similarity() -> None:
    first = text(1, 200)
    for kept in (0.95, 0.8, 0.5, 0.0):
        second = " ".join([*first.split()[: round(200 * kept)], *text(2, 200).split()[: 200 - round(200 * kept)]])
        sets = [set(shingles(first)), set(shingles(second))]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        one, two = signatures([list(each) for each in sets])
        # Four standard errors of 128 places.
        assert similarity(one, two) == pytest.approx(exact, abs=4 * (0.25 / 128) ** 0.5)


def test_a_small_edit_is_a_near_duplicate(tmp_path: Path) -> None:
    audit = audited(tmp_path, [pair(1), pair(2), edited(pair(1))], near=True)
    finding = found(audit, "near_duplicates")
    assert (finding.count, found(audit, "near_contradictions").count) == (1, 0)
    assert finding.examples[0].places == [f"{tmp_path}/rows.jsonl:3", f"{tmp_path}/rows.jsonl:1"]
    assert dropped_lines(audit) == {3: "nearly repeats an earlier row"}
    assert not dropped_lines(audited(tmp_path, [pair(1), pair(2), edited(pair(1))]))


def test_a_small_edit_of_the_swapped_pair_is_a_near_contradiction(tmp_path: Path) -> None:
    audit = audited(tmp_path, [pair(1), swapped(edited(pair(1)))], near=True)
    assert (found(audit, "near_duplicates").count, found(audit, "near_contradictions").count) == (0, 1)
    assert not dropped_lines(audit)


@pytest.mark.parametrize(
    "other",
    [
        pair(1) | {"chosen": text(900), "rejected": text(901)},  # another pair on the same prompt
        pair(1) | {"prompt": text(902)},  # the same answers to another question
        pair(1) | {"prompt": pair(1)["prompt"] + " 17"},
    ],
    ids=["other answers", "other prompt", "other number"],
)
def test_what_is_no_near_duplicate(tmp_path: Path, other: dict[str, str]) -> None:
    first = pair(1) if other["prompt"][-2:] != "17" else pair(1) | {"prompt": pair(1)["prompt"] + " 16"}
    assert found(audited(tmp_path, [first, other]), "near_duplicates").count == 0


def test_votes_on_nearly_the_same_answer(tmp_path: Path) -> None:
    vote = {"prompt": text(1), "completion": text(2), "label": True}
    near = vote | {"completion": vote["completion"] + " indeed"}
    audit = audited(tmp_path, [vote, near, near | {"completion": near["completion"] + " so", "label": False}])
    assert (found(audit, "near_duplicates").count, found(audit, "near_contradictions").count) == (1, 1)


@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
def test_other_kinds(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": text(n)} | ({"completion": text(100 + n)} if kind == "demonstrations" else {}) for n in range(3)]
    rows.append({name: value + " indeed" for name, value in rows[1].items()})
    audit = audited(tmp_path, rows)
    assert (audit.kind, found(audit, "near_duplicates").count) == (kind, 1)


def test_scripts_without_spaces_have_characters_as_words() -> None:
    assert shingles("你好世界") == ["你 好 世", "好 世 界"]
    assert shingles("Ok") == ["ok"]
    assert shingles("...") == ["..."]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_INDEXED", 2)
    audit = audited(tmp_path, [pair(1), pair(2), pair(3), edited(pair(3)), edited(pair(1))])
    finding = found(audit, "near_duplicates")
    assert finding.count == 1 and "Only the first 2 different records" in finding.says
