"""Whatever mixture of layouts a file has: every row is accounted for, and nothing is learned that a row says not to.

Answers that are to be learned are called GOOD here, all others BAD.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import DataError
from prefine.records import Demonstration, Preference, Prompt, Vote

Row = dict[str, Any]
BEST, WORST = "GOOD", "BAD"
FLAGS = [
    {"train": False},
    {"loss": False},
    {"weight": 0},
    {"train": False, "weight": 1},
    {"train": "false"},
    {"weight": "0"},
]
OTHER_FLAGS = ("loss_mask", "mask", "masked", "trainable")
VOTES_DOWN: list[Row] = [
    {"thumbs_up": False},
    {"vote": "down"},
    {"is_good": False},
    {"feedback": "thumbs_down"},
    {"Thumbs Up": 0},
    {"liked": "no"},
    {"thumbs_down": True},
    {"label": True, "kto_tag": False},
]


def chat(*said: str, sharegpt: bool = False) -> list[Row]:
    names = ("from", "value", "human", "gpt") if sharegpt else ("role", "content", "user", "assistant")
    return [{names[0]: names[2 + index % 2], names[1]: text} for index, text in enumerate(said)]


@st.composite
def flagged_chats(draw: st.DrawFn) -> Row:
    sharegpt = draw(st.booleans())
    turns: list[Row] = []
    for learned in draw(st.lists(st.booleans(), min_size=1, max_size=4)):
        question, answer = chat("Q", BEST if learned else WORST, sharegpt=sharegpt)
        turns += [question, answer | ({} if learned else draw(st.sampled_from(FLAGS)))]
    return {"conversations" if sharegpt else "messages": turns}


@st.composite
def votes(draw: st.DrawFn) -> Row:
    up = draw(st.booleans())
    said = BEST if up else WORST
    row = draw(
        st.sampled_from(
            [
                {"prompt": "Q", "completion": said},
                {"prompt": "Q", "response": said},
                {"messages": chat("Q", said)},
                {"messages": chat("Q", WORST, "R", said)},  # a vote is on the last answer
                {"conversations": chat("Q", said, sharegpt=True)},
                {"instruction": "Q", "input": "", "output": said},
            ]
        )
    )
    label = draw(st.sampled_from([True, 1, "up"] if up else [False, 0, "down"]))
    return {**row, draw(st.sampled_from(["label", "kto_tag"])): label}


@st.composite
def refused_votes(draw: st.DrawFn) -> Row:
    """A thumb down in a column that is not read, or that another contradicts."""
    row = draw(
        st.sampled_from(
            [
                {"prompt": "Q", "completion": WORST},
                {"messages": chat("Q", WORST)},
                {"conversations": chat("Q", WORST, sharegpt=True)},
                {"instruction": "Q", "input": "", "output": WORST},
            ]
        )
    )
    return {**row, **draw(st.sampled_from(VOTES_DOWN))}


@st.composite
def flagged_rows(draw: st.DrawFn) -> Row:
    """A row that says as a whole that it is not learned, or says so in a way that is not read."""
    row = draw(
        st.sampled_from(
            [
                {"prompt": "Q", "chosen": WORST, "rejected": BEST},
                {"prompt": "Q", "completion": WORST, "label": True},
                {"prompt": "Q", "completion": WORST},
                {"messages": chat("Q", WORST)},
            ]
        )
    )
    return {**row, **draw(st.sampled_from([*FLAGS, {"train": 0}, *({name: [0]} for name in OTHER_FLAGS)]))}


PAIRS: list[Callable[[str, str], Row]] = [
    lambda good, bad: {"prompt": "Q", "chosen": good, "rejected": bad},
    lambda good, bad: {"question": "Q", "chosen": good, "rejected": bad, "system": "S"},
    lambda good, bad: {"instruction": "Q", "chosen": good, "rejected": bad, "history": [["P", WORST]]},
    lambda good, bad: {"chosen": chat("Q", WORST, "R", good), "rejected": chat("Q", WORST, "R", bad)},
    lambda good, bad: {"conversations": chat("Q"), "chosen": chat(good)[0] | {"role": "assistant"}, "rejected": bad},
    lambda good, bad: {"prompt": "Q", "response_1": bad, "response_2": good, "preferred": 2},
    lambda good, bad: {"prompt": "Q", "response_1": good, "response_2": bad, "preference_strength": -1},
    lambda good, bad: {"history": "Q", "human_ref_A": bad, "human_ref_B": good, "labels": 0},
    lambda good, bad: {"question": "Q", "answer_0": good, "answer_1": bad, "score_0": 1, "score_1": -1},
    lambda good, bad: {"prompt": "Q", "answers": [{"answer": bad, "rank": 3}, {"answer": good, "rank": 1}]},
    lambda good, bad: {"prompt": "Q", "responses": [bad, good, bad + "!"], "scores": [0, 2, 1]},
    lambda good, bad: {"conversation_a": chat("Q", bad), "conversation_b": chat("Q", good), "winner": "model_b"},
    lambda good, bad: {"prompt": "Q", "completion": bad, "chosen": good, "rejected": bad},
    lambda good, bad: {"messages": chat("Q", bad), "prompt": "Q", "chosen": good, "rejected": bad},
    lambda good, bad: {"instruction": "Q", "output": bad, "chosen": good, "rejected": bad},
    lambda good, bad: {"prompt": "Q", "completion": bad, "response_1": bad, "response_2": good, "preferred": 2},
    lambda good, bad: {"prompt": "Q", "completion": bad, "responses": [bad, good], "scores": [0, 1]},
    lambda good, bad: {"input": {"messages": chat("Q")}, "preferred_output": good, "non_preferred_output": bad},
]
TIES: list[Row] = [
    {"prompt": "Q", "response_1": WORST, "response_2": "BAD 2", "preferred": 0},
    {"prompt": "Q", "chosen": WORST, "rejected": "BAD 2", "tie": True},
    {"prompt": "Q", "response_1": WORST, "response_2": "BAD 2", "preference_strength": 0},
    {"conversation_a": chat("Q", WORST), "conversation_b": chat("Q", "BAD 2"), "winner": "tie (bothbad)"},
    {"prompt": "Q", "answers": [{"answer": WORST, "rank": 1}, {"answer": "BAD 2", "rank": 1}]},
]
CONTEXT: list[Row] = [
    {"prompt": "Q", "completion": WORST, "train": False},
    {"messages": chat("Q", WORST), "weight": 0},
    {"instruction": "Q", "output": BEST, "history": [["P", WORST]], "system_prompt": "S"},
    {"messages": chat("Q", WORST, "R", BEST), "supervise_from": 2, "system": "S"},
    {"messages": chat("R", BEST), "history": chat("Q", WORST)},
]
WRONG: list[Row] = [
    {"messages": chat("Q", WORST), "images": ["a.png"]},
    {"messages": [*chat("Q"), {"role": "assistant", "content": [{"type": "image", "image": "x"}]}]},
    {"messages": chat("Q", WORST), "weight": 0.5},
    {"messages": [*chat("Q"), {"role": "assistant", "content": WORST, "weight": 0.5}]},
    {"prompt": "Q", "completion": WORST, "label": "maybe"},
    {"other": WORST},
]


@st.composite
def trees(draw: st.DrawFn) -> list[Row]:
    ranks = draw(st.permutations(range(draw(st.integers(2, 4)))))
    name = str(draw(st.integers()))
    shared = {"message_tree_id": name, "review_result": True}
    root = {"message_id": "q", "parent_id": None, "text": "Q", "role": "prompter", "rank": None, **shared}
    ranked = draw(st.booleans())  # without ranks each reply is learned that does not say otherwise
    replies: list[Row] = []
    for rank in ranks:
        reply = {"message_id": str(rank), "parent_id": "q", "text": WORST if rank else BEST, "role": "assistant"}
        flags = {} if ranked or not rank else draw(st.sampled_from(FLAGS))
        replies.append({**reply, "rank": rank if ranked else None, **flags, **shared})
    context = {"message_id": "r", "parent_id": "1", "text": "R", "role": "prompter", "rank": None, **shared}
    after = {"message_id": "s", "parent_id": "r", "text": BEST, "role": "assistant", "rank": None, **shared}
    return [root, *replies, context, after]


pairs = st.sampled_from(PAIRS).map(lambda build: build(BEST, WORST))
single = st.one_of(
    flagged_chats(), votes(), refused_votes(), flagged_rows(), pairs, *map(st.sampled_from, (TIES, CONTEXT, WRONG))
)
groups = st.one_of(*[single.map(lambda row: [row])] * 3, trees())
files = st.lists(groups, min_size=1, max_size=8).map(lambda found: list(chain.from_iterable(found)))


def with_nulls(rows: list[Row]) -> list[Row]:
    """As a Parquet file holds them: every column in every row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{**dict.fromkeys(names), **row} for row in rows]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=files, nulls=st.booleans())
def test_no_token_is_learned_that_a_row_says_not_to(rows: list[Row], nulls: bool, make_tokenizer: Any) -> None:
    template = ChatTemplate(make_tokenizer("chatml"))
    # Each row has words of its own, so that none is a duplicate.
    texts = [json.dumps(row).replace("Q", f"Q{number}") for number, row in enumerate(rows)]
    if nulls:
        texts = [json.dumps(row) for row in with_nulls([json.loads(text) for text in texts])]
    for kind in (Demonstration, Preference, Vote, Prompt):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.jsonl"
            path.write_text("\n".join(texts))
            with Quarantine(Path(folder) / "quarantine.jsonl") as quarantine:
                stream = read_records(str(path), kind, quarantine=quarantine)
                try:
                    records: list[Any] = list(stream)
                except DataError:
                    continue
        counts = stream.counts
        assert counts.rows_in == len(rows) == counts.kept + counts.quarantined + counts.left_out
        assert quarantine.total == counts.quarantined
        if kind is Demonstration:
            for record in records:
                learned = supervised_text(template, record)
                assert WORST not in learned
                assert learned.count(BEST) == len(record.learned_turns)
        elif kind is Preference:
            assert all(record.tie or (record.chosen, WORST in record.rejected) == (BEST, True) for record in records)
        elif kind is Vote:
            assert all(record.label is (record.completion == BEST) for record in records)


def supervised_text(template: ChatTemplate, record: Demonstration) -> str:
    tree = template.demonstration_tree(record, 0)
    ids: list[int] = []
    for answer, counted in zip(tree.answers, tree.supervised, strict=True):
        ids += answer if counted is None else [each for each, counts in zip(answer, counted, strict=True) if counts]
    text: str = template.tokenizer.decode(ids)
    return text
