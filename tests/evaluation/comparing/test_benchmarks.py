"""A local task of lm-eval-harness on T, offline, against log-probabilities by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefine.errors import RecipeError
from prefine.evaluation.comparing.benchmarks import require_tasks
from prefine.evaluation.comparing.evaluate import evaluate, evaluate_as_far_as_possible
from tests.evaluation.comparing.test_evaluate import asked as asked
from tests.evaluation.comparing.test_evaluate import models as models
from tests.evaluation.comparing.test_gathering import Ask
from tests.training import tiny

CHOICES = [" yes", " no"]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Six questions with two choices each."""
    rows = [{"question": f"Is {i} even?", "answer": i % 2} for i in range(6)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    path = tmp_path / "parity.yaml"
    path.write_text(
        "task: parity\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {data}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ntarget_delimiter: ""\n'
        f"doc_to_choice: {json.dumps(CHOICES)}\n"
        'doc_to_target: "{{answer}}"\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return path


def likelier(folder: Path, question: str) -> int:
    """The choice with the higher log-probability by transformers."""
    plain = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tokenizer = tiny.make_tokenizer()
    prompt = tokenizer.encode(question, add_special_tokens=False)
    sums = []
    for choice in CHOICES:
        answer = tokenizer.encode(choice, add_special_tokens=False)
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        sums.append(float(torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()))
    return sums.index(max(sums))


@pytest.mark.slow  # importing lm-eval takes most of it
def test_a_local_task_is_run_on_both_models(asked: Ask, models: tuple[Path, Path], task: Path, tmp_path: Path) -> None:
    """A task that cannot be run is named with its error."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    broken = tmp_path / "other" / "broken.yaml"
    broken.parent.mkdir()
    broken.write_text(task.read_text().replace("rows.jsonl", "gone.jsonl").replace("task: parity", "task: broken"))
    comparison, _ = evaluate(asked(lm_eval=(str(task), str(broken))))
    (metric,) = comparison.benchmarks
    assert (metric.name, metric.better, metric.unit) == ("parity.acc", "higher", "share")
    for folder, side in zip(models, (metric.candidate, metric.baseline), strict=True):
        assert side is not None
        assert side.value == sum(likelier(folder, f"Is {i} even?") == i % 2 for i in range(6)) / 6
    assert "gone.jsonl" in comparison.not_computed[f"lm-eval {broken}"]


@pytest.mark.slow
def test_what_tasks_may_leave_empty(models: tuple[Path, Path]) -> None:
    """A continuation without tokens has probability 1, and a temperature of null is none."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance

    from prefine.evaluation.comparing.harness_model import HarnessModel
    from prefine.models.loading.load import load_model
    from prefine.recipe.sections import named_model

    section = named_model(str(models[0]), device="cpu", dtype="float32")
    model = HarnessModel(load_model(section, None, trainable=False), 2)
    assert model._loglikelihood_tokens([(None, [5, 6, 7], [])]) == [(0, True)]
    request = Instance("generate_until", {}, ("a", {"until": ["b"], "temperature": None, "max_gen_toks": 2}), 0)
    assert len(model.generate_until([request])) == 1


def test_metrics_that_are_no_numbers_are_named() -> None:
    """Perplexities are pairs of a log-probability and a size; of two filters the first one counts."""
    from prefine.evaluation.comparing import benchmarks

    samples = [
        {"doc_id": doc, "filter": kind, "metrics": ["acc", "word_perplexity"], "acc": 1, "word_perplexity": (-3.0, 2)}
        for doc in range(2)
        for kind in ("first", "second")
    ]
    found = benchmarks._samples_of("t", samples, {"acc": True})
    assert (found["values"], found["unread"]) == ({"acc": {"0": 1.0, "1": 1.0}}, ["word_perplexity"])


def test_without_lm_eval_the_rest_is_computed(asked: Ask, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefine.evaluation.comparing import benchmarks

    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda name: None)
    (comparison, _), unfinished = evaluate_as_far_as_possible(asked(lm_eval=(str(task),)))
    assert [each.problem for each in unfinished] == ["lm_eval: 1 task did not run: lm-eval is not installed"]
    assert comparison.not_computed["lm-eval"] == "lm-eval is not installed: pip install 'prefine[lm-eval]'"
    assert comparison.metrics


def test_each_task_is_computed_once_and_a_failed_one_again(
    asked: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another task, a change of the code beside a task's file, and a failure for a passing reason."""
    from prefine.evaluation.comparing import benchmarks

    ran: list[str] = []
    fails = ["c"]

    def run(loaded: Any, task: str, slots: int) -> dict[str, Any]:
        ran.append(Path(task).stem)
        return {"task": task, "failed": "no network"} if Path(task).stem in fails else {"task": task, "results": []}

    monkeypatch.setattr(benchmarks, "_run", run)
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(benchmarks.importlib.metadata, "version", lambda name: "1")
    (tmp_path / "tasks").mkdir()
    own = tmp_path / "tasks" / "own.yaml"
    own.write_text("task: own\n")
    evaluate(asked(lm_eval=("a", str(own))))
    assert ran == ["a", "own"] * 2
    (comparison, _), unfinished = evaluate_as_far_as_possible(asked(lm_eval=("a", str(own), "c")))
    assert [each.problem for each in unfinished] == ["the task c of lm-eval failed: no network"]
    assert ran[4:] == ["c", "c"]
    assert comparison.not_computed["lm-eval c"] == "no network"
    fails.clear()
    (own.parent / "helper.py").write_text("x = 1\n")
    (comparison, _), unfinished = evaluate_as_far_as_possible(asked(lm_eval=("a", str(own), "c")))
    assert unfinished == []
    assert ran[6:] == ["own", "c"] * 2
    assert "lm-eval c" not in comparison.not_computed


@pytest.mark.parametrize(
    ("text", "problem"), [("group: a\n", "names no task"), ("a: [", "is not YAML"), (None, "there is no file")]
)
def test_a_file_that_is_no_task_is_refused(text: str | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError, match=problem):
        require_tasks([str(file)])
    require_tasks(["arc_easy"])
