"""Layouts of public data sets and tools: each row says what it means there, or is refused with a reason.

The rows are small ones in the column layout of each; nothing of the data sets is copied.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import MAX_TEXT_CHARACTERS, RowError
from prefine.data.records.convert import records_of
from prefine.data.records.kinds import kind_of_sources
from prefine.data.records.layouts.shape import LeftOut
from prefine.data.records.stream import RecordStream, read_records, remarks
from prefine.errors import DataError
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote
from prefine.row_rules import RowRules

ASK, GOOD, BAD = "What is a canal?", "A dug waterway.", "No idea."


def chat(*said: str, **last: Any) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)
    ]
    turns[-1] |= last
    return turns


def sharegpt(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(said)]


def tool(name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def turns(record: Any) -> list[tuple[str, str]]:
    messages = record.messages if isinstance(record, Demonstration) else record.prompt
    return [(message.role, message.content) for message in messages]


def learned(record: Demonstration) -> list[str]:
    return [record.messages[index].content for index in record.learned_turns]


def one(row: dict[str, Any], kind: Any, **rules: Any) -> Any:
    (record,) = records_of(row, kind, RowRules(**rules))
    return record


def refused(row: dict[str, Any], kind: Any) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        records_of(row, kind)
    assert not isinstance(caught.value, LeftOut)
    assert len(caught.value.problem.reason) < 140
    return caught.value.problem.field, caught.value.problem.reason


def left_out(row: dict[str, Any], kind: Any = Demonstration) -> tuple[str, str]:
    with pytest.raises(LeftOut) as caught:
        records_of(row, kind)
    return caught.value.problem.field, caught.value.problem.reason


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def stream_of(path: Path, rows: list[dict[str, Any]], kind: Any, **rules: Any) -> RecordStream[Any]:
    return read_records(write(path, rows), kind, quarantine=Quarantine(), rules=RowRules(**rules))


# --- The cases: what each public layout is read as ---------------------------------------------------------------

PAIRS: dict[str, dict[str, Any]] = {
    "LLaMA-Factory ShareGPT": {
        "conversations": sharegpt(ASK),
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "OpenAI preference fine-tuning": {
        "input": {"messages": chat(ASK), "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": GOOD}],
        "non_preferred_output": [{"role": "assistant", "content": BAD}],
    },
    "Orca pairs": {"system": "", "question": ASK, "chosen": GOOD, "rejected": BAD},
    "ms-swift": {"messages": chat(ASK, GOOD), "rejected_response": BAD},
    "ms-swift, whole": {"messages": chat(ASK, GOOD), "rejected_messages": chat(ASK, BAD)},
    "ms-swift, query": {"query": ASK, "response": GOOD, "rejected_response": BAD},
    "Alpaca pair": {"instruction": ASK, "input": "", "chosen": GOOD, "rejected": BAD},
    "HelpSteer2": {
        "split": "train",
        "prompt": ASK,
        "response_1": GOOD,
        "response_2": BAD,
        "preference_strength": -2,
        "all_preferences_unprocessed": [],
    },
    "HelpSteer3": {"context": chat(ASK), "response1": BAD, "response2": GOOD, "overall_preference": 3},
    "SHP": {
        "post_id": "0",
        "history": ASK,
        "human_ref_A": GOOD,
        "human_ref_B": BAD,
        "labels": 1,
        "score_A": 10,
        "score_B": 2,
    },
    "SHP, B": {"history": ASK, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 1, "score_B": 9},
    "WebGPT": {
        "question": {"dataset": "eli5", "id": "x", "full_text": ASK},
        "answer_0": BAD,
        "answer_1": GOOD,
        "score_0": -0.5,
        "score_1": 0.5,
    },
    "Nectar": {
        "prompt": f"\n\nHuman: {ASK}\n\nAssistant: ",
        "answers": [{"answer": BAD, "model": "m", "rank": 2.0}, {"answer": GOOD, "model": "n", "rank": 1.0}],
        "turns": 1,
    },
    "Stack Exchange": {
        "qid": 0,
        "question": ASK,
        "answers": [{"text": GOOD, "pm_score": 5, "selected": True}, {"text": BAD, "pm_score": 1}],
    },
    "UltraFeedback": {
        "instruction": ASK,
        "completions": [{"response": BAD, "overall_score": 3.0}, {"response": GOOD, "overall_score": 8.5}],
    },
    "answers with scores beside them": {"prompt": ASK, "responses": [BAD, GOOD], "scores": [0.1, 0.9]},
    "answers in order": {"prompt": ASK, "answers": [GOOD, BAD]},
    "arena-55k": {
        "id": 0,
        "prompt": json.dumps([ASK]),
        "response_a": json.dumps([BAD]),
        "response_b": json.dumps([GOOD]),
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    },
    "FastChat": {"conversation_a": chat(ASK, GOOD), "conversation_b": chat(ASK, BAD), "winner": "model_a"},
    "OpenAssistant, nested": {
        "prompt": {
            "text": ASK,
            "role": "prompter",
            "replies": [
                {"text": BAD, "role": "assistant", "rank": 1, "replies": []},
                {"text": GOOD, "role": "assistant", "rank": 0, "replies": []},
            ],
        }
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_pairs_of_all_layouts(row: dict[str, Any], tmp_path: Path) -> None:
    """The better answer is chosen, imitated as a demonstration, and the prompt is the same in each kind."""
    record = one(row, Preference)
    assert (turns(record), record.chosen, record.rejected) == ([("user", ASK)], GOOD, BAD)
    assert (record.margin, record.tie) == (None, False)
    demonstration = one(row, Demonstration)
    assert turns(demonstration) == [("user", ASK), ("assistant", GOOD)]
    assert learned(demonstration) == [GOOD]
    assert turns(one(row, Prompt)) == [("user", ASK)]
    assert kind_of_sources([write(tmp_path / "a.jsonl", [row])]) == "preferences"


DIFFERENCES = {
    "HelpSteer2": 2.0,
    "HelpSteer3": 3.0,
    "SHP": 8.0,
    "SHP, B": 8.0,
    "WebGPT": 1.0,
    "Stack Exchange": 4.0,
    "UltraFeedback": 5.5,
    "answers with scores beside them": pytest.approx(0.8),
}


@pytest.mark.parametrize("name", PAIRS)
def test_scores_are_differences_and_never_margins_by_themselves(name: str) -> None:
    record = one(PAIRS[name], Preference)
    assert record.score_difference == DIFFERENCES.get(name)
    assert record.margin is None


@pytest.mark.parametrize(
    "row",
    [
        {**PAIRS["HelpSteer2"], "preference_strength": 0},
        {**PAIRS["WebGPT"], "score_0": 0, "score_1": 0},
        {**PAIRS["arena-55k"], "winner_model_b": 0, "winner_tie": 1},
        {**PAIRS["FastChat"], "winner": "tie (bothbad)"},
    ],
)
def test_ties_are_ties_and_nothing_to_imitate(row: dict[str, Any]) -> None:
    assert one(row, Preference).tie
    assert left_out(row)[1] == "is a tie, so it has no answer to imitate"


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**PAIRS["SHP"], "score_A": 1}, "score_A", "is less than score_B: the scores contradict labels"),
        ({**PAIRS["SHP"], "labels": 2}, "labels", "is 2, not 1 (A) or 0 (B)"),
        ({**PAIRS["HelpSteer2"], "preference_strength": "x"}, "preference_strength", "is text, not a number"),
        ({**PAIRS["FastChat"], "winner": "gpt"}, "winner", "is 'gpt', not one of"),
        ({**PAIRS["arena-55k"], "winner_model_a": 1}, "winner_model_a", "with winner_model_b and winner_tie does not"),
        ({**PAIRS["arena-55k"], "response_a": "text"}, "response_a", "is text that is not the JSON of a list"),
        ({**PAIRS["arena-55k"], "response_a": "[null]"}, "response_a[0]", "is null, not text"),
        ({**PAIRS["arena-55k"], "response_a": '["a", "b"]'}, "response_a", "has 2 turns where prompt has 1"),
        (
            {
                **PAIRS["arena-55k"],
                "prompt": '["Q", "R"]',
                "response_a": '["A", "B"]',
                "response_b": '["C", "D"]',
            },
            "response_a",
            "does not share its turns before the answer with response_b",
        ),
        ({**PAIRS["Nectar"], "answers": [{"answer": "A", "rank": 1}]}, "answers", "holds fewer than two different"),
        (
            {**PAIRS["Nectar"], "answers": [{"answer": "A", "rank": 1}, {"answer": "B"}]},
            "answers[1].rank",
            "is null, not a number",
        ),
        (
            {"prompt": ASK, "responses": ["a", "b"], "scores": [1]},
            "scores",
            "is not a list of as many numbers as responses",
        ),
        ({**PAIRS["OpenAI preference fine-tuning"], "input": "Q"}, "input", "is text, not an object with messages"),
    ],
)
def test_pairs_that_break_a_rule_are_refused(row: dict[str, Any], field: str, reason: str) -> None:
    found = refused(row, Preference)
    assert found[0] == field
    assert found[1].startswith(reason)


VOTES: dict[str, dict[str, Any]] = {
    "prompt and completion": {"prompt": ASK, "completion": GOOD},
    "prompt and response": {"prompt": ASK, "response": GOOD},
    "messages": {"messages": chat(ASK, GOOD)},
    "ShareGPT": {"conversations": sharegpt(ASK, GOOD)},
    "Alpaca": {"instruction": ASK, "input": "", "output": GOOD},
}


@pytest.mark.parametrize("label", ["label", "kto_tag"])
@pytest.mark.parametrize("name", VOTES)
def test_a_label_makes_a_vote_in_every_layout_and_a_false_one_is_never_imitated(
    name: str, label: str, tmp_path: Path
) -> None:
    up, down = {**VOTES[name], label: True}, {**VOTES[name], label: False}
    for row, vote in ((up, True), (down, False)):
        record = one(row, Vote)
        assert (turns(record), record.completion, record.label) == ([("user", ASK)], GOOD, vote)
        assert turns(one(row, Completion)) == [("user", ASK)]
    assert kind_of_sources([write(tmp_path / "a.jsonl", [up, down])]) == "votes"
    assert learned(one(up, Demonstration)) == [GOOD]
    assert left_out(down) == ("label", "is down, so the answer is not to be imitated")
    stream = stream_of(tmp_path / "a.jsonl", [up, down, down], Demonstration)
    assert len(list(stream)) == 1
    counts = stream.counts
    assert (counts.rows_in, counts.kept, counts.quarantined, counts.left_out) == (3, 1, 0, 2)
    assert remarks(counts.as_dict()) == [
        "2 valid rows are left out: label is down, so the answer is not to be imitated (2)"
    ]
    with pytest.raises(DataError, match=r"none of 1 rows is a demonstration: label is down, .* \(1\)\. Correct"):
        list(stream_of(tmp_path / "b.jsonl", [down], Demonstration))


DOWN: list[dict[str, Any]] = [
    {"thumbs_up": False},
    {"vote": "down"},
    {"is_good": False},
    {"feedback": "thumbs_down"},
    {"Thumbs Up": 0},
    {"thumbs_down": 1},
]


@pytest.mark.parametrize("vote", DOWN, ids=lambda vote: next(iter(vote)))
@pytest.mark.parametrize("name", VOTES)
def test_a_thumb_down_in_a_column_of_another_name_is_never_imitated(
    name: str, vote: dict[str, Any], tmp_path: Path
) -> None:
    if "response" in VOTES[name]:
        return  # read with a label only
    (column,) = vote
    row = {**VOTES[name], **vote}
    said = f"is a vote: data.columns: {{label: {column}}} reads it, {{{column}: null}} ignores it"
    assert refused(row, Demonstration) == (column, said)
    assert one(row, Completion).completion == GOOD
    (ignored,) = stream_of(tmp_path / "a.jsonl", [row], Demonstration, columns={column: None})
    assert (learned(ignored), ignored.extra) == ([GOOD], vote)
    if column != "thumbs_down":
        (read,) = stream_of(tmp_path / "a.jsonl", [row], Vote, columns={"label": column})
        assert read.label is False


def test_a_thumb_up_in_a_column_of_another_name_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": ASK, "completion": f"{GOOD} {vote}", "vote": vote} for vote in ("up", 1, "Nice!", None)]
    stream = stream_of(tmp_path / "a.jsonl", rows, Demonstration)
    assert len(list(stream)) == 4
    assert remarks(stream.counts.as_dict()) == [
        "warning: columns that look like votes are not read (rows in brackets): vote (2); data.columns (--column) "
        "says which is "
        "the label"
    ]
    ignored = stream_of(tmp_path / "a.jsonl", rows, Demonstration, columns={"vote": None})
    list(ignored)
    assert not remarks(ignored.counts.as_dict())
    with pytest.raises(DataError, match="prefine reads no column 'vote'"):
        stream_of(tmp_path / "a.jsonl", rows, Demonstration, columns={"vote": "x"})


def test_two_labels_that_differ_are_refused() -> None:
    row = {"prompt": ASK, "completion": GOOD, "label": True, "kto_tag": False}
    for kind in (Vote, Demonstration):
        assert refused(row, kind)[0] == "kto_tag"
    assert one({**row, "kto_tag": 1}, Vote).label is True


def test_a_null_label_is_no_label() -> None:
    """A Parquet file of several layouts has every column in every row."""
    row = {"messages": chat(ASK, GOOD), "label": None, "prompt": None, "chosen": None, "rejected": None}
    assert learned(one(row, Demonstration)) == [GOOD]
    pair = {**dict.fromkeys(row), "prompt": ASK, "chosen": GOOD, "rejected": BAD}
    assert one(pair, Preference).chosen == GOOD
    transcript = f"\n\nHuman: {ASK}\n\nAssistant: "
    implicit = {**dict.fromkeys(row), "chosen": transcript + GOOD, "rejected": transcript + BAD}
    assert turns(one(implicit, Preference)) == [("user", ASK)]
    assert refused({**pair, "prompt": None}, Preference) == ("prompt", "is null, not text")


def test_history_and_system_prompts_are_part_of_the_prompt_and_not_learned() -> None:
    row = {"instruction": "And then?", "input": "", "output": GOOD, "system": "You help.", "history": [[ASK, "First."]]}
    said = [("system", "You help."), ("user", ASK), ("assistant", "First."), ("user", "And then?")]
    assert turns(one(row, Prompt)) == said
    assert turns(one(row, Demonstration)) == [*said, ("assistant", GOOD)]
    assert learned(one(row, Demonstration)) == [GOOD]
    later = {"messages": chat("And then?", GOOD, "R", "B"), "history": chat(ASK, "First.")}
    assert learned(one(later, Demonstration)) == [GOOD, "B"]
    french = {"conversations": sharegpt(ASK, GOOD), "system_prompt": "Answer in French.", "id": None}
    assert turns(one(french, Demonstration))[0] == ("system", "Answer in French.")
    blocks = {"system": [{"type": "text", "text": "Be brief."}], "messages": chat(ASK, GOOD)}
    assert turns(one(blocks, Demonstration))[0] == ("system", "Be brief.")
    assert refused({**row, "history": "Q: A"}, Prompt)[0] == "history"
    assert refused({**row, "history": [["Q"]]}, Prompt)[0] == "history[0]"
    assert refused({**row, "system_prompt": "Other."}, Prompt)[0] == "system_prompt"


def test_supervise_from_counts_the_turns_of_its_column() -> None:
    """Whatever is put before them, or is no turn."""
    empty = {"role": "system", "content": ""}
    row = {"messages": [empty, *chat(ASK, BAD, "Again?", GOOD)], "supervise_from": 4, "system": "S"}
    assert learned(one(row, Demonstration)) == [GOOD]
    row = {"messages": chat(ASK, BAD, "Again?", GOOD), "supervise_from": 3, "system": "S", "history": [["Q", "A"]]}
    assert learned(one(row, Demonstration)) == [GOOD]


def test_text_blocks_are_text_and_an_empty_system_turn_is_none() -> None:
    blocks = [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in chat(ASK, GOOD)]
    assert turns(one({"messages": blocks}, Demonstration)) == [("user", ASK), ("assistant", GOOD)]
    assert turns(one({"prompt": blocks[0]["content"], "completion": GOOD}, Completion)) == [("user", ASK)]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, blocks[1]]
    assert refused({"messages": image}, Demonstration) == (
        "messages[0].content[0].type",
        "is 'image_url', and prefine reads text only",
    )
    for empty in ("", " ", None, []):
        row = {"messages": [{"role": "system", "content": empty}, *chat(ASK, GOOD)]}
        assert turns(one(row, Demonstration)) == [("user", ASK), ("assistant", GOOD)]


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
def test_media_are_refused_and_can_be_ignored(column: str, tmp_path: Path) -> None:
    row = {"conversations": sharegpt("<image>\n" + ASK, GOOD), column: "a.jpg"}
    for kind in (Demonstration, Prompt, Completion):
        assert refused(row, kind) == (
            column,
            f"is not empty, and prefine reads text only (data.columns: {{{column}: null}} ignores it)",
        )
    assert one({**row, column: []}, Demonstration)
    assert refused({"messages": [{**chat(ASK)[0], column: "x"}, *chat(ASK, GOOD)[1:]]}, Demonstration)[0] == (
        f"messages[0].{column}"
    )
    (record,) = stream_of(tmp_path / "a.jsonl", [row], Demonstration, columns={column: None})
    assert record.extra == {column: "a.jpg"}


# --- Flags, reasoning, tools -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [{"train": False}, {"loss": False}, {"weight": 0}, {"weight": 0.0}, {"loss_scale": 0}])
def test_a_flagged_turn_is_context(flag: dict[str, Any]) -> None:
    row = {"messages": [*chat(ASK, "BADTURN", **flag), *chat("Again?", GOOD, train=True)]}
    record = one(row, Demonstration)
    assert len(record.messages) == 4
    assert learned(record) == [GOOD]
    assert left_out({"messages": chat(ASK, GOOD, **flag)})[1] == (
        "has no turn that is to be learned (by train, loss or weight)"
    )
    vote = {"messages": chat(ASK, GOOD, **flag), "label": True}
    assert refused(vote, Vote)[1].startswith("ends with an answer that is marked as not to be learned")
    assert one(row, Completion).completion == GOOD
    assert one({"messages": chat(ASK, GOOD, **flag)}, Completion).completion == GOOD  # to be scored, not learned


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ({"weight": 0.5}, "is 0.5; a turn is learned (1 or true) or not (0 or false)"),
        ({"train": "no"}, "is text; a turn is learned"),
        ({"train_detail": [{"begin_offset": 0, "train": False}]}, "marks parts of a turn"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(flag: dict[str, Any], reason: str) -> None:
    field, found = refused({"messages": chat(ASK, GOOD, **flag)}, Demonstration)
    assert field == f"messages[1].{next(iter(flag))}"
    assert found.startswith(reason)


def test_a_turn_of_a_user_is_not_learned() -> None:
    row = {"messages": [{**chat(ASK)[0], "train": True}, *chat(ASK, GOOD)[1:]]}
    assert refused(row, Demonstration)[1].startswith("asks to learn a turn of user")
    row["messages"][0] |= {"train": False, "weight": 1}
    assert learned(one(row, Demonstration)) == [GOOD]


def test_flags_of_a_row_leave_it_out() -> None:
    row = {"prompt": ASK, "completion": GOOD}
    assert left_out({**row, "train": False}) == ("train", "is false, so the row is not to be learned")
    assert left_out({**row, "weight": 0})[0] == "weight"
    assert refused({**row, "weight": 0.5}, Demonstration)[1] == (
        "is not 1 or 0, and prefine gives all rows the same weight (data.columns: {weight: null} ignores it)"
    )
    assert one({**row, "train": True, "weight": 1.0, "loss": 2.31}, Demonstration).extra["loss"] == 2.31
    assert one({**row, "train": False}, Completion).completion == GOOD


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": ASK, "completion": GOOD}, Demonstration),
        ({"prompt": ASK, "chosen": GOOD, "rejected": BAD}, Preference),
        ({"prompt": ASK, "completion": GOOD, "label": True}, Vote),
    ],
)
def test_flags_of_a_row_hold_for_all_that_is_learned(row: dict[str, Any], kind: Any, tmp_path: Path) -> None:
    for name, value in [("train", False), ("train", 0), ("weight", 0), ("weight", "0"), ("loss", "false"), ("loss", 0)]:
        assert left_out({**row, name: value}, kind)[0] == name
    for name, value in [("train", "False "), ("supervised", False), ("loss_scale", 0.0)]:
        assert left_out({**row, name: value}, kind)[0] == name
    for name, other in [("train", "no"), ("train", [1]), ("weight", "0.5"), ("loss", [0, 1])]:
        assert refused({**row, name: other}, kind)[1].startswith("is not 1 or 0")
    for name, learned_value in [("train", "true"), ("weight", "1"), ("train", 1), ("loss", 2.5), ("loss", "x")]:
        assert one({**row, name: learned_value}, kind).extra[name] == learned_value
    stream = stream_of(tmp_path / "a.jsonl", [row, {**row, "train": False}], kind)
    assert len(list(stream)) == 1
    assert stream.counts.left_out == 1


@pytest.mark.parametrize("name", ["loss_mask", "mask", "masked", "trainable"])
def test_flags_of_other_names_are_refused(name: str, tmp_path: Path) -> None:
    said = "is a flag that prefine does not read; train: false is one"
    turn = {"messages": chat(ASK, GOOD, **{name: 0})}
    assert refused(turn, Demonstration) == (f"messages[1].{name}", said)
    row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    for kind in (Demonstration, Preference):
        reason = f"{said} (data.columns: {{{name}: null}} ignores it)"
        assert refused({**row, name: [0, 1]}, kind) == (name, reason)
        for written in (name, name.upper()):
            wanted = stream_of(tmp_path / "a.jsonl", [{**row, written: [0]}], kind, columns={name: None})
            assert len(list(wanted)) == 1
        assert one({**row, name: None}, kind).extra == {name: None}


def test_flags_of_turns_may_be_texts() -> None:
    row = {"messages": [*chat(ASK, BAD, train="False"), *chat("Again?", GOOD, weight="1")]}
    assert learned(one(row, Demonstration)) == [GOOD]
    row["messages"][0]["train"] = "0"
    assert learned(one(row, Demonstration)) == [GOOD]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_with_its_turn_or_refused(name: str) -> None:
    row = {"messages": chat(ASK, GOOD, **{name: "Let me think."})}
    assert one(row, Demonstration).messages[1].reasoning == "Let me think."
    assert one({"messages": chat(ASK, GOOD, **{name: ""})}, Demonstration).messages[1].reasoning is None
    for kind, more in ((Vote, {"label": True}), (Completion, {})):
        assert "reasoning" in refused({**row, **more}, kind)[1]
    assert refused({"messages": chat(ASK, GOOD, thinking="a", reasoning="b")}, Demonstration)[1].endswith(
        "which differ"
    )
    assert refused({"messages": chat(ASK, **{name: "x"})}, Prompt) == (
        "messages[0].reasoning",
        "is only for assistant turns; this turn's role is 'user'",
    )


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [tool()]},
        {"tools": json.dumps([tool()])},
        {"functions": [tool()["function"]]},
        {"tools": json.dumps([tool()["function"]])},
    ],
)
def test_tool_definitions_are_kept_in_every_kind(tools: dict[str, Any]) -> None:
    row = {"messages": chat(ASK, GOOD), **tools}
    for kind, more in ((Demonstration, {}), (Prompt, {}), (Completion, {}), (Vote, {"label": True})):
        assert one({**row, **more}, kind).tools == (tool(),)
    pair = one({"prompt": ASK, "chosen": GOOD, "rejected": BAD, **tools}, Preference)
    assert pair.tools == (tool(),)
    assert one({"prompt": ASK, "chosen": GOOD, "rejected": BAD, **tools}, Demonstration).tools == (tool(),)
    inside = {**PAIRS["OpenAI preference fine-tuning"], "input": {"messages": chat(ASK), **tools}}
    assert one(inside, Preference).tools == (tool(),)


@pytest.mark.parametrize("tools", ["hammer", [5], [{"type": "function"}], {"a": 1}, '{"a": 1}'])
def test_tools_that_are_none_are_refused(tools: Any) -> None:
    assert refused({"messages": chat(ASK, GOOD), "tools": tools}, Demonstration)[0].startswith("tools")
    for nothing in (None, [], "", "[]", " "):
        assert one({"messages": chat(ASK, GOOD), "tools": nothing}, Demonstration).tools == ()


CALL = {"name": "weather", "arguments": {"city": "Oslo"}}


@pytest.mark.parametrize(
    "on_the_way",
    [
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]}],
        [{"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}],
        [{"role": "assistant", "content": "", "function_call": CALL}],
        [{"from": "function_call", "value": json.dumps(CALL)}],
        [{"role": "tool_call", "content": json.dumps(CALL)}],
    ],
)
@pytest.mark.parametrize("role", ["tool", "observation", "function", "tool_response"])
def test_tool_calls_and_results_of_all_layouts(on_the_way: list[dict[str, Any]], role: str) -> None:
    result = {"role": role, "content": "rain", "name": "weather", "tool_call_id": "1"}
    row = {"messages": [*chat("Weather?"), *on_the_way, result, {"role": "assistant", "content": "It rains."}]}
    record = one(row, Demonstration)
    assert turns(record) == [("user", "Weather?"), ("assistant", ""), ("tool", "rain"), ("assistant", "It rains.")]
    (call,) = record.messages[1].tool_calls
    assert call["function"] == CALL
    assert (record.messages[2].name, record.messages[2].tool_call_id) == ("weather", "1")
    assert turns(one(row, Prompt)) == [("user", "Weather?")]
    assert one(row, Completion).completion == "It rains."
    assert refused({"messages": row["messages"][:2], "label": True}, Vote)[1].startswith("ends with tool calls")


def test_calls_that_follow_each_other_are_one_turn() -> None:
    calls = [{"from": "function_call", "value": json.dumps({**CALL, "arguments": {"city": city}})} for city in "AB"]
    result = {"from": "observation", "value": "rain"}
    row = {"conversations": [*sharegpt("Weather?"), *calls, result, result, {"from": "gpt", "value": "It rains."}]}
    record = one(row, Demonstration)
    assert [call["function"]["arguments"]["city"] for call in record.messages[1].tool_calls] == ["A", "B"]
    assert [turn.role for turn in record.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert refused({"conversations": [*sharegpt("Q"), {"from": "function_call", "value": "x"}]}, Demonstration) == (
        "conversations[1].value",
        "is text that is not the JSON of a tool call",
    )


def test_a_prompt_that_looks_like_json_is_text() -> None:
    for text in ('["a", "b"]', '[{"role": "user", "content": "x"}]', '{"a": 1}'):
        assert turns(one({"prompt": text}, Prompt)) == [("user", text)]
        assert one({"prompt": text, "chosen": text, "rejected": BAD}, Preference).chosen == text


def test_prompts_of_verl_keep_their_columns() -> None:
    row = {"data_source": "gsm8k", "prompt": chat(ASK), "reward_model": {"ground_truth": "4"}, "extra_info": {"i": 0}}
    record = one(row, Prompt)
    assert turns(record) == [("user", ASK)]
    assert record.extra == {name: row[name] for name in row if name != "prompt"}


def test_a_prompt_may_have_gold_answers_beside_it() -> None:
    """They reach reward functions; as preferences the same rows are taken in order."""
    assert one({"prompt": ASK, "answers": ["4", "four"]}, Prompt).extra == {"answers": ["4", "four"]}


def test_turns_of_helpsteer_in_one_text() -> None:
    prompt = "Q\n<extra_id_1>Assistant\nA\n<extra_id_1>User\nR\n<extra_id_1>Assistant\n"
    row = {"prompt": prompt, "response_1": GOOD, "response_2": BAD, "preference_strength": -1}
    assert turns(one(row, Preference)) == [("user", "Q"), ("assistant", "A"), ("user", "R")]


def test_the_query_of_a_summary() -> None:
    info = {"subreddit": "tea", "title": "Cups", "post": "Which cup?"}
    row = {"info": info, "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1}
    record = one(row, Preference)
    assert turns(record) == [("user", "SUBREDDIT: r/tea\n\nTITLE: Cups\n\nPOST: Which cup?\n\nTL;DR:")]
    assert (record.chosen, record.rejected) == (GOOD, BAD)


# --- data.columns ------------------------------------------------------------------------------------------------


def test_columns_of_other_names_are_read_through_a_mapping(tmp_path: Path) -> None:
    gsm8k = [{"question": ASK, "answer": GOOD, "level": 1}]
    (record,) = stream_of(
        tmp_path / "a.jsonl", gsm8k, Demonstration, columns={"prompt": "question", "completion": "answer"}
    )
    assert (turns(record), learned(record), record.extra) == (
        [("user", ASK), ("assistant", GOOD)],
        [GOOD],
        {"level": 1},
    )
    dolly = [{"instruction": ASK, "context": "C", "response": GOOD, "category": "x"}]
    (record,) = stream_of(
        tmp_path / "b.jsonl", dolly, Demonstration, columns={"input": "context", "output": "response"}
    )
    assert turns(record) == [("user", f"{ASK}\n\nC"), ("assistant", GOOD)]
    swapped = [{"prompt": ASK, "chosen": BAD, "rejected": GOOD}]
    (record,) = stream_of(
        tmp_path / "c.jsonl", swapped, Preference, columns={"chosen": "rejected", "rejected": "chosen"}
    )
    assert (record.chosen, record.rejected) == (GOOD, BAD)
    inside = [{"data": {"q": ASK}}, {"prompt": "R"}, {"data": {"q": None}, "prompt": "S"}]
    records = list(stream_of(tmp_path / "d.jsonl", inside, Prompt, columns={"prompt": "data.q"}))
    assert [turns(each)[0][1] for each in records] == [ASK, "R", "S"]


def test_cells_of_a_table_are_typed_by_the_names_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"q,good,bad,diff\n{ASK},{GOOD},{BAD},2.5\n")
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "diff"}
    source = str(tmp_path / "a.csv")
    (record,) = read_records(source, Preference, quarantine=Quarantine(), rules=RowRules(columns))
    assert record.margin == 2.5
    assert kind_of_sources([source], rules=RowRules(columns)) == "preferences"


def test_a_mapping_that_fits_nothing_is_an_error(tmp_path: Path) -> None:
    rows = [{"question": ASK, "answer": GOOD}]
    with pytest.raises(DataError) as caught:
        list(
            stream_of(tmp_path / "a.jsonl", rows, Demonstration, columns={"prompt": "qestion", "completion": "answer"})
        )
    assert str(caught.value) == (
        f"{tmp_path / 'a.jsonl'}: data.columns says prompt: qestion, and no row has a column qestion; there are "
        "question, answer. Did you mean question?"
    )
    with pytest.raises(DataError, match=r"no row has a column x; there are prompt, completion\. Name one"):
        list(stream_of(tmp_path / "b.jsonl", [{"prompt": "Q", "completion": "A"}], Demonstration, columns={"id": "x"}))
    with pytest.raises(DataError, match=r"prefine reads no column 'promt'\. Did you mean prompt"):
        stream_of(tmp_path / "a.jsonl", rows, Demonstration, columns={"promt": "question"})
    with pytest.raises(DataError, match="no row has a column qestion"):
        kind_of_sources([write(tmp_path / "a.jsonl", rows)], rules=RowRules({"prompt": "qestion"}))


@pytest.mark.parametrize(
    ("row", "kind", "mapping"),
    [
        ({"question": ASK, "answer": GOOD}, Demonstration, "{prompt: question, completion: answer}"),
        ({"instruction": ASK, "context": "", "response": GOOD}, Demonstration, "{input: context, output: response}"),
        ({"Question": ASK, "Best Answer": GOOD}, Preference, "{prompt: Question, chosen: …, rejected: …}"),
        (
            {"question": ASK, "response_j": GOOD, "response_k": BAD},
            Preference,
            "{prompt: question, chosen: response_j, rejected: response_k}",
        ),
        ({"query": ASK, "answer": GOOD, "feedback": 1}, Vote, "{prompt: query, completion: answer, label: feedback}"),
        ({"body": ASK}, Prompt, "{prompt: …}"),
    ],
)
def test_a_refusal_names_the_columns_and_the_mapping_to_write(
    row: dict[str, Any], kind: Any, mapping: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        list(stream_of(tmp_path / "a.jsonl", [row], kind))
    assert f"its columns ({', '.join(row)}) fit no format of a {kind.__name__.lower()}. " in str(caught.value)
    assert f"data.columns: {mapping} in a recipe" in str(caught.value)


def test_answers_that_nothing_reads_are_named(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "a.jsonl", [{"prompt": ASK, "response": GOOD, "response_id": "x"}] * 2, Prompt)
    list(stream)
    assert stream.counts.answers_unread == {"response": 2}
    assert remarks(stream.counts.as_dict()) == [
        "columns that look like answers are not read (rows in brackets): response (2); name them with data.columns "
        "(--column)"
    ]
    chosen = stream_of(
        tmp_path / "b.jsonl", [{"messages": chat(ASK, GOOD), "output": BAD, "answer": None}], Demonstration
    )
    list(chosen)
    assert chosen.counts.answers_unread == {"output": 1}
    # What prompts are wanted of has answers on purpose.
    prompts = stream_of(tmp_path / "c.jsonl", [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}], Prompt)
    list(prompts)
    assert not prompts.counts.answers_unread


# --- data.pairs --------------------------------------------------------------------------------------------------

RANKED = {
    "id": 7,
    "prompt": ASK,
    "answers": [{"answer": text, "rank": rank} for text, rank in zip("DABBC", (4, 1, 2, 3, 2), strict=True)],
}


@pytest.mark.parametrize(
    ("rule", "pairs"),
    [
        ("best_worst", ["AD"]),
        ("adjacent", ["AB", "CD"]),  # B and C have one rank; of the two B the better counts
        ("all", ["AB", "AC", "AD", "BD", "CD"]),
    ],
)
def test_ranked_answers_give_pairs_by_a_rule(rule: Any, pairs: list[str], tmp_path: Path) -> None:
    records = records_of(RANKED, Preference, RowRules(pairs=rule))
    assert [record.chosen + record.rejected for record in records] == pairs
    assert [record.id for record in records] == (
        ["7"] if len(pairs) == 1 else [f"7/{n + 1}" for n in range(len(pairs))]
    )
    stream = stream_of(tmp_path / "a.jsonl", [RANKED, RANKED], Preference, pairs=rule)
    assert len(list(stream)) == len(pairs)
    counts = stream.counts
    assert (counts.rows_in, counts.kept, counts.found, counts.duplicates) == (2, 2, 2 * len(pairs), len(pairs))
    assert learned(one(RANKED, Demonstration, pairs=rule)) == ["A"]


def test_answers_of_one_rank_give_no_pair() -> None:
    row = {"question": ASK, "answers": [{"text": GOOD, "pm_score": 3}, {"text": BAD, "pm_score": 3}]}
    assert left_out(row, Preference) == ("answers", "has no answer that is better than another")
    assert turns(one(row, Prompt)) == [("user", ASK)]


# --- Trees of messages -------------------------------------------------------------------------------------------


def message(name: str, parent: str | None, rank: int | None = None, **more: Any) -> dict[str, Any]:
    depth = 0 if parent is None else more.pop("depth", 1)
    role = "prompter" if depth % 2 == 0 else "assistant"
    return {
        "message_id": name,
        "parent_id": parent,
        "text": name,
        "role": role,
        "rank": rank,
        "message_tree_id": "t",
        **more,
    }


TREE = [
    message("q", None),
    message("good", "q", 0),
    message("bad", "q", 1),
    message("worst", "q", 2),
    message("r", "bad", depth=2),
    message("only", "r", depth=3),
    message("unanswered", "good", depth=2),
    message("gone", "good", depth=2, deleted=True),
    message("after", "gone", depth=3),
    message("lost", "nowhere"),
]


def test_a_flat_tree_gives_pairs_and_demonstrations_and_accounts_for_every_message(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "a.jsonl", TREE, Demonstration)
    records = list(stream)
    assert [([text for _, text in turns(record)], learned(record)) for record in records] == [
        (["q", "good"], ["good"]),
        (["q", "bad", "r", "only"], ["only"]),  # an answer that is not the best is context
    ]
    counts = stream.counts
    assert (counts.rows_in, counts.kept, counts.quarantined, counts.left_out) == (10, 5, 1, 4)
    assert dict(counts.left_out_reasons) == {
        "rank is not the best among the replies": 1,
        "replies are missing, or none of them can be used": 1,
        "deleted is true": 1,
        "parent_id names a message that cannot be used": 1,
    }
    for rule, pairs in (("best_worst", [("good", "worst")]), ("adjacent", [("good", "bad"), ("bad", "worst")])):
        stream = stream_of(tmp_path / "a.jsonl", TREE, Preference, pairs=rule)
        assert [(each.chosen, each.rejected) for each in stream] == pairs
        counts = stream.counts
        assert counts.rows_in == counts.kept + counts.quarantined + counts.left_out == 10
    assert [turns(each)[-1][1] for each in stream_of(tmp_path / "a.jsonl", TREE, Prompt)] == ["q", "r", "unanswered"]
    assert kind_of_sources([str(tmp_path / "a.jsonl")]) == "preferences"


def test_trees_are_told_apart_and_unranked_replies_are_demonstrations(tmp_path: Path) -> None:
    rows = [
        message(f"{tree}{name}", parent and tree + parent, message_tree_id=tree)
        for tree in "ab"
        for name, parent in (("q", None), ("x", "q"), ("y", "q"))
    ]
    source = tmp_path / "a.jsonl"
    assert [learned(each) for each in stream_of(source, rows, Demonstration)] == [["ax"], ["ay"], ["bx"], ["by"]]
    assert kind_of_sources([str(source)]) == "demonstrations"
    with pytest.raises(DataError, match=r"rank is missing or the same in all replies, so no pair can be made \(4\)"):
        list(stream_of(source, rows, Preference))
    circle = [message("x", "y"), message("y", "x"), message("q", None), message("z", "q")]
    stream = stream_of(source, circle, Demonstration)
    assert [learned(each) for each in stream] == [["z"]]
    assert dict(stream.counts.reasons) == {"parent_id leads in a circle": 2}


def test_a_tree_ends_with_the_rows_before_another_kind_of_row(tmp_path: Path) -> None:
    rows = [message("q", None), message("x", "q"), {"prompt": "P", "completion": "C"}]
    assert [learned(each) for each in stream_of(tmp_path / "a.jsonl", rows, Demonstration)] == [["x"], ["C"]]


def test_messages_of_a_flat_tree_obey_what_holds_for_every_row(tmp_path: Path) -> None:
    rows = [
        message("Q", None),
        message("learned", "Q"),
        message("context", "Q", train=False),
        message("R", "context", depth=2),
        message("after", "R"),
        message("drawn", "Q", images=["a.png"]),
        message("half", "Q", weight=0.5),
        message("told", "Q", system="S"),
        message("long", "Q", text="x" * (MAX_TEXT_CHARACTERS + 1)),
    ]
    stream = stream_of(tmp_path / "a.jsonl", rows, Demonstration)
    assert [record.messages[-1].content for record in stream] == ["learned", "after"]
    counts = stream.counts
    assert counts.quarantined == 4
    assert {reason.partition(":")[0].split()[0] for reason in counts.reasons} == {"images", "weight", "system", "line"}
