"""`score` and `generate` write rows as they were read: values, order, and a stated form where JSON has none."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.convert import records_of
from prefine.data.records.stream import read_records
from prefine.data.row_columns import with_own
from prefine.evaluation.score_rows import ScoredRows
from prefine.generation.answer_rows import GeneratedRows
from prefine.generation.sampling import Sampling
from prefine.models.loading.load import LoadedModel, load_model
from prefine.models.scoring.scorer import Question, Score
from prefine.recipe.sections import ModelSection
from prefine.records import Preference, Prompt
from prefine.row_rules import RowRules
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


CALLED = {"type": "function", "function": {"name": "now", "parameters": {}}}
ASKED = [{"role": "user", "content": "Q"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "old"}]
LAYOUTS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "Q"},
    "transcript": {"prompt": "\n\nHuman: P\n\nAssistant: A\n\nHuman: Q\n\nAssistant:"},
    "answered prompt": {"prompt": "Q", "completion": "old"},
    "vote": {"prompt": "Q", "completion": "old", "label": True},
    "labelled chat": {"messages": ANSWERED, "kto_tag": False},
    "chat": {"messages": ANSWERED},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "old"}]},
    "Alpaca": {"instruction": "Q", "input": "more", "output": "old"},
    "explicit pair": {"prompt": "Q", "chosen": "good", "rejected": "bad"},
    "question": {"question": "Q", "chosen": "good", "rejected": "bad"},
    "implicit pair": {"chosen": ANSWERED, "rejected": [*ASKED, {"role": "assistant", "content": "bad"}]},
    "A/B": {"prompt": "Q", "response_1": "a", "response_2": "b", "preferred": 1},
    "ranked": {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2]},
    "SHP": {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
    "provider": {"input": {"messages": ASKED}, "preferred_output": "good", "non_preferred_output": "bad"},
    "provider with tools": {
        "input": {"messages": ASKED, "tools": [CALLED]},
        "preferred_output": "good",
        "non_preferred_output": "bad",
    },
}
BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "history": {"history": [["P", "A"]]},
    "History": {"History": [["P", "A"]]},
    "system": {"system": "S"},
    "system_prompt and history": {"system_prompt": "S", "history": [["P", "A"]]},
    "tools": {"tools": [CALLED]},
    "tools as text": {"tools": json.dumps([CALLED])},
    "functions": {"functions": [CALLED["function"]], "history": [["P", "A"]]},
    "no tools": {"tools": []},
}


@pytest.fixture(scope="module")
def model_of_tools(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + tiny.CHATML
    path = tiny.save_model(tmp_path_factory.mktemp("model") / "T", template=template)
    return load_model(ModelSection(name=str(path), device="cpu", dtype="float32"), None, trainable=False)


class Noting(Fake):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(words)
        self.questions: list[Question] = []

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        for question in questions:
            self.questions.append(question)
            yield from super().score([question])


@pytest.mark.parametrize("columns", [{}, {"history": None}])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_generate_writes_score_reads_as_the_same_conversation(
    beside: str, columns: dict[str, str | None], model_of_tools: LoadedModel, tmp_path: Path
) -> None:
    """Also where `generate` was told to ignore a column, and `score` is not."""
    no_shp = "history" in columns or any(name.lower() == "history" for name in BESIDE[beside])
    rows = [{**row, **BESIDE[beside]} for name, row in LAYOUTS.items() if not (no_shp and name == "SHP")]
    source, rules = write(tmp_path / "a.jsonl", rows), RowRules(columns)
    with Quarantine() as quarantine:
        prompts = list(read_records(str(source), Prompt, quarantine=quarantine, deduplicate=False, rules=rules))
        found = list(GeneratedRows([str(source)], quarantine, rules=rules).by(model_of_tools, Sampling(3), 1, slots=4))
    assert quarantine.total == 0
    assert len(found) == len(prompts) == len(rows)
    for row, prompt, answered in zip(rows, prompts, found, strict=True):
        judge = Noting()
        with Quarantine() as quarantine:
            (scored_row,) = ScoredRows([str(write(tmp_path / "b.jsonl", [answered]))], quarantine).by(judge)
        assert "score" in scored_row, row
        (question,) = judge.questions
        assert (question.prompt, question.tools) == (prompt.prompt, prompt.tools), row
        assert question.answers == [answered["completion"]]
        # Nothing of the row is lost.
        assert all(answered.get(name) == item or answered[f"source_{name}"] == item for name, item in row.items())


def test_scored_pairs_keep_their_tools(tmp_path: Path) -> None:
    """Here the row, read again without data.columns, has no tools."""
    row = {"prompt": "Q", "chosen": "a b", "rejected": "a", "given": [CALLED], "history": [["P", "A"]]}
    rules = RowRules({"tools": "given", "history": None})
    with Quarantine() as quarantine:
        source = str(write(tmp_path / "a.jsonl", [row]))
        (found,) = ScoredRows([source], quarantine, rules=rules).by(Fake(words))
    (record,) = records_of(found, Preference)
    assert record.tools == (CALLED,)
    assert [turn.content for turn in record.prompt] == ["Q"]
    assert found["source_history"] == row["history"]


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
