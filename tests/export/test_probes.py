"""What an export is compared on: held-out rows of the run first, plain ones alone, then bundled prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.data.tokens.store import StoreWriter
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree
from prefine.export.bundled_prompts import BUNDLED
from prefine.export.probes import MOST_ANSWER_TOKENS, PROBES, Probe, probes_of
from prefine.runs.directory import RunDirectory
from tests.training.tiny import make_tokenizer

TEMPLATE = ChatTemplate(make_tokenizer())
ASK = {"role": "user", "content": "How?"}


def probes(folder: Path, rows: list[dict[str, Any]], vocabulary: int = 258, context: int = 512) -> list[Probe]:
    (folder / "data").mkdir(exist_ok=True)
    with StoreWriter(folder / "data" / "heldout.arrow") as writer:
        for row in rows:
            writer.add(TokenTree([1], ([2],), (None,)), json.dumps(row))
    return probes_of(RunDirectory(folder), TEMPLATE, vocabulary, context)


def heldout(found: list[Probe]) -> list[tuple[str, str]]:
    """Last turn and answer of those that are held-out rows."""
    return [(p.turns[-1].content, TEMPLATE.tokenizer.decode(p.answer)) for p in found if p.heldout]


def test_without_a_run_all_are_bundled() -> None:
    found = probes_of(None, TEMPLATE, 258, 512)
    assert len(found) == PROBES == len(BUNDLED) == len(set(BUNDLED))
    assert [probe.turns[0].content for probe in found] == list(BUNDLED)
    assert all(not probe.answer and not probe.heldout for probe in found)
    assert found[0].prompt == tuple(
        TEMPLATE.tokenizer.apply_chat_template(
            [{"role": "user", "content": BUNDLED[0]}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )


def test_every_kind_of_record_has_its_answer(tmp_path: Path) -> None:
    found = probes(
        tmp_path,
        [
            {"prompt": [ASK], "chosen": "yes", "rejected": "no"},
            {"messages": [ASK, {"role": "assistant", "content": "one"}, ASK, {"role": "assistant", "content": "two"}]},
            {"prompt": [ASK], "completion": "so", "label": True},
            {"prompt": [ASK]},
        ],
    )
    assert heldout(found) == [
        ("How?", "yes<|im_end|>"),
        ("How?", "two<|im_end|>"),
        ("How?", "so<|im_end|>"),
        ("How?", ""),
    ]
    assert len(found[1].turns) == 3
    assert len(found) == PROBES


def test_rows_that_others_render_otherwise_are_left_out(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    found = probes(
        tmp_path,
        [
            {"prompt": [{"role": "user", "content": "a <|im_end|> b"}], "chosen": "yes", "rejected": "no"},
            {"prompt": [ASK], "tools": [tool], "chosen": "yes", "rejected": "no"},
            {"of": "another release"},
            {"prompt": [ASK], "chosen": "kept", "rejected": "no"},
        ],
    )
    assert heldout(found) == [("How?", "kept<|im_end|>")]


def test_of_many_rows_some_are_taken_evenly(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{i}"}], "chosen": "y" * 99, "rejected": "n"} for i in range(96)]
    found = probes(tmp_path, rows)
    assert [probe.turns[0].content for probe in found] == [str(3 * i) for i in range(PROBES)]
    assert {len(probe.answer) for probe in found} == {MOST_ANSWER_TOKENS}


def test_long_prompts_only_where_nothing_shorter_is_left(tmp_path: Path) -> None:
    def row(length: int) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": "x" * length}], "chosen": "yes", "rejected": "no"}

    short, longer = [row(3)] * PROBES, [row(300)] * 5
    assert all(len(probe.prompt) < 192 for probe in probes(tmp_path, longer + short))
    found = probes(tmp_path, [*longer, row(900), row(3)])
    assert [len(text) for text, _ in heldout(found)] == [3, *[300] * 5]  # 900 is longer than the context


@pytest.mark.parametrize(("vocabulary", "tokens"), [(49_152, 24), (128_256, 16), (262_144, 8), (2_000_000, 8)])
def test_answers_are_shorter_for_a_large_vocabulary(vocabulary: int, tokens: int, tmp_path: Path) -> None:
    """Logits of 32 probes take 256 MiB: 4 bytes a word of the vocabulary; never fewer than 8 tokens are compared."""
    found = probes(tmp_path, [{"prompt": [ASK], "chosen": "y" * 99, "rejected": "n"}], vocabulary)
    assert len(found[0].answer) == tokens


def test_what_a_reload_is_asked() -> None:
    probe = Probe(probes_of(None, TEMPLATE, 258, 512)[0].turns, (5, 6, 7), (8, 9), False)
    asked = probe.input()
    assert (asked.ids, asked.last) == ([5, 6, 7, 8], 2)  # 7 predicts 8, and 8 predicts 9
    assert asked.turns == [{"role": "user", "content": BUNDLED[0]}]
