"""Comparisons of T with other random models, as the command makes them."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from prefine.comparisons.result import AnswerRow, Comparison
from prefine.errors import CheckpointError, DataError, ModelError, Paused, RecipeError
from prefine.evaluation.comparing import heldout, parts
from prefine.evaluation.comparing.evaluate import evaluate
from prefine.evaluation.comparing.request import EvaluationRequest, default_folder
from prefine.evaluation.comparing.sides import Sides, as_section, named_side
from prefine.generation.sampling import Sampling
from prefine.regression.items import items
from tests.training import tiny

ROWS = [
    {"id": f"q{i}", "prompt": f"question {i}", "reference": f"good answer {i}", "category": "ab"[i % 2]}
    for i in range(7)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    return tiny.save_model(folder / "new", seed=7), tiny.save_model(folder / "old", seed=8)


@pytest.fixture
def asked(models: tuple[Path, Path], tmp_path: Path) -> Callable[..., EvaluationRequest]:
    """asked(samples=2): a request on T's two models, with a folder of the test's own."""
    prompts = tiny.write_rows(tmp_path / "prompts.jsonl", ROWS)

    def made(**changes: Any) -> EvaluationRequest:
        settings: dict[str, Any] = {
            "candidate": str(models[0]),
            "baseline": str(models[1]),
            "prompts": (str(prompts),),
            "sampling": Sampling(8),
            "slots": 2,
            "regression": False,
            "out": tmp_path / "out",
            "device": "cpu",
            "dtype": "float32",
        }
        return EvaluationRequest(**settings | changes)

    return made


def answers_in(folder: Path) -> list[AnswerRow]:
    return [AnswerRow.model_validate_json(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_comparison_is_written_as_data_and_as_a_page(asked: Callable[..., EvaluationRequest]) -> None:
    comparison, folder = evaluate(asked())
    written = Comparison.model_validate_json((folder / "report.json").read_text())
    assert written.model_dump(mode="json") == comparison.model_dump(mode="json")
    rows = answers_in(folder)
    assert [row.id for row in rows] == [row["id"] for row in ROWS]
    assert [row.reference for row in rows] == [row["reference"] for row in ROWS]
    assert comparison.prompts["count"] == len(ROWS)
    assert comparison.prompts["categories"] == {"a": 4, "b": 3}
    names = {metric.name: metric for metric in comparison.metrics}
    assert {"length_tokens", "ended", "degenerate", "entropy", "distinct_2"} <= names.keys()
    length = names["length_tokens"]
    assert length.candidate is not None
    assert length.candidate.value == pytest.approx(sum(row.candidate.tokens for row in rows) / len(rows))
    assert "report.html" in {path.name for path in folder.iterdir()}


def test_a_model_and_its_copy_do_not_differ(asked: Callable[..., EvaluationRequest], models: tuple[Path, Path]) -> None:
    """The same seeds: the same answers, and nothing is said to be better or worse."""
    comparison, folder = evaluate(asked(baseline=str(models[0])))
    assert all(row.candidate == row.baseline for row in answers_in(folder))
    assert {metric.finding for metric in comparison.metrics} <= {"no difference shown", "not computed"}
    assert comparison.verdict.decision == "no difference shown"


def test_several_answers_to_a_prompt_count_once(asked: Callable[..., EvaluationRequest]) -> None:
    comparison, folder = evaluate(asked(samples=3))
    rows = answers_in(folder)
    assert [row.id for row in rows[:4]] == ["q0", "q0#2", "q0#3", "q1"]
    assert len({row.candidate.text for row in rows[:3]}) > 1
    lengths = next(metric for metric in comparison.metrics if metric.name == "length_tokens")
    assert lengths.change is not None
    assert lengths.change.count == len(ROWS)


class KilledError(Exception):
    """Stands for kill -9."""


def test_a_killed_comparison_goes_on_where_it_was(
    asked: Callable[..., EvaluationRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With 2 slots a block is 4 answers: of 7 the first 4 are not generated again. The result is that of one call."""
    whole = [row.model_dump() for row in answers_in(evaluate(asked(out=tmp_path / "whole"))[1])]
    real, generated = parts.write_block, []

    def dying(loaded: Any, prompts: Any, *rest: Any) -> Any:
        generated.append([prompt.id for prompt in prompts])
        if len(generated) == 2:
            raise KilledError
        return real(loaded, prompts, *rest)

    monkeypatch.setattr(parts, "write_block", dying)
    with pytest.raises(KilledError):
        evaluate(asked())
    _, folder = evaluate(asked())
    assert generated == [["q0", "q1", "q2", "q3"], ["q4", "q5", "q6"], ["q4", "q5", "q6"], *generated[3:]]
    assert [row.model_dump() for row in answers_in(folder)] == whole
    evaluate(asked())  # everything is there
    assert len(generated) == 5


def test_an_interrupt_says_where_things_are(
    asked: Callable[..., EvaluationRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write_block", interrupted)
    with pytest.raises(Paused, match=f"what was computed is kept in {tmp_path / 'out'}"):
        evaluate(asked())


def test_a_gate_decides_on_shipping(asked: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    """Two random models: no difference is shown, so a gate that asks for "better" fails."""
    strict, lenient = tmp_path / "strict.yaml", tmp_path / "lenient.yaml"
    strict.write_text("verdict: better\n")
    lenient.write_text("verdict: any\nregressions_allowed: 20\nregression_set: optional\n")
    assert not all(rule.passed for rule in evaluate(asked(gate=strict))[0].gate)
    assert all(rule.passed for rule in evaluate(asked(gate=lenient))[0].gate)


def test_other_settings_are_refused_or_begin_anew(asked: Callable[..., EvaluationRequest]) -> None:
    evaluate(asked())
    with pytest.raises(RecipeError, match="other settings: the prompts differ"):
        evaluate(asked(limit=3))
    with pytest.raises(
        RecipeError, match=r"other settings: sampling was .* Name a new folder with --out, or .*--force"
    ):
        evaluate(asked(sampling=Sampling(4)))
    _, folder = evaluate(asked(sampling=Sampling(4), force=True))
    assert max(row.candidate.tokens for row in answers_in(folder)) <= 4


def test_force_begins_anew_with_the_same_settings_too(asked: Callable[..., EvaluationRequest]) -> None:
    """An endpoint's model may have changed under its name: its replies are asked for again."""
    _, folder = evaluate(asked())
    (folder / "replies.db").write_text("stale")
    part = folder / "parts" / "candidate-answers.jsonl"
    part.write_text(part.read_text().replace('"failed": ""', '"failed": "made up"'))
    assert evaluate(asked(force=True))[0].prompts["count"] == len(ROWS)
    assert not (folder / "replies.db").exists()


def test_a_folder_is_renewed_for_other_settings_and_keeps_replies(asked: Callable[..., EvaluationRequest]) -> None:
    """As a pipeline asks: not refused, and what was paid for stays. Of the same settings nothing is computed again."""
    _, folder = evaluate(asked())
    (folder / "replies.db").write_text("paid")
    part = folder / "parts" / "candidate-answers.jsonl"
    made = part.stat().st_mtime_ns
    evaluate(asked(renew=True))
    assert part.stat().st_mtime_ns == made
    assert evaluate(asked(limit=3, renew=True))[0].prompts["count"] == 3
    assert (folder / "replies.db").read_text() == "paid"
    (folder / "question.json").write_text("{")
    assert evaluate(asked(renew=True))[0].prompts["count"] == len(ROWS)


def test_a_part_that_is_damaged_is_made_again(asked: Callable[..., EvaluationRequest]) -> None:
    whole, folder = evaluate(asked())
    part = folder / "parts" / "candidate-answers.jsonl"
    part.rename(part.with_name("candidate-answers.jsonl.partial"))  # without its state
    assert evaluate(asked())[0].metrics == whole.metrics


def test_a_chat_template_is_known_by_its_text(asked: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(tiny.CHATML)
    evaluate(asked(chat_template=str(template)))
    template.write_text(tiny.CHATML + " ")
    with pytest.raises(RecipeError, match="other settings: the chat template differs"):
        evaluate(asked(chat_template=str(template)))


def test_a_reward_model_is_looked_for_before_anything_is_generated(
    asked: Callable[..., EvaluationRequest], models: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="generates text and gives no scores"):
        evaluate(asked(reward=str(models[0])))
    with pytest.raises(ModelError, match="nowhere"):
        evaluate(asked(reward=str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()


def test_closed_models_leave_the_memory(models: tuple[Path, Path]) -> None:
    sides = {role: named_side(role, str(path)) for role, path in zip(("candidate", "baseline"), models, strict=True)}
    both = Sides(sides, as_section("cpu", "float32", None))
    with both.open("candidate") as opened:
        held = weakref.ref(opened.loaded.packed.model)
    del opened
    both.close()
    assert held() is None


def test_a_folder_of_other_files_is_left_alone(asked: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"holds other files \(mine.txt\)"):
        evaluate(asked())


def test_what_is_missing_is_refused_with_a_remedy(asked: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no held-out rows.*--prompts"):
        evaluate(asked(prompts=()))
    with pytest.raises(RecipeError, match=r"is not a run.*--against"):
        evaluate(asked(baseline=None))
    with pytest.raises(RecipeError, match=r"endpoint without a model.*v1#MODEL"):
        evaluate(asked(baseline="http://127.0.0.1:9/v1"))
    assert not (tmp_path / "out").exists()


def test_prompts_without_references_and_one_prompt_only(
    asked: Callable[..., EvaluationRequest], tmp_path: Path
) -> None:
    alone = tiny.write_rows(tmp_path / "one.jsonl", [{"prompt": "only one"}])
    comparison, _ = evaluate(asked(prompts=(str(alone),)))
    assert comparison.not_computed["ROUGE, BLEU, chrF"] == "no prompt has a reference answer"
    assert comparison.not_computed["self-BLEU"] == "there is only one prompt"
    assert comparison.prompts["count"] == 1


def only_ending(folder: Path) -> Path:
    """T changed to end every answer at once: its layers add nothing, and the end of turn has the largest logit."""
    tiny.save_model(folder, seed=7)
    weights = load_file(folder / "model.safetensors")
    end = tiny.make_tokenizer().eos_token_id
    for name, values in weights.items():
        if "o_proj" in name or "down_proj" in name or "embed_tokens" in name or "lm_head" in name:
            values.zero_()
        if "embed_tokens" in name:
            values[:, 0] = 1.0
        if "lm_head" in name:
            values[end, 0] = 50.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_model_that_only_ends_is_found_out(
    asked: Callable[..., EvaluationRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer is empty at once: the report says so, all figures stay finite, and nothing crashes."""
    few = items()[:3]
    monkeypatch.setattr(heldout, "items", lambda: few)
    monkeypatch.setattr(heldout, "REGRESSION_SAMPLING", Sampling(6, temperature=0.0))
    ends = only_ending(tmp_path / "ends")
    comparison, folder = evaluate(asked(candidate=str(ends), regression=True))
    rows = answers_in(folder)
    assert {(row.candidate.text, row.candidate.tokens, row.candidate.ended) for row in rows} == {("", 1, True)}
    assert {row.candidate.degenerate for row in rows} == {"blank"}
    assert "degenerate answers" in comparison.verdict.sentence
    assert any("degenerate answers: worse" in each.lower() for each in comparison.verdict.regressions)
    assert comparison.regression[0].candidate.value == 0
    assert "Degenerate answers: worse" in (folder / "report.html").read_text()
    both, _ = evaluate(asked(candidate=str(ends), baseline=str(ends), out=tmp_path / "both"))
    assert both.verdict.decision == "no difference shown"
    assert both.not_computed["self-BLEU"] == "no model has two answers with words"
    assert both.not_computed["different words and word pairs"] == "no answer has words"


def test_names_of_folders() -> None:
    assert default_folder("runs/dpo", "embedded:smollm2-135m") == Path("evaluations/dpo-against-smollm2-135m")
    assert default_folder("org/model", "http://host:1/v1#a/b c") == Path("evaluations/model-against-b-c")


def test_the_report_names_the_sides(asked: Callable[..., EvaluationRequest], models: tuple[Path, Path]) -> None:
    _, folder = evaluate(asked())
    report = json.loads((folder / "report.json").read_text())
    assert report["candidate"]["name"] == str(models[0])
    assert report["candidate"]["identity"] != report["baseline"]["identity"]
    assert report["candidate"]["facts"]["dtype"] == report["baseline"]["facts"]["dtype"]
    assert report["candidate"]["facts"]["dtype"] in ("float32", "bfloat16")  # what auto chose
