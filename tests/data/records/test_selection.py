"""Duplicates are found by content; the held-out part shares no prompt with the rest, however it is written."""

from __future__ import annotations

import random
from typing import Any

import pytest

from prefine.data.records.convert import records_of
from prefine.data.records.selection import DuplicateFilter, group_of, is_heldout, normalised, prompt_group, sample_of
from prefine.records import Demonstration, Message, Preference, Prompt, Vote


def convert(value: dict[str, Any], kind: Any) -> Any:
    (record,) = records_of(value, kind)
    return record


QUESTIONS = [f"Could you tell me when order {number} leaves Zürich" for number in range(400)]


def variants(question: str) -> list[str]:
    return [
        question,
        question.upper(),
        f"  {question}?!\n",
        question.replace(" ", " \u00a0\t"),
        question.replace("ü", "u\u0308"),
        f"«{question}…»",
        question.replace("order", "or\u00adder\u200b"),
        question.replace("Could", "Ｃｏｕｌｄ"),
    ]


def test_normalised_by_hand() -> None:
    assert normalised("  «STRASSE»,\n\t ﬁn?! ") == "strasse», fin"
    assert normalised("Straße\u00a0fin") == "strasse fin"
    assert normalised("?!") == "?!"
    assert normalised("a.b, c") == "a.b, c"
    assert normalised("don't") != normalised("dont")


def test_train_and_heldout_share_no_prompt_however_it_is_written() -> None:
    rows = [variant for question in QUESTIONS for variant in variants(question)]
    random.Random(5).shuffle(rows)
    heldout = {normalised(row) for row in rows if is_heldout(prompt_group(row), 3, 0.25)}
    train = {normalised(row) for row in rows if not is_heldout(prompt_group(row), 3, 0.25)}
    assert heldout & train == set()
    assert len(heldout) + len(train) == len(QUESTIONS)
    assert 70 <= len(heldout) <= 130  # 100 of 400 expected, 3.5 standard deviations either way


def test_heldout_depends_on_seed_and_grows_with_the_fraction() -> None:
    groups = [prompt_group(question) for question in QUESTIONS]
    small = {group for group in groups if is_heldout(group, 1, 0.1)}
    large = {group for group in groups if is_heldout(group, 1, 0.3)}
    other = {group for group in groups if is_heldout(group, 2, 0.3)}
    assert small < large
    assert large != other
    assert not any(is_heldout(group, 1, 0.0) for group in groups)
    for fraction in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="not in"):
            is_heldout(groups[0], 1, fraction)


def test_groups_are_the_same_in_every_process() -> None:
    assert prompt_group("Hello, world!") == "ea8d871b60fc03bfcae9bd6f81038841"
    said = (Message(role="system", content="S"), Message(role="user", content="HELLO, world"))
    assert prompt_group(said) == prompt_group("Hello, world!")


def test_turns_are_kept_apart_in_a_group() -> None:
    def group(*turns: str) -> str:
        roles = ("user", "assistant")
        return prompt_group(tuple(Message(role=roles[n % 2], content=text) for n, text in enumerate(turns)))

    assert group("a b", "c", "d") != group("a", "b c", "d")
    assert group("a") != group("a", "b", "c")


def test_one_row_is_held_out_alike_as_preference_demonstration_vote_and_prompt() -> None:
    pair = {"prompt": [{"role": "user", "content": "Q"}], "chosen": "A", "rejected": "B"}
    vote = {"prompt": "q?", "completion": "A", "label": 1}
    groups = {group_of(convert(pair, kind)) for kind in (Preference, Demonstration, Prompt)}
    groups.add(group_of(convert(vote, Vote)))
    assert len(groups) == 1


def pair(chosen: str, rejected: str, **more: object) -> Preference:
    return convert({"prompt": "Q", "chosen": chosen, "rejected": rejected, **more}, Preference)


def test_only_the_same_content_is_a_duplicate() -> None:
    seen = DuplicateFilter()
    assert not seen.is_duplicate(pair("A", "B", id=1, note="x"))
    assert seen.is_duplicate(pair("A", "B", id=2, note="y"))
    assert not seen.is_duplicate(pair("A", "B", margin=1))
    assert not seen.is_duplicate(pair("A", "B", tie=True))
    assert not seen.is_duplicate(pair("A", "B "))
    assert not seen.is_duplicate(convert({"prompt": "Q", "completion": "A", "label": 1}, Vote))
    assert not seen.is_duplicate(convert({"prompt": "Q", "completion": "A"}, Demonstration))
    assert not seen.is_duplicate(
        convert({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, Demonstration)
    )
    assert (seen.duplicates, seen.duplicate_ids, seen.contradictions) == (1, 0, 0)


def test_parts_that_join_to_the_same_text_are_no_duplicates() -> None:
    seen = DuplicateFilter()
    assert not seen.is_duplicate(pair("1:A", "B"))
    assert not seen.is_duplicate(pair("1:", "AB"))
    assert not seen.is_duplicate(pair("1:A1:B", "C"))
    assert not seen.is_duplicate(pair("1:A", "1:BC"))


def test_an_id_given_to_other_content_and_swapped_answers_are_counted_not_dropped() -> None:
    seen = DuplicateFilter()
    assert not seen.is_duplicate(pair("A", "B", id=1))
    assert not seen.is_duplicate(pair("C", "D", id=1))
    assert not seen.is_duplicate(pair("B", "A", id=2))
    assert not seen.is_duplicate(pair("D", "C", tie=True))
    assert (seen.duplicates, seen.duplicate_ids, seen.contradictions) == (0, 1, 1)


def test_opposite_votes_contradict() -> None:
    seen = DuplicateFilter()
    for label in ("up", "down"):
        assert not seen.is_duplicate(convert({"prompt": "Q", "completion": "A", "label": label}, Vote))
    assert not seen.is_duplicate(convert({"prompt": "Q", "completion": "B", "label": "down"}, Vote))
    assert seen.contradictions == 1


def test_a_sample_is_even_in_order_and_depends_on_the_seed_not_on_the_order() -> None:
    records = [pair(f"yes {n}", "no") for n in range(400)]

    def drawn(limit: int, seed: int, given: list[Preference] = records) -> list[int]:
        placed = [(record, ("a.jsonl", int(record.chosen.split()[1]))) for record in given]
        found = list(sample_of(placed, Preference, limit, seed))
        assert all(place == ("a.jsonl", int(record.chosen.split()[1])) for record, place in found)
        return [place[1] for _, place in found]

    first = drawn(100, 0)
    assert first == drawn(100, 0)
    assert len(first) == 100
    assert first == sorted(first)
    assert 25 < sum(n < 200 for n in first) < 75
    assert first != drawn(100, 1)
    assert sorted(drawn(100, 0, records[::-1])) == first
    assert set(drawn(50, 0)) < set(first)
    assert drawn(1_000, 0) == list(range(400))


CALL = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}


def talk(**changes: object) -> Demonstration:
    fields: dict[str, object] = {"call": CALL, "reasoning": None, "result": "12", "name": "f", "supervised": True}
    fields |= changes
    turns = (
        Message(role="user", content="Q"),
        Message(role="assistant", content="", tool_calls=[fields["call"]], supervised=bool(fields["supervised"])),
        Message.model_validate({"role": "tool", "content": fields["result"], "name": fields["name"]}),
        Message.model_validate({"role": "assistant", "content": "A", "reasoning": fields["reasoning"]}),
    )
    return Demonstration.model_validate({"messages": turns, "tools": fields.get("tools", ())})


@pytest.mark.parametrize(
    "change",
    [
        {"call": CALL | {"id": "c2"}},
        {"call": {"id": "c1", "function": {"name": "f", "arguments": {"a": 2}}}},
        {"reasoning": "Hm."},
        {"result": "13"},
        {"name": None},
        {"supervised": False},
        {"tools": ({"name": "f"},)},
    ],
)
def test_rows_that_differ_in_one_field_of_a_turn_are_no_duplicates(change: dict[str, object]) -> None:
    seen = DuplicateFilter()
    assert not seen.is_duplicate(talk())
    assert not seen.is_duplicate(talk(**change))
    assert seen.is_duplicate(talk(**change))


def test_prompts_with_other_tool_calls_are_other_groups_and_reasoning_and_ids_make_none() -> None:
    group = group_of(talk())
    assert group == group_of(talk(call=CALL | {"id": "c2"}, reasoning="Hm.", tools=({"name": "f"},)))
    assert group != group_of(talk(call={"function": {"name": "f", "arguments": {"a": 2}}}))
    assert group != group_of(talk(result="13"))
