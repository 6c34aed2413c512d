"""data.columns and data.pairs are part of what a run was prepared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.data.prepare import Preparation, Prepared, require_sources
from prefine.data.reading.quarantine import Quarantine
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import CheckpointError, DataError, RecipeError
from prefine.generation.row_settings import source_settings
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.loading import load_recipe
from prefine.recipe.sections import DataSection
from prefine.records import Preference
from prefine.row_rules import AS_WRITTEN, RowRules, columns_named
from prefine.text_form import AS_FOUND

ROWS = [
    {
        "q": f"Question {number}",
        "ranking": [{"text": f"Answer {place}", "rank": place} for place in range(3)],
        "chosen": f"A{number}",
        "rejected": f"B{number}",
    }
    for number in range(4)
]


def test_the_rules_belong_to_what_a_run_was_prepared_with(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    template = ChatTemplate(make_tokenizer("chatml"))
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def prepared(began_with: dict[str, Any] | None = None, **settings: Any) -> Prepared:
        section = DataSection(train=str(source), heldout_fraction=0.0, **settings)
        return Preparation(tmp_path / "data", section, Preference, template, 0, Quarantine()).stores(began_with)

    ranked = {"prompt": "q", "answers": "ranking", "chosen": None, "rejected": None}
    first = prepared(columns=ranked)
    began_with = {"key": first.key, "digests": first.digests}
    assert (first.counts["train"]["rows"], first.counts["train"]["kept"]) == (4, 4)
    assert prepared(began_with, columns=ranked).key == first.key
    for other in ({"columns": {"prompt": "q"}}, {"columns": ranked, "pairs": "all"}):
        with pytest.raises(CheckpointError, match="differ from those that this run started with"):
            prepared(began_with, **other)
    shutil.rmtree(tmp_path / "data")
    every = prepared(columns=ranked, pairs="all")
    assert (every.counts["train"]["rows"], every.counts["train"]["kept"]) == (12, 4)
    shutil.rmtree(tmp_path / "data")
    assert prepared(columns={"prompt": "q"}).digests != first.digests


def test_rules_that_say_nothing_leave_the_key_of_earlier_releases(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"prompt": "Q", "chosen": "A", "rejected": "B"}))
    template = ChatTemplate(make_tokenizer("chatml"))

    def key(**settings: Any) -> str:
        section = DataSection(train=str(source), heldout_fraction=0.0, **settings)
        return Preparation(tmp_path / "data", section, Preference, template, 0, Quarantine())._key()[0]

    assert key() == key(columns={}, pairs="best_worst") != key(columns={"id": "prompt"})
    assert "columns" not in source_settings(["a"], "train", AS_FOUND, AS_WRITTEN, None)
    told = source_settings(["a"], "train", AS_FOUND, RowRules({"prompt": "q"}), None)
    assert told["columns"] == {"prompt": "q"}


def test_columns_are_set_in_a_recipe_and_on_the_command_line() -> None:
    recipe = load_recipe(None, ["data.columns={prompt: question, label: null}", "data.pairs=all"], DpoRecipe)
    assert recipe.data.row_rules == RowRules({"prompt": "question", "label": None}, "all")
    assert load_recipe(None, ["data.columns.prompt=q"], DpoRecipe).data.columns == {"prompt": "q"}
    assert columns_named(["prompt=question", "label=", "completion = a=b"]) == {
        "prompt": "question",
        "label": None,
        "completion": "a=b",
    }
    with pytest.raises(RecipeError, match="must be 'best_worst', 'adjacent' or 'all'"):
        load_recipe(None, ["data.pairs=best"], DpoRecipe)
    with pytest.raises(DataError, match="prefine reads no column 'promt'"):  # before a model is loaded
        require_sources(DataSection(columns={"promt": "q"}))
    with pytest.raises(RecipeError, match=r"data\.columns\.prompt is 5"):
        load_recipe(None, ["data.columns={prompt: 5}"], DpoRecipe)
