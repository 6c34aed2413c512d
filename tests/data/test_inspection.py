"""What an inspection counts is what reading and fitting the same file gives, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.data.inspection import Inspection, NotingQuarantine, inspect_sources
from prefine.data.lengths import EvenSample, Lengths, lengths_of
from prefine.data.tokens.fitting import fit, whole_row
from prefine.data.tokens.store import FitCounts
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree
from prefine.errors import DataError
from prefine.records import Demonstration, Message, Preference, Prompt, Vote

ASK = (Message(role="user", content="My parcel is late."),)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def chatml(make_tokenizer: Callable[..., Any]) -> ChatTemplate:
    return ChatTemplate(make_tokenizer("chatml"))


def inspect(
    source: str | list[str], kind: str, template: ChatTemplate | None = None, max_length: int = 1024, **options: Any
) -> Inspection:
    quarantine = options.pop("quarantine", None) or NotingQuarantine()
    sources = [source] if isinstance(source, str) else source
    return inspect_sources(sources, kind, template=template, max_length=max_length, quarantine=quarantine, **options)


# --- Lengths and the sample they are taken from ----------------------------------------------------------------------


def test_lengths_by_hand() -> None:
    assert lengths_of([4]) == Lengths(4, 4, 4.0, 4, 4)
    assert lengths_of([9, 1, 2, 4]) == Lengths(minimum=1, median=3.0, mean=4.0, at_95_percent=9, maximum=9)
    # 95 of 100 values are at most 95.
    assert lengths_of(range(1, 101)) == Lengths(1, 50.5, 50.5, 95, 100)


def sampled(values: int, most: int) -> list[int]:
    sample: EvenSample[int] = EvenSample(most)
    for place in range(values):
        if sample.wants(place):
            sample.add(place)
        assert len(sample.values) <= most
    return sample.values


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(1, 20))
def test_a_sample_is_all_there_is_up_to_its_size_and_the_same_every_time(values: int, most: int) -> None:
    sample = sampled(values, most)
    assert sample == sorted(set(sample))
    assert sample == sampled(values, most)
    if values <= most:
        assert sample == list(range(values))


def test_a_sample_is_as_mixed_as_the_whole_even_where_rows_repeat_in_a_pattern() -> None:
    sample = sampled(20_000, 1_000)
    assert 400 <= len(sample) <= 1_000
    assert 8_000 <= sum(sample) / len(sample) <= 12_000
    for period in (2, 8, 10):
        shares = [sum(place % period == rest for place in sample) / len(sample) for rest in range(period)]
        assert min(shares) > 0.5 / period
        assert max(shares) < 1.5 / period


# --- Inspections -----------------------------------------------------------------------------------------------------


def test_rows_are_counted_and_the_first_places_of_each_reason_named(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"Q{n}", "chosen": "long one", "rejected": "short"} for n in range(4)]
    rows += [rows[0], "oops", "oops", {"prompt": "x", "chosen": "", "rejected": "y"}, "oops", "oops"]
    source = write(tmp_path / "a.jsonl", rows)
    with NotingQuarantine(tmp_path / "quarantine.jsonl") as quarantine:
        found = inspect(source, "preferences", quarantine=quarantine)
    assert found.counts["rows_in"] == 10 == found.counts["kept"] + found.counts["quarantined"]
    assert (found.counts["records"], found.counts["duplicates"]) == (4, 1)
    assert [(each.reason, each.rows, each.places) for each in found.set_aside] == [
        ("line is not valid JSON: expecting value", 4, [f"{source}:{line}" for line in (6, 7, 9)]),
        ("chosen is blank", 1, [f"{source}:8"]),
    ]
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 5
    assert (found.tokens, found.example) == (None, None)
    assert found.answer_lengths is not None
    assert (found.answer_lengths.chosen_longer, found.answer_lengths.pairs) == (4, 4)


def test_without_a_quarantine_path_nothing_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": "Q"}, "oops"])
    assert inspect(source, "prompts").counts["quarantined"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(("longer", "decides"), [(20, True), (16, True), (15, False), (10, False), (4, True)])
def test_length_that_nearly_decides(longer: int, decides: bool, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{n}", "chosen": "aa" if n < longer else "a", "rejected": "b" if n < longer else "bb"}
        for n in range(20)
    ]
    found = inspect(write(tmp_path / "a.jsonl", rows), "preferences").answer_lengths
    assert found is not None
    assert (found.chosen_longer, found.rejected_longer, found.equal) == (longer, 20 - longer, 0)
    assert found.length_decides is decides


def test_few_pairs_and_pairs_of_one_length_decide_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": "aa", "rejected": "b"} for n in range(19)]
    found = inspect(write(tmp_path / "a.jsonl", rows), "preferences").answer_lengths
    assert found is not None
    assert not found.length_decides
    rows = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b"} for n in range(30)]
    found = inspect(write(tmp_path / "a.jsonl", rows), "preferences").answer_lengths
    assert found is not None
    assert (found.equal, found.pairs, found.length_decides) == (30, 30, False)


def test_ties_thumbs_and_contradictions(tmp_path: Path) -> None:
    pair = {"prompt": "Q", "response_1": "a", "response_2": "bb"}
    rows = [{**pair, "preferred": 1}, {**pair, "preferred": 2}, {**pair, "preferred": 0}]
    found = inspect(write(tmp_path / "a.jsonl", rows), "preferences")
    assert (found.ties, found.counts["contradictions"]) == (1, 1)
    assert found.answer_lengths is not None
    assert found.answer_lengths.pairs == 2
    votes = [{"prompt": f"Q{n}", "completion": "a", "label": n % 3 == 0} for n in range(9)]
    found = inspect(write(tmp_path / "b.jsonl", votes), "votes")
    assert (found.thumbs_up, found.answer_lengths) == (3, None)


@pytest.mark.parametrize("max_length", [10, 30, 40, 60, 1024])
def test_what_the_length_limit_does_is_what_it_will_do(max_length: int, tmp_path: Path, chatml: ChatTemplate) -> None:
    rows = [{"prompt": "hello " * n, "chosen": "late " * (n + 1), "rejected": "wait " * 5} for n in range(1, 20)]
    found = inspect(write(tmp_path / "a.jsonl", rows), "preferences", chatml, max_length)
    expected = FitCounts()
    trees = []
    for row in rows:
        prompt = (Message(role="user", content=row["prompt"]),)
        record = Preference(prompt=prompt, chosen=row["chosen"], rejected=row["rejected"])
        tree = chatml.preference_tree(record, 0)
        trees.append(tree)
        fit(chatml, record, max_length, expected)
    assert found.tokens is not None
    assert found.tokens.fit == expected
    assert (found.tokens.looked_at, found.tokens.refused) == (19, 0)
    assert found.tokens.lengths == {
        "prompt": lengths_of([len(tree.prompt) for tree in trees]),
        "chosen": lengths_of([len(tree.answers[0]) for tree in trees]),
        "rejected": lengths_of([len(tree.answers[1]) for tree in trees]),
        "total": lengths_of([len(tree.prompt) + max(map(len, tree.answers)) for tree in trees]),
    }


@pytest.mark.parametrize(
    ("kind", "row", "parts", "shown"),
    [
        (
            "preferences",
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            ["prompt", "chosen", "rejected", "total"],
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n— or —\n⟦B<|im_end|>⟧",
        ),
        (
            "votes",
            {"prompt": "Q", "completion": "A", "label": 0},
            ["prompt", "completion", "total"],
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧",
        ),
        (
            "demonstrations",
            {"prompt": "Q", "completion": "A"},
            ["prompt", "answer", "total"],
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧",
        ),
        ("prompts", {"prompt": "Q"}, ["prompt"], "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_each_kind_has_its_lengths_and_its_example(
    kind: str, row: dict[str, Any], parts: list[str], shown: str, tmp_path: Path, chatml: ChatTemplate
) -> None:
    found = inspect(write(tmp_path / "a.jsonl", [row]), kind, chatml)
    assert found.tokens is not None
    assert found.example is not None
    assert list(found.tokens.lengths) == parts
    assert "".join(f"⟦{piece.text}⟧" if piece.supervised else piece.text for piece in found.example) == shown


def test_a_record_that_the_template_refuses_is_counted_and_the_rest_goes_on(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    rows = [{"prompt": "Q", "completion": "A", "system": "Be kind."}, {"prompt": "Q", "completion": "B"}]
    source = write(tmp_path / "a.jsonl", rows)
    template = ChatTemplate(make_tokenizer("gemma"))
    tokens = inspect(source, "demonstrations", template).tokens
    assert tokens is not None
    assert (tokens.looked_at, tokens.refused, tokens.fit.rows) == (2, 1, 1)
    assert tokens.refusal is not None
    assert "System role not supported" in tokens.refusal
    found = inspect(write(tmp_path / "b.jsonl", rows[:1]), "demonstrations", template)
    assert found.tokens is not None
    assert (found.tokens.lengths, found.tokens.refused, found.example) == ({}, 1, None)


def test_of_many_rows_an_even_sample_is_tokenized(
    tmp_path: Path, chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized = 0
    answers_tree = chatml.answers_tree

    def counted(*args: Any, **options: Any) -> TokenTree:
        nonlocal tokenized
        tokenized += 1
        return answers_tree(*args, **options)

    monkeypatch.setattr(chatml, "answers_tree", counted)
    source = write(tmp_path / "a.jsonl", [{"prompt": f"Q{n}"} for n in range(100)])
    found = inspect(source, "prompts", chatml, most_tokenized=10)
    assert found.tokens is not None
    assert found.counts["records"] == 100
    assert 1 <= found.tokens.looked_at == found.tokens.fit.records <= 10
    assert 1 <= tokenized < 50


def test_samples_by_name_and_progress(chatml: ChatTemplate) -> None:
    told: list[int] = []
    found = inspect("sample:support_desk/prompts", "prompts", chatml, progress=told.append)
    assert found.sources == ["sample:support_desk/prompts"]
    assert (told[0], told[-1]) == (1, 60)


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": ""}])
    with pytest.raises(DataError, match="none of 1 rows is a prompt"):
        inspect(source, "prompts")
    with pytest.raises(DataError, match="is the quarantine file of this run"):
        inspect(source, "prompts", quarantine=NotingQuarantine(Path(source)))


def test_any_record_is_a_tree(chatml: ChatTemplate) -> None:
    pair = Preference(prompt=ASK, chosen="A", rejected="B")
    said = Demonstration(messages=(*ASK, Message(role="assistant", content="A")))
    assert whole_row(chatml, pair).tree == chatml.preference_tree(pair, 0)
    assert whole_row(chatml, said).tree == chatml.demonstration_tree(said, 0)
    vote = whole_row(chatml, Vote(prompt=ASK, completion="A", label=False)).tree
    assert (list(vote.prompt), vote.answers[0]) == (chatml.prompt_ids(ASK), chatml.answer_ids(ASK, "A"))
    assert whole_row(chatml, Prompt(prompt=ASK)).tree.answers == ()
