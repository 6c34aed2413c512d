"""model.template_kwargs hold for the run and for whatever loads its model; rows that a template refuses end no run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import CheckpointError
from prefine.models.loading.load import load_tokenizer
from prefine.models.loading.location import locate_model
from prefine.recipe.sections import named_model
from prefine.recipe.stage import StageRecipe
from prefine.records import Message
from tests.training import tiny

Make = Callable[..., StageRecipe]
ASK = (Message(role="user", content="hello"),)
QUICK: dict[str, Any] = {"training.max_steps": 1, "report.samples": 0}


def test_settings_are_saved_with_the_run(make: Make, tmp_path: Path) -> None:
    words = tiny.make_tokenizer()
    source = "{% if brief %}{{ 'Be brief.\n' }}{% endif %}" + words.get_chat_template()
    (tmp_path / "own.jinja").write_text(source)
    changes = {**QUICK, "model.chat_template": str(tmp_path / "own.jinja"), "model.template_kwargs": {"brief": True}}
    made = make("sft", changes=changes)
    tiny.train(made)
    assert tiny.manifest(Path(made.run))["example"].startswith("Be brief.")
    template = load_tokenizer(locate_model(made.run), named_model(made.run))
    assert template.tokenizer.decode(template.prompt_ids(ASK)).startswith("Be brief.")
    other = make("sft", changes={**changes, "model.template_kwargs": {"brief": False}})
    with pytest.raises(CheckpointError, match=r"model\.template_kwargs\.brief was True and is False"):
        tiny.train(other, resume=True)


def test_rows_that_the_template_refuses_are_quarantined_and_the_run_goes_on(make: Make, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, Any]] = [{"messages": [{**talk[0], "content": f"q {n}"}, talk[1]]} for n in range(20)]
    rows[4]["messages"] = [{"role": "system", "content": "Be kind."}, *rows[4]["messages"]]
    long = [{**turn, "content": turn["content"] * 20} for turn in talk]
    rows[5]["messages"] = [*long, *rows[5]["messages"]]
    words = tiny.make_tokenizer()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (tmp_path / "own.jinja").write_text(refusing + words.get_chat_template())
    source = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    changes = {"model.chat_template": str(tmp_path / "own.jinja"), "data.train": str(source)}
    made = make("sft", changes={**QUICK, **changes, "data.heldout_fraction": 0.2, "data.max_length_tokens": 80})
    tiny.train(made)
    (entry,) = (json.loads(line) for line in (Path(made.run) / "quarantine.jsonl").read_text().splitlines())
    assert (entry["line"], entry["field"]) == (5, "messages[0]")
    assert "no system turns" in entry["reason"]
    data = tiny.manifest(Path(made.run))["data"]
    assert data["train"]["quarantined"] == 1
    assert sum(part["rows"] for part in data.values()) == 19
    assert (sum(part["rows_cut"] for part in data.values()), sum(part["turns_dropped"] for part in data.values())) == (
        1,
        2,
    )
