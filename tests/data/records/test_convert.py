"""Every shape of a row becomes the record a reader of docs/data.md expects, or is refused for a stated reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefine.data.reading.rows import RowError, Unwritable
from prefine.data.records.convert import records_of, without_unwritable
from prefine.data.records.layouts.shape import LeftOut
from prefine.data.records.layouts.table import SHAPES, shape_of
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote
from prefine.row_rules import RowRules


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def turns(record: Prompt | Demonstration) -> list[tuple[str, str]]:
    messages = record.messages if isinstance(record, Demonstration) else record.prompt
    return [(message.role, message.content) for message in messages]


def convert(value: dict[str, Any], kind: Any) -> Any:
    (record,) = records_of(value, kind)
    return record


def refused(value: dict[str, Any], kind: Any) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        convert(value, kind)
    assert len(caught.value.problem.reason) < 120
    return caught.value.problem.field, caught.value.problem.reason


# --- Preference: explicit pairs ----------------------------------------------------------------------------------


def test_an_explicit_pair_of_texts_is_kept_to_the_letter_with_id_and_unused_columns() -> None:
    record = convert(
        {"prompt": " Q? ", "chosen": "A\n", "rejected": " B", "id": 7, "source": {"page": [1]}, "system": "Be kind."},
        Preference,
    )
    assert turns(record) == [("system", "Be kind."), ("user", " Q? ")]
    assert (record.chosen, record.rejected) == ("A\n", " B")
    assert (record.id, record.extra) == ("7", {"source": {"page": [1]}})
    assert (record.margin, record.tie) == (None, False)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([said("A")], [said("B")]),
        ("A", "B"),
        ([system("S"), user("Q"), said("A")], [system("S"), user("Q"), said("B")]),
    ],
)
def test_a_chat_list_prompt_goes_with_texts_lone_answers_and_whole_chats(chosen: Any, rejected: Any) -> None:
    record = convert({"prompt": [system("S"), user("Q")], "chosen": chosen, "rejected": rejected}, Preference)
    assert turns(record) == [("system", "S"), ("user", "Q")]
    assert (record.chosen, record.rejected) == ("A", "B")


def test_ultrafeedback_rows_have_a_text_prompt_and_whole_chats_that_begin_with_it() -> None:
    row = {
        "prompt": "Q",
        "prompt_id": "f00",
        "chosen": [user("Q"), said("A")],
        "rejected": [user("Q"), said("B")],
        "messages": [user("Q"), said("A")],
        "score_chosen": 8.5,
        "score_rejected": 6,
    }
    record = convert(row, Preference)
    assert turns(record) == [("user", "Q")]
    assert (record.chosen, record.rejected, record.margin, record.score_difference) == ("A", "B", None, 2.5)
    assert record.extra == {"prompt_id": "f00", "messages": [user("Q"), said("A")]}

    longer = [system("S"), user("Q "), said("X"), user("And?")]
    record = convert({"prompt": "Q", "chosen": [*longer, said("A")], "rejected": [*longer, said("B")]}, Preference)
    assert turns(record) == [("system", "S"), ("user", "Q "), ("assistant", "X"), ("user", "And?")]

    stray = {"prompt": "Other", "chosen": row["chosen"], "rejected": row["rejected"]}
    assert refused(stray, Preference) == ("chosen", "does not begin with the prompt")
    mixed = {"prompt": [user("Q"), said("X"), user("R")], "chosen": row["chosen"], "rejected": row["rejected"]}
    assert refused(mixed, Preference) == ("chosen", "does not begin with the prompt")


def test_a_transcript_prompt_is_parsed_with_or_without_its_open_end() -> None:
    for end in ("", "\n\nAssistant:", "\n\nAssistant: "):
        row = {
            "prompt": "\n\nHuman: Q\n\nAssistant: X\n\nHuman: R" + end,
            "chosen": " A\n",
            "rejected": " B",
        }
        record = convert(row, Preference)
        assert turns(record) == [("user", "Q"), ("assistant", "X"), ("user", "R")]
        assert (record.chosen, record.rejected) == ("A", "B")
    whole = {
        "prompt": "\n\nHuman: Q\n\nAssistant:",
        "chosen": "\n\nHuman: Q\n\nAssistant: A",
        "rejected": "\n\nHuman: Q\n\nAssistant: B",
    }
    assert (turns(convert(whole, Preference)), convert(whole, Preference).chosen) == ([("user", "Q")], "A")
    assert refused({**whole, "rejected": "B"}, Preference) == (
        "rejected",
        "is plain text without a prompt, not a chat list or an HH transcript",
    )


# --- Preference: implicit pairs ----------------------------------------------------------------------------------


def test_implicit_pairs_split_where_the_answers_begin() -> None:
    head = [system("S"), user("Q"), said("X"), user("R")]
    record = convert({"chosen": [*head, said("A")], "rejected": [*head, said("B")]}, Preference)
    assert turns(record) == [("system", "S"), ("user", "Q"), ("assistant", "X"), ("user", "R")]
    assert (record.chosen, record.rejected) == ("A", "B")

    text = "\n\nHuman: Q\nHuman: is no marker here\n\nAssistant:  X  \n\nHuman: R\n\nAssistant:"
    record = convert({"chosen": text + " A\n\nmore: A", "rejected": text + "B"}, Preference)
    assert turns(record) == [("user", "Q\nHuman: is no marker here"), ("assistant", "X"), ("user", "R")]
    assert (record.chosen, record.rejected) == ("A\n\nmore: A", "B")


def test_a_transcript_speaker_who_goes_on_is_one_turn() -> None:
    text = "\n\nHuman: Q\n\nAssistant: X\n\nAssistant: Y\n\nHuman: R\n\nAssistant: "
    record = convert({"chosen": text + "A", "rejected": text + "B"}, Preference)
    assert turns(record) == [("user", "Q"), ("assistant", "X\n\nY"), ("user", "R")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "reason"),
    [
        ("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: P\n\nAssistant: B", "rejected", "does not share"),
        ("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: ", "rejected", "ends with an empty turn"),
        ("\n\nHuman: \n\nAssistant: A", "\n\nHuman: \n\nAssistant: B", "chosen", "has no text in turn 1"),
        ("\n\nHuman: Q\n\nHuman: A", "\n\nHuman: Q\n\nHuman: B", "chosen", "ends with a turn of user"),
        ("\n\nAssistant: A", "\n\nAssistant: B", "chosen", "has one turn only"),
        ("\n\nAssistant: X\n\nAssistant: A", "\n\nAssistant: X\n\nAssistant: B", "chosen", "turn 1 is 'assistant'"),
        (
            "\n\nHuman: Q\n\nAssistant: X\n\nAssistant: A",
            "\n\nHuman: Q\n\nAssistant: X\n\nAssistant: B",
            "chosen",
            "ends with 'assistant'",
        ),
        ("Human: Q\n\nAssistant: A", "Human: Q\n\nAssistant: B", "chosen", "is plain text without a prompt"),
        ([user("Q"), said("A")], [user("P"), said("B")], "rejected", "does not share"),
        ([user("Q"), user("A")], [user("Q"), user("B")], "chosen", "ends with a turn of user"),
        ([user("Q"), said("A")], None, "rejected", "is null, not a list of turns"),
        ([user("Q"), said("A")], [user("Q"), said("A")], "rejected", "is the same text as chosen"),
    ],
)
def test_implicit_pairs_that_do_not_fit_together_are_refused(
    chosen: Any, rejected: Any, field: str, reason: str
) -> None:
    found_field, found_reason = refused({"chosen": chosen, "rejected": rejected}, Preference)
    assert found_field == field
    assert found_reason.startswith(reason)


# --- Preference: A/B, scores, ties -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preferred", "chosen", "tie"),
    [(1, "A", False), (2, "B", False), (2.0, "B", False), (0, "A", True), (None, "A", True)],
)
def test_a_b_rows_choose_by_number_and_keep_ties(preferred: Any, chosen: str, tie: bool) -> None:
    row = {"prompt": "Q", "response_1": "A", "response_2": "B", "preferred": preferred, "margin": 3}
    record = convert(row, Preference)
    assert (record.chosen, record.tie, record.margin, record.extra) == (chosen, tie, 3.0, {})
    assert {record.chosen, record.rejected} == {"A", "B"}


@pytest.mark.parametrize("preferred", [True, False, 3, -1, 1.5, "1", [1], {}])
def test_a_b_rows_with_any_other_preference_are_refused(preferred: Any) -> None:
    row = {"prompt": "Q", "response_1": "A", "response_2": "B", "preferred": preferred}
    field, reason = refused(row, Preference)
    assert field == "preferred"
    assert reason.endswith("not 1, 2 or 0 (a tie)")


@pytest.mark.parametrize(
    ("scores", "margin", "difference"),
    [
        ({}, None, None),
        ({"margin": 0}, 0.0, None),
        ({"margin": None, "chosen_score": 3, "rejected_score": 1.5}, None, 1.5),
        ({"margin": 0.25, "chosen_score": 3, "rejected_score": 1}, 0.25, 2.0),
        ({"chosen_score": 2, "rejected_score": 2}, None, 0.0),
        ({"chosen_score": None, "rejected_score": None}, None, None),
        ({"score_chosen": -1, "score_rejected": -3}, None, 2.0),
    ],
)
def test_scores_are_no_margin_but_kept(scores: dict[str, Any], margin: float | None, difference: float | None) -> None:
    record = convert({"prompt": "Q", "chosen": "A", "rejected": "B", **scores}, Preference)
    assert (record.margin, record.score_difference, record.extra) == (margin, difference, {})


@pytest.mark.parametrize(
    ("scores", "field", "reason"),
    [
        ({"chosen_score": 1, "rejected_score": 2}, "chosen_score", "is less than rejected_score: the scores contra"),
        ({"margin": 1, "chosen_score": 1, "rejected_score": 2}, "chosen_score", "is less than rejected_score"),
        ({"margin": -0.5}, "margin", "is negative"),
        ({"chosen_score": 1}, "rejected_score", "is missing beside the other score"),
        ({"chosen_score": "9", "rejected_score": 1}, "chosen_score", "is text, not a number"),
        ({"margin": True}, "margin", "is true or false, not a number"),
        ({"margin": float("nan")}, "margin", "is not a finite number"),
        ({"margin": 10**400}, "margin", "is not a finite number"),
        ({"chosen_score": 1.7e308, "rejected_score": -1.7e308}, "chosen_score", "is too far from rejected_score"),
        ({"tie": "yes"}, "tie", "is text, not true or false"),
    ],
)
def test_scores_that_contradict_or_are_no_numbers_are_refused(scores: Any, field: str, reason: str) -> None:
    found = refused({"prompt": "Q", "chosen": "A", "rejected": "B", **scores}, Preference)
    assert found[0] == field
    assert found[1].startswith(reason)


# --- Votes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "expected"), [(True, True), (False, False), (1, True), (0, False), ("up", True), ("Down", False)]
)
def test_votes_in_all_spellings(label: Any, expected: bool) -> None:
    record = convert({"prompt": [user("Q")], "completion": [said("A")], "label": label}, Vote)
    assert (turns(record), record.completion, record.label) == ([("user", "Q")], "A", expected)


@pytest.mark.parametrize("label", [None, 2, "-1", -1, "maybe", "", "👍👎", "upyes", [True], 0.5])
def test_any_other_vote_is_refused(label: Any) -> None:
    assert refused({"prompt": "Q", "completion": "A", "label": label}, Vote)[0] == "label"


# --- Demonstrations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected", "supervise_from"),
    [
        (
            {"messages": [system("S"), user("Q"), said("A"), user("R"), said("B")]},
            [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")],
            0,
        ),
        (
            {"messages": [user("Q"), said("A"), user("R"), said("B")], "supervise_from": 3},
            [("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")],
            3,
        ),
        ({"prompt": "Q", "completion": "A"}, [("user", "Q"), ("assistant", "A")], 1),
        (
            {"prompt": [user("Q")], "completion": [said("A"), user("R"), said("B")], "system": "S"},
            [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")],
            2,
        ),
        (
            {"prompt": "\n\nHuman: Q\n\nAssistant:", "completion": " A"},
            [("user", "Q"), ("assistant", "A")],
            1,
        ),
        ({"instruction": "Sum", "input": "1 2", "output": "3"}, [("user", "Sum\n\n1 2"), ("assistant", "3")], 1),
        ({"instruction": "Sum", "input": "", "output": "3"}, [("user", "Sum"), ("assistant", "3")], 1),
        ({"instruction": "Sum", "output": "3", "system": ""}, [("user", "Sum"), ("assistant", "3")], 1),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A"},
                ],
                "system": "S",
            },
            [("system", "S"), ("user", "Q"), ("assistant", "A")],
            0,
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, [("user", "Q"), ("assistant", "A")], 1),
        ({"prompt": "Q", "completion": "A", "label": "up"}, [("user", "Q"), ("assistant", "A")], 1),
    ],
)
def test_demonstrations_in_all_shapes(
    row: dict[str, Any], expected: list[tuple[str, str]], supervise_from: int
) -> None:
    record = convert(row, Demonstration)
    assert (turns(record), record.supervise_from, record.extra) == (expected, supervise_from, {})


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"messages": []}, "messages", "is an empty list"),
        ({"messages": "hi"}, "messages", "is text, not a list of turns"),
        ({"messages": [user("Q")]}, "messages", "ends with 'user'; the last turn must be 'assistant'"),
        ({"messages": [said("A"), user("Q"), said("B")]}, "messages", "turn 1 is 'assistant' where 'user' is expected"),
        ({"messages": [user("Q"), user("R"), said("A")]}, "messages", "turn 2 is 'user' where 'assistant' is expected"),
        ({"messages": [user("Q"), system("S"), said("A")]}, "messages", "turn 2 is 'system' where"),
        ({"messages": [user("Q"), {"role": "tool", "content": "A"}]}, "messages", "turn 2 is 'tool' where 'assistant'"),
        ({"messages": [user("Q"), {"role": None, "content": "A"}]}, "messages[1].role", "is null, not one of"),
        ({"messages": [user("Q"), {"role": "assistant"}]}, "messages[1].content", "is null, not text"),
        ({"messages": [user("Q"), said(" \n")]}, "messages[1].content", "is blank"),
        ({"messages": [user("Q"), 5]}, "messages[1]", "is a number, not a turn"),
        (
            {"messages": [user("Q"), {**said("A"), "tool_calls": [{}]}]},
            "messages[1].tool_calls[0]",
            "is not a call of a function by its name",
        ),
        ({"messages": [user("Q"), {**said("A"), "weight": 0}]}, "messages", "has no turn that is to be learned"),
        ({"messages": [user("Q"), {**said("A"), "weight": 0.5}]}, "messages[1].weight", "is 0.5; a turn is learned"),
        ({"messages": [user("Q"), said("A")], "supervise_from": 2}, "messages", "supervise_from is after"),
        (
            {"messages": [user("Q"), said("A")], "supervise_from": -1},
            "supervise_from",
            "is -1, and",
        ),
        ({"messages": [user("Q"), said("A")], "supervise_from": "1"}, "supervise_from", "is text, not a whole number"),
        ({"messages": [system("S"), user("Q"), said("A")], "system": "T"}, "system", "differs from the system turn"),
        ({"messages": [user("Q"), said("A")], "system": 5}, "system", "is a number, not text"),
        ({"prompt": "Q", "completion": None}, "completion", "is null, not text"),
        ({"prompt": "Q", "completion": [user("A")]}, "prompt", "turn 2 is 'user'"),
        ({"prompt": "Q", "completion": "A", "label": 0}, "label", "is down, so the answer is not to be imitated"),
        (
            {"prompt": "Q", "response_1": "A", "response_2": "B", "preferred": 0},
            "preferred",
            "is a tie, so it has no answer to imitate",
        ),
        ({"instruction": "Sum", "input": 3, "output": "3"}, "input", "is a number, not text"),
        ({"text": "anything"}, "columns", "fit no known format"),
    ],
)
def test_demonstrations_that_break_a_rule_are_refused(row: dict[str, Any], field: str, reason: str) -> None:
    found = refused(row, Demonstration)
    assert found[0] == field
    assert found[1].startswith(reason)


# --- Completions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "Q", "completion": "A"}, [("user", "Q")], "A"),
        ({"prompt": "Q", "response": "A"}, [("user", "Q")], "A"),
        ({"prompt": " Q? ", "completion": " A\n"}, [("user", " Q? ")], " A\n"),
        ({"prompt": [user("Q")], "completion": [said("A")]}, [("user", "Q")], "A"),
        ({"prompt": [system("S"), user("Q"), said("X"), user("R")], "response": "A"}, None, "A"),
        ({"prompt": "\n\nHuman: Q\n\nAssistant:", "completion": " A\n"}, [("user", "Q")], "A"),
        ({"messages": [user("Q"), said("A")]}, [("user", "Q")], "A"),
        ({"messages": [system("S"), user("Q"), said("X"), user("R"), said(" A ")]}, None, " A "),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, [("user", "Q")], "A"),
    ],
)
def test_completions_in_all_shapes(row: dict[str, Any], prompt: list[tuple[str, str]] | None, completion: str) -> None:
    """A prompt and one answer to it, kept to the letter; of a chat the last turn is the answer."""
    record = convert(row, Completion)
    assert type(record) is Completion
    assert turns(record) == (prompt or [("system", "S"), ("user", "Q"), ("assistant", "X"), ("user", "R")])
    assert (record.completion, record.id, record.extra) == (completion, None, {})


def test_a_completions_other_columns_are_kept_beside_it() -> None:
    """Labels and verdicts too: a row comes back with its score and all it had."""
    row = {"prompt": "Q", "completion": "A", "label": True, "response": "B", "id": 7, "system": "S", "n": [1]}
    record = convert(row, Completion)
    assert turns(record) == [("system", "S"), ("user", "Q")]
    assert (record.id, record.extra) == ("7", {"label": True, "response": "B", "n": [1]})
    chat = {"messages": [user("Q"), said("A")], "system": "S", "supervise_from": 1, "model": "m"}
    assert turns(convert(chat, Completion)) == [("system", "S"), ("user", "Q")]
    assert convert(chat, Completion).extra == {"model": "m"}


@pytest.mark.parametrize("column", ["completion", "response"])
@pytest.mark.parametrize("prompt", ["Q", [user("Q")], "\n\nHuman: Q\n\nAssistant:"])
def test_a_blank_answer_is_an_answer(prompt: Any, column: str) -> None:
    """Models write that, and it wants a score like others; only to imitate it is no use."""
    record = convert({"prompt": prompt, column: ""}, Completion)
    assert (turns(record), record.completion) == ([("user", "Q")], "")
    assert convert({"prompt": prompt, column: " \n\t"}, Completion).completion == " \n\t"  # as it was written
    if column == "completion":
        assert refused({"prompt": prompt, column: ""}, Demonstration)[1].startswith(("is blank", "ends with"))


@pytest.mark.parametrize("blank", ["", " \n"])
@pytest.mark.parametrize(
    ("row", "field"),
    [
        (lambda text: {"messages": [user("Q"), said(text)]}, "messages[1].content"),
        (lambda text: {"prompt": [user("Q")], "completion": [said(text)]}, "completion[0].content"),
        (
            lambda text: {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": text}]},
            "conversations[1].value",
        ),
    ],
)
def test_a_blank_turn_of_a_chat_is_no_answer(row: Callable[[str], dict[str, Any]], field: str, blank: str) -> None:
    """There every turn says something, the last one too; an answer that may not has a column of its own."""
    assert refused(row(blank), Completion) == (field, "is blank")


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "Q", "completion": None}, "completion", "is null, not text"),
        ({"prompt": "Q", "response": 5}, "response", "is a number, not text"),
        ({"prompt": "Q", "response": {"text": "A"}}, "response", "is an object, not text"),
        ({"prompt": "Q", "completion": []}, "completion", "is an empty list"),
        ({"prompt": "Q", "completion": [user("A")]}, "completion", "ends with a turn of user, not of assistant"),
        ({"prompt": "Q", "completion": [said("A"), user("R"), said("B")]}, "completion", "has 3 turns where one"),
        ({"prompt": " ", "completion": "A"}, "prompt", "is blank"),
        ({"prompt": None, "response": "A"}, "prompt", "is null, not text"),
        ({"prompt": [user("Q"), said("X")], "response": "A"}, "prompt", "ends with 'assistant'"),
        ({"prompt": [system("S")], "response": "A"}, "prompt", "has no user turn"),
        ({"prompt": "Q", "response": "\ud800"}, "completion", "has a lone surrogate"),
        ({"messages": [user("Q")]}, "messages", "does not end with an answer to something"),
        ({"messages": [said("A")]}, "messages", "does not end with an answer to something"),
        ({"messages": [user("Q"), said("A"), user("R")]}, "messages", "does not end with an answer to something"),
        ({"messages": []}, "messages", "is an empty list"),
        ({"messages": [system("S"), said("A")]}, "messages", "has no user turn"),
        ({"messages": [user("Q"), user("R"), said("A")]}, "messages", "turn 2 is 'user' where 'assistant' is expected"),
        ({"conversations": [{"from": "gpt", "value": "A"}]}, "conversations", "does not end with an answer"),
        ({"conversations": [{"from": "bot", "value": "A"}]}, "conversations[0].from", "is 'bot', not one of"),
        ({"prompt": "Q"}, "columns", "fit no known format"),
        ({"completion": "A"}, "columns", "fit no known format"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "columns", "fit no known format"),
    ],
)
def test_completions_that_break_a_rule_are_refused(row: dict[str, Any], field: str, reason: str) -> None:
    found = refused(row, Completion)
    assert found[0] == field
    assert found[1].startswith(reason)


# --- Prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q"},
        {"prompt": [user("Q")]},
        {"prompt": "\n\nHuman: Q\n\nAssistant:"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preferred": None},
        {"prompt": "Q", "completion": "A", "label": False},
        {"prompt": "Q", "completion": "A"},
        {"messages": [user("Q"), said("A")]},
        {"messages": [user("Q")]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"instruction": "Q", "input": None, "output": "A"},
    ],
)
def test_every_shape_can_be_read_as_a_prompt(row: dict[str, Any]) -> None:
    """Every column but the prompt itself is kept, answers included: reward functions may compare with them."""
    record = convert({**row, "system": "S", "id": "x", "more": 1}, Prompt)
    assert type(record) is Prompt
    assert turns(record) == [("system", "S"), ("user", "Q")]
    others = {name: value for name, value in row.items() if name != "prompt"}
    assert (record.id, record.extra) == ("x", {**others, "more": 1})


# --- Records of our own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 1, "tie": True, "id": "1", "n": 2}, Preference),
        ({"prompt": "Q", "completion": "A", "label": "down", "n": 2}, Vote),
        ({"prompt": "Q", "completion": "A", "id": 3, "n": 2}, Demonstration),
        ({"prompt": "Q", "n": 2}, Prompt),
        ({"prompt": "Q", "response": "A", "id": 3, "n": 2}, Completion),
        ({"prompt": "Q", "completion": "", "n": 2}, Completion),
    ],
)
def test_a_record_written_as_json_reads_back_as_itself(row: dict[str, Any], kind: Any) -> None:
    record = convert(row, kind)
    assert convert(record.model_dump(mode="json"), kind) == record


def test_each_shape_shows_its_columns_and_is_found_by_names_alone_where_values_are_null() -> None:
    for kind, shapes in SHAPES.items():
        for shape in shapes:
            assert str(shape) == f"{shape.name} ({', '.join(shape.needs)})"
            if shape.when is None:
                names = [need.split(" or ")[0] for need in shape.needs]
                assert shape_of(dict.fromkeys(names), kind) is not None
    assert shape_of({"prompt": 1, "label": 1}, Vote) is None


@pytest.mark.parametrize(
    ("found", "kept"),
    [(None, None), ("x", "x"), (7, "7"), (7.0, "7"), (1.5, "1.5"), (True, "true"), ([1, "ö"], '[1, "ö"]'), ({}, "{}")],
)
def test_an_id_of_any_kind_names_its_row(found: Any, kept: str | None) -> None:
    assert convert({"prompt": "Q", "id": found}, Prompt).id == kept


def test_an_id_that_json_cannot_write_is_left_out() -> None:
    row = {"prompt": "Q", "id": Unwritable("is nan, not a finite number")}
    value, left_out = without_unwritable(row, shape_of(row, Prompt) or SHAPES[Prompt][0])
    assert (convert(value, Prompt).id, left_out) == (None, ["id"])


def test_a_negative_supervise_from_is_refused() -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    with pytest.raises(RowError) as caught:
        records_of({"messages": turns, "supervise_from": -1, "system": "S"}, Demonstration)
    assert caught.value.problem.field == "supervise_from"


def test_a_system_turn_of_blank_blocks_is_no_turn() -> None:
    system = {"role": "system", "content": [{"type": "text", "text": " "}, {"type": "text", "text": "\n"}]}
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (record,) = records_of({"messages": [system, *talk]}, Demonstration)
    assert [turn.role for turn in record.messages] == ["user", "assistant"]


def test_all_pairs_of_very_many_answers_are_refused() -> None:
    row = {"prompt": "q", "answers": [f"a{number}" for number in range(101)]}
    with pytest.raises(RowError) as caught:
        records_of(row, Preference, RowRules(pairs="all"))
    assert caught.value.problem.field == "answers"
    assert len(records_of(row, Preference, RowRules(pairs="adjacent"))) == 100
    row["answers"].pop()
    assert len(records_of(row, Preference, RowRules(pairs="all"))) == 4_950


def _tree(**reply: Any) -> dict[str, Any]:
    said = {"text": "a", "role": "assistant", "replies": [], **reply}
    return {"prompt": {"text": "q", "role": "prompter", "replies": [said]}}


@pytest.mark.parametrize("flag", [{"train": False}, {"loss": False}, {"weight": 0}])
def test_a_reply_of_a_tree_that_is_not_to_be_learned_is_left_out(flag: dict[str, Any]) -> None:
    assert len(records_of(_tree(), Demonstration)) == 1
    with pytest.raises(LeftOut):
        records_of(_tree(**flag), Demonstration)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (_tree(images=["a.png"]), "images"),
        (_tree(weight=0.5), "weight"),
        (_tree(tool_calls=[{"name": "f"}]), "tool_calls"),
        ({**_tree(), "system": "S"}, "system"),
        ({**_tree(), "history": [["p", "b"]]}, "history"),
        ({**_tree(), "tools": [{"name": "f"}]}, "tools"),
    ],
)
def test_what_is_not_read_of_a_tree_is_refused(row: dict[str, Any], field: str) -> None:
    with pytest.raises(RowError) as caught:
        records_of(row, Demonstration)
    assert caught.value.problem.field.endswith(field)


def test_a_rank_that_is_nan_costs_no_question_of_a_tree() -> None:
    """pandas writes NaN where a question has no rank."""
    nan = Unwritable("is not a finite number")
    row = {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "rank": nan}
    shape = shape_of(row, Demonstration)
    assert shape is not None
    assert without_unwritable(row, shape)[1] == ["rank"]
    with pytest.raises(RowError):
        without_unwritable({**row, "role": "assistant"}, shape)


def test_a_demonstration_of_very_many_turns_is_refused() -> None:
    turns = [user("q"), said("a")] * 500
    assert len(records_of({"messages": turns}, Demonstration)) == 1
    with pytest.raises(RowError, match="at most 1,000"):
        records_of({"messages": [*turns, *turns[:2]]}, Demonstration)


def test_records_of_a_tree_without_names_of_its_own_have_the_id_of_the_row() -> None:
    assert [record.id for record in records_of({**_tree(), "id": 7}, Demonstration)] == ["7"]
    tree = _tree(rank=0)
    tree["prompt"]["replies"] += [{"text": f"b{rank}", "role": "assistant", "rank": rank} for rank in (1, 2)]
    rules = RowRules(pairs="adjacent")
    assert [record.id for record in records_of(tree, Preference, rules)] == [None, None]
    assert [record.id for record in records_of({**tree, "id": 7}, Preference, rules)] == ["7/1", "7/2"]
