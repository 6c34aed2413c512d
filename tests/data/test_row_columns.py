"""`score` and `generate` write rows as they were read: values, order, and a stated form where JSON has none."""

from __future__ import annotations

import base64
import datetime
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.data.reading.quarantine import Quarantine
from prefine.data.row_columns import with_own
from prefine.evaluation.score_rows import ScoredRows
from prefine.generation.answer_rows import GeneratedRows
from prefine.generation.sampling import Sampling
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import ModelSection
from tests.evaluation.readiness.test_measures import Fake, words
from tests.training import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tiny.save_model(tmp_path_factory.mktemp("model") / "T")
    return load_model(ModelSection(name=str(path), device="cpu", dtype="float32"), None, trainable=False)


def scored(path: Path) -> list[dict[str, Any]]:
    with Quarantine() as quarantine:
        return list(ScoredRows([str(path)], quarantine).by(Fake(words)))


def generated(loaded: LoadedModel, path: Path, samples: int = 1) -> tuple[list[dict[str, Any]], list[str]]:
    with Quarantine() as quarantine:
        rows = GeneratedRows([str(path)], quarantine)
        return list(rows.by(loaded, Sampling(3), samples, slots=4)), rows.summary("T")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OTHERS = st.dictionaries(st.text(max_size=6).map(lambda name: f"x{name}"), JSON, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=OTHERS, after=OTHERS, own_id=st.none() | st.integers() | st.text(max_size=3))
def test_every_json_value_comes_back_equal_and_in_order(
    before: dict[str, Any], after: dict[str, Any], own_id: Any, tmp_path: Path
) -> None:
    row = {**before, "prompt": "Q", "id": own_id, "completion": "a b", **after}
    (found,) = scored(write(tmp_path / "a.jsonl", [row]))
    assert json.dumps(found) == json.dumps({**row, "score": 2.0})


def test_what_json_cannot_write_comes_back_in_its_stated_form(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "id": pa.array([1.0, None]),
            "prompt": ["Q", "R"],
            "nan": pa.array([math.nan, math.inf]),
            "bytes": pa.array([b"\xff\x00", b"text"], pa.binary()),
            "nested": [{"deep": [-math.inf, 1.5]}, {"deep": None}],
            "when": pa.array([when, None]),
            "completion": ["a b", "a"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert scored(tmp_path / "a.parquet") == [
        {
            "id": 1.0,
            "prompt": "Q",
            "nan": "NaN",
            "bytes": {"base64": base64.b64encode(b"\xff\x00").decode()},
            "nested": {"deep": ["-Infinity", 1.5]},
            "when": "2026-01-02T03:04:05",
            "completion": "a b",
            "score": 2.0,
        },
        {
            "id": None,
            "prompt": "R",
            "nan": "Infinity",
            "bytes": "text",
            "nested": {"deep": None},
            "when": None,
            "completion": "a",
            "score": 1.0,
        },
    ]
    (tmp_path / "b.jsonl").write_text('{"prompt": "Q", "completion": "a", "x": NaN, "y": [1e999, "z"]}\n')
    (found,) = scored(tmp_path / "b.jsonl")
    assert (found["x"], found["y"]) == ("NaN", ["Infinity", "z"])


def test_rows_that_are_not_to_be_learned_are_scored(tmp_path: Path) -> None:
    pair = {"prompt": "Q", "chosen": "a b", "rejected": "a", "train": False}
    (found,) = scored(write(tmp_path / "a.jsonl", [pair]))
    assert found == {**pair, "score_of_chosen": 2.0, "score_of_rejected": 1.0}
    (found,) = scored(write(tmp_path / "b.jsonl", [{"prompt": "Q", "completion": "a b", "weight": 0}]))
    assert found["score"] == 2.0


def test_text_that_is_not_utf8_comes_back_as_its_bytes(tmp_path: Path) -> None:
    broken = pa.array([b"sch\xf6n"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": ["Q"], "completion": ["a"], "note": broken}), tmp_path / "a.parquet")
    (found,) = scored(tmp_path / "a.parquet")
    assert found["note"] == {"base64": base64.b64encode(b"sch\xf6n").decode()}


@pytest.mark.parametrize("kept", [7, 1.0, 1.5, "x", 0, True, [1], {"a": 1}, None])
def test_an_id_of_any_kind_is_kept_as_it_is(kept: Any, tmp_path: Path) -> None:
    (found,) = scored(write(tmp_path / "a.jsonl", [{"id": kept, "prompt": "Q", "completion": "a"}]))
    assert json.dumps(found["id"]) == json.dumps(kept)


def test_names_that_are_prefines_own_are_moved_aside() -> None:
    renamed: dict[str, str] = {}
    row = {"a": 1, "score": 2, "source_score": 3, "b": 4}
    found = with_own(row, {"score": 5}, renamed)
    assert found == {"a": 1, "source_source_score": 2, "source_score": 3, "b": 4, "score": 5}
    assert list(found) == ["a", "source_source_score", "source_score", "b", "score"]
    assert renamed == {"score": "source_source_score"}


def test_generated_rows_are_the_rows_with_the_answer_behind(model: LoadedModel, tmp_path: Path) -> None:
    own = ["completion", "finish_reason", "tokens", "logprob"]
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "R"}]
    rows = [{"id": 0, "prompt": "Q", "gold": [1, {"x": None}]}, {"prompt": chat, "id": "b"}, {"Prompt": "T", "z": 1}]
    found, said = generated(model, write(tmp_path / "a.jsonl", rows))
    for row, answer in zip(rows, found, strict=True):
        assert list(answer) == [*row, *own]
        assert json.dumps({name: answer[name] for name in row}) == json.dumps(row)
    assert len(said) == 1
    several, _ = generated(model, write(tmp_path / "b.jsonl", rows[:1]), samples=2)
    assert [(row["id"], row["sample"]) for row in several] == [(0, 0), (0, 1)]


def test_an_earlier_answer_is_moved_aside_and_told(model: LoadedModel, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "old", "tokens": [1]}]
    (found,), said = generated(model, write(tmp_path / "a.jsonl", rows))
    assert (found["source_completion"], found["source_tokens"]) == ("old", [1])
    assert isinstance(found["tokens"], int)
    assert any("completion as source_completion, tokens as source_tokens" in line for line in said)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "old"}], "prompt": "not this"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "old"}]},
        {"instruction": "Q", "output": "old"},
    ],
)
def test_a_row_whose_prompt_has_no_column_gets_one(row: dict[str, Any], model: LoadedModel, tmp_path: Path) -> None:
    """Else the answer in it would be scored, and not the new one."""
    (found,), _ = generated(model, write(tmp_path / "a.jsonl", [row]))
    assert found["prompt"] == [{"role": "user", "content": "Q"}]
    kept = {f"source_{name}" if name == "prompt" else name: value for name, value in row.items()}
    assert {name: found[name] for name in kept} == kept
    (again,) = scored(write(tmp_path / "b.jsonl", [found]))
    assert again["score"] == float(len(found["completion"].split()))


def test_a_row_that_the_template_refuses_costs_that_row(model: LoadedModel, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    source = write(tmp_path / "a.jsonl", [{"prompt": "Q"}, {"prompt": "R", "tools": [tool]}, {"prompt": "S"}])
    with Quarantine(tmp_path / "bad.jsonl") as quarantine:
        rows = GeneratedRows([str(source)], quarantine)
        found = list(rows.by(model, Sampling(3), 1, slots=4))
    assert [row["prompt"] for row in found] == ["Q", "S"]
    (refused,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text("utf-8").splitlines()]
    assert (refused["line"], refused["field"]) == (2, "tools")
    assert json.loads(refused["row"]) == {"prompt": "R", "tools": [tool]}
