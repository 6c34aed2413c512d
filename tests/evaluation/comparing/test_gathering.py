"""Figures of a comparison besides the answers' form: KL, pairs, demonstrations, reward models, endpoints, judges."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefine.comparisons.result import Metric
from prefine.errors import DataError
from prefine.evaluation.comparing import answering, gathering
from prefine.evaluation.comparing.evaluate import evaluate, evaluate_as_far_as_possible
from prefine.evaluation.comparing.folder import read_rows
from prefine.evaluation.comparing.request import EvaluationRequest, judge_request
from prefine.generation.sampling import Sampling
from prefine.judges.endpoint import Patience
from prefine.report.comparison.reading import REGRESSION_NAME, read_answers
from tests.evaluation.comparing.test_evaluate import ROWS, answers_in
from tests.evaluation.comparing.test_evaluate import asked as asked
from tests.evaluation.comparing.test_evaluate import models as models
from tests.judges.fake import Answer, refusal, running
from tests.training import tiny
from tests.training.conftest import data as data
from tests.training.conftest import finished as finished
from tests.training.conftest import model as model
from tests.training.conftest import reward_run as reward_run
from tests.training.conftest import sft_run as sft_run

Ask = Callable[..., EvaluationRequest]


def named(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def logprobs_of(folder: Path, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """By transformers."""
    plain = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        logits = plain(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_the_kl_is_that_of_transformers_logprobs(asked: Ask, models: tuple[Path, Path]) -> None:
    """k1 and k3 of the first answer, a mean over its tokens; that of the reference itself is 0."""
    comparison, folder = evaluate(asked())
    (first, *_) = read_rows(folder / "parts" / "candidate-answers.jsonl")
    own, theirs = (logprobs_of(path, first["prompt"], first["ids"]) for path in models)
    row = answers_in(folder)[0]
    assert first["logprobs"] == pytest.approx(own.tolist(), abs=1e-4)
    assert row.candidate.kl_per_token == pytest.approx(float((own - theirs).mean()), abs=1e-4)
    ratio = theirs - own
    assert row.candidate.scores["kl_k3"] == pytest.approx(float((ratio.exp() - 1 - ratio).mean()), abs=1e-4)
    assert row.baseline.kl_per_token == 0
    assert named(comparison.metrics)["kl_per_token"].baseline.value == 0  # type: ignore[union-attr]


def test_a_reference_of_its_own(asked: Ask, models: tuple[Path, Path]) -> None:
    """Against the candidate as reference, the candidate's KL is that of an equal model: 0 to rounding."""
    _, folder = evaluate(asked(reference=str(models[0])))
    for row in answers_in(folder):
        assert row.candidate.kl_per_token == pytest.approx(0, abs=1e-4)
        assert row.baseline.kl_per_token is not None
        assert abs(row.baseline.kl_per_token) > 1e-3


def test_the_kl_at_another_temperature_is_said_to_be_biased(asked: Ask) -> None:
    comparison, _ = evaluate(asked(sampling=Sampling(4, temperature=0.0)))
    assert any("it is biased" in warning for warning in comparison.warnings)


def test_pairs_and_demonstrations(asked: Ask, models: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a pair the answer with the higher mean log-probability is preferred; perplexity is over all tokens."""
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", tiny.pairs(5))
    shown = tiny.write_rows(
        tmp_path / "shown.jsonl", [{"prompt": f"q{i}", "completion": "a" * (i + 1)} for i in range(4)]
    )
    comparison, folder = evaluate(asked(pairs=(str(pairs),), demonstrations=(str(shown),)))
    found = named(comparison.metrics)
    margins = [row["margin"] for row in read_rows(folder / "parts" / "candidate-pairs.jsonl")]
    accuracy = found["pair_accuracy"].candidate
    assert accuracy is not None
    assert accuracy.value == sum(margin > 0 for margin in margins) / 5
    assert comparison.verdict.decided_by == "pair_accuracy"
    losses = read_rows(folder / "parts" / "baseline-demonstrations.jsonl")
    assert [row["tokens"] for row in losses] == [2, 3, 4, 5]  # a token a letter, and the end of turn
    mean = sum(row["loss"] * row["tokens"] for row in losses) / 14
    assert found["perplexity"].baseline.value == pytest.approx(math.exp(mean))  # type: ignore[union-attr]


def test_a_run_against_its_start_with_its_own_heldout_rows(
    asked: Ask, sft_run: Path, model: Path, reward_run: Path
) -> None:
    """Nothing but the run is named: the baseline is its recipe's model, the prompts what it held out. A reward model
    judges; both language models share one base.
    """
    comparison, folder = evaluate(asked(candidate=str(sft_run), baseline=None, prompts=(), reward=str(reward_run)))
    assert comparison.baseline.name == str(model)
    assert comparison.candidate.kind == "run"
    assert comparison.recipes["candidate"]["model"]["name"] == str(model)
    assert comparison.prompts["source"] == f"held-out rows of {sft_run}"
    assert comparison.verdict.decided_by == str(reward_run)
    found = named(comparison.metrics)
    assert found["demonstration_loss"].change.value < 0  # type: ignore[union-attr]  # it learned its data's form
    rows = answers_in(folder)
    assert all(row.reference and row.candidate.reward is not None for row in rows)
    (rate,) = comparison.win_rates
    wins = sum(row.candidate.reward > row.baseline.reward for row in rows)  # type: ignore[operator]
    assert rate.wins == wins == sum(row.verdicts[str(reward_run)] == "candidate" for row in rows)


def test_a_chat_template_is_that_of_both_models_on_one_base(
    asked: Ask, sft_run: Path, model: Path, tmp_path: Path
) -> None:
    """The baseline joins the candidate's base: it is asked in the same template."""
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ 'q ' + m['content'] + ' a ' }}{% endif %}{% endfor %}"
    )
    own = evaluate(asked(candidate=str(sft_run), baseline=str(model), out=tmp_path / "own"))[1]
    folder = evaluate(asked(candidate=str(sft_run), baseline=str(model), chat_template=str(template)))[1]
    sides = [read_rows(folder / "parts" / f"{role}-answers.jsonl") for role in ("candidate", "baseline")]
    prompts = [[row["prompt"] for row in rows] for rows in sides]
    assert prompts[0] == prompts[1]
    assert prompts[0] != [row["prompt"] for row in read_rows(own / "parts" / "candidate-answers.jsonl")]


def test_the_regression_set_is_answered_and_checked(asked: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny set; T passes none of it."""
    from prefine.evaluation.comparing import heldout
    from prefine.regression.items import items

    few = [item for item in items() if item.category == "arithmetic"][:3]
    monkeypatch.setattr(heldout, "items", lambda: few)
    monkeypatch.setattr(heldout, "REGRESSION_SAMPLING", Sampling(6, temperature=0.0))
    comparison, folder = evaluate(asked(regression=True))
    whole, group = comparison.regression
    rows = read_answers(folder, REGRESSION_NAME)
    assert [(row.id, row.candidate.scores["passed"]) for row in rows] == [(item.id, 0) for item in few]
    assert (whole.category, whole.candidate.count) == ("all", 3)
    assert (group.category, group.candidate.value, group.candidate.count) == ("arithmetic", 0, 3)


def test_an_endpoint_as_candidate(asked: Ask) -> None:
    """What text allows is computed; the rest is named with its reason. A second call asks nothing again."""

    def answer(body: dict[str, Any], number: int) -> Any:
        return (
            refusal(400, "no such thing") if body["messages"][0]["content"] == "question 3" else Answer("good answer")
        )

    with running(answer) as fake:
        request = asked(candidate=f"{fake.url}#m", patience=Patience(at_once=1))
        comparison, folder = evaluate(request)
        count = len(fake.asked)
        assert evaluate(request)[0].metrics == comparison.metrics
        assert len(fake.asked) == count + 1  # the one that failed
    assert fake.asked[0]["seed"] == 0
    assert fake.asked[0]["max_tokens"] == 8
    assert comparison.prompts["count"] == len(ROWS) - 1
    assert sum(comparison.prompts["left_out"].values()) == 1
    assert any("no such thing" in reason for reason in comparison.prompts["left_out"])
    assert comparison.prompts["asked"] == len(ROWS)
    assert any(each.startswith("1 of 7 prompts lack an answer of one") for each in comparison.warnings)
    assert "endpoint" in comparison.not_computed["KL to the reference (candidate)"]
    assert "length_characters" in named(comparison.metrics)
    assert answers_in(folder)[0].candidate.text == "good answer"


def test_an_answer_that_a_content_filter_held_back_is_none_and_is_asked_for_again(asked: Ask) -> None:
    held = [True]

    def answer(body: dict[str, Any], number: int) -> Any:
        filtered = held[0] and body["messages"][0]["content"] == "question 3"
        return Answer("", finish="content_filter") if filtered else Answer("good answer")

    with running(answer) as fake:
        request = asked(candidate=f"{fake.url}#m")
        comparison, _ = evaluate(request)
        assert comparison.prompts["left_out"] == {"candidate: the endpoint's content filter held the answer back": 1}
        held[0] = False
        assert evaluate(request)[0].prompts["count"] == len(ROWS)
        assert len(fake.asked) == len(ROWS) + 1


def test_a_prompt_that_does_not_fit_one_of_the_models_is_left_out(
    asked: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The baseline has room for 60 tokens: it would be asked a part of the long question, which is another one."""
    rooms = iter([1000, 60])
    monkeypatch.setattr(answering, "room_for_prompts", lambda packed, new: next(rooms))
    prompts = tiny.write_rows(tmp_path / "long.jsonl", [*ROWS[:2], {"prompt": "question " * 30}])
    comparison, folder = evaluate(asked(prompts=(str(prompts),), slots=8))
    assert [row.id for row in answers_in(folder)] == ["q0", "q1"]
    assert comparison.prompts["left_out"] == {
        "the prompt does not fit the context of one of the models, which was asked only a part of it": 1
    }


def test_an_endpoint_that_takes_less_than_it_is_asked_for(asked: Ask) -> None:
    """A newer model of OpenAI's: another name for the longest answer, and no sampling settings but its own. At
    temperature 1 without top-p, leaving them out changes nothing.
    """

    def answer(body: dict[str, Any], number: int) -> Any:
        for name, said in (("max_tokens", "use max_completion_tokens"), ("top_p", "top_p"), ("seed", "seed")):
            if name in body:
                return refusal(400, f"Unsupported parameter: {said}")
        return Answer("good answer")

    with running(answer) as fake:
        assert evaluate(asked(candidate=f"{fake.url}#m"))[0].prompts["count"] == len(ROWS)
        assert fake.asked[-1] | {"messages": []} == {
            "model": "m",
            "messages": [],
            "temperature": 1.0,
            "max_completion_tokens": 8,
        }
        with pytest.raises(DataError, match="Unsupported parameter: top_p"):
            evaluate(asked(candidate=f"{fake.url}#m", sampling=Sampling(8, top_p=0.5), force=True))


def test_an_endpoint_that_is_down(asked: Ask) -> None:
    """Nothing can be compared: one line with the reason, before the other model generates for hours."""
    with pytest.raises(
        DataError, match=r"no prompt was answered by both models \(candidate: .*what was computed is kept"
    ):
        evaluate(asked(candidate="http://127.0.0.1:9/v1#m", patience=Patience(attempts=1)))
    assert not (asked().out / "parts" / "baseline-answers.jsonl").exists()  # type: ignore[operator]


def test_an_answer_with_figures_that_are_not_finite_ends_nothing(asked: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that diverged: NaN and infinities of one answer are missing, and counted."""
    real = gathering.kl_rows

    def diverged(*arguments: Any) -> Any:
        for number, row in enumerate(real(*arguments)):
            yield {"k1": math.nan, "k3": math.inf} if number == 2 else row

    monkeypatch.setattr(gathering, "kl_rows", diverged)
    comparison, folder = evaluate(asked())
    assert answers_in(folder)[2].candidate.kl_per_token is None
    assert "kl_k3" not in answers_in(folder)[2].candidate.scores
    assert comparison.not_computed["KL to the reference of some answers"].startswith("2 values not finite")
    assert named(comparison.metrics)["kl_per_token"].change.count == len(ROWS) - 1  # type: ignore[union-attr]


def test_a_judge_has_its_template_its_length_and_its_cost(asked: Ask, tmp_path: Path) -> None:
    template = tmp_path / "short.txt"
    template.write_text("$conversation $answer_a $answer_b Which?")
    with running(lambda body, number: Answer('{"verdict": "tie"}')) as fake:
        judge = judge_request(fake.url, "m", judge_template=template, judge_max_tokens=7, price_in=1.0, price_out=2.0)
        comparison, _ = evaluate(asked(judge=judge))
    (rate,) = comparison.win_rates
    assert rate.judge == comparison.verdict.decided_by == "m (short)"
    assert {body["max_tokens"] for body in fake.asked} == {7}
    assert all(body["messages"][0]["content"].endswith("Which?") for body in fake.asked)
    assert rate.spent["cost"] == pytest.approx(len(fake.asked) * (100 * 1 + 10 * 2) / 1e6)


def test_a_judge_that_fails_is_replaced_by_nothing(asked: Ask, reward_run: Path) -> None:
    """The user named a judge, whose replies are no verdicts: the reward model does not decide in its place."""
    with running(lambda body, number: Answer("I would rather not say.")) as fake:
        comparison, _ = evaluate(asked(judge=judge_request(fake.url, "judge-1"), reward=str(reward_run)))
    assert (comparison.verdict.decided_by, comparison.verdict.decision) == ("judge-1", "no difference shown")
    assert comparison.not_computed["judge judge-1"].startswith(f"no verdict on {len(ROWS)} of {len(ROWS)} prompts")


@pytest.mark.parametrize(
    ("status", "reason"), [(413, "are too long for the judge"), (422, "refused the request (status 422: no")]
)
def test_a_judge_that_refuses_every_request_leaves_the_evaluation_unfinished(
    asked: Ask, status: int, reason: str
) -> None:
    """One that refuses some of them does not: the others have verdicts, and it would refuse the same again."""
    taken = [0]

    def answer(body: dict[str, Any], number: int) -> Any:
        return Answer('{"verdict": "A"}') if number <= taken[0] else refusal(status, f"no {number}")

    with running(answer) as fake:
        request = asked(judge=judge_request(fake.url, "judge-1"), patience=Patience(at_once=1))
        (_, folder), (missing,) = evaluate_as_far_as_possible(request)
        pairs = sum(row.candidate.text != row.baseline.text for row in answers_in(folder))
        assert missing.problem.startswith(f"the judge judge-1 gave no verdict on {pairs} of {len(ROWS)} prompts: ")
        assert reason in missing.problem
        taken[0] = len(fake.asked) + 2
        assert evaluate_as_far_as_possible(request)[1] == []


def test_a_judge_behind_an_endpoint_decides(asked: Ask, reward_run: Path) -> None:
    """A judge that always prefers the first answer it sees is inconsistent: all ties."""
    with running(lambda body, number: Answer('{"verdict": "A"}')) as fake:
        comparison, folder = evaluate(asked(judge=judge_request(fake.url, "judge-1"), reward=str(reward_run)))
    first, second = comparison.win_rates
    assert (first.judge, second.judge) == ("judge-1", str(reward_run))
    assert comparison.verdict.decided_by == "judge-1"
    assert first.ties == len(ROWS)
    assert first.finding == "no difference shown"
    assert answers_in(folder)[0].verdicts["judge-1"] == "tie"
