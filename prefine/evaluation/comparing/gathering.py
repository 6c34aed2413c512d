"""Gathers everything that a comparison is made of: the answers of both models, and what measures say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefine.comparisons.answer_metrics import DEMONSTRATION_LOSS, ENTROPY, KL, LENGTH, PAIR_ACCURACY, PAIR_MARGIN
from prefine.comparisons.estimates import finite_or_none
from prefine.comparisons.measures import degenerate_word, distinct_share, overlap, self_bleu, why_missing
from prefine.comparisons.result import AnswerOf, AnswerRow, Metric, RegressionGroup, WinRate
from prefine.comparisons.win_rate import coverage
from prefine.errors import DataError
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.benchmarks import benchmarks
from prefine.evaluation.comparing.heldout import (
    Rows,
    demonstration_metrics,
    measure_demonstrations,
    measure_pairs,
    not_finite,
    pair_metrics,
    regression_answers,
    regression_groups,
    unanswered_items,
)
from prefine.evaluation.comparing.judgements import kept_judgements
from prefine.evaluation.comparing.likelihoods import kl_rows
from prefine.evaluation.comparing.parts import Parts
from prefine.evaluation.comparing.questions import EvaluationPrompt, Questions, digest_of
from prefine.evaluation.comparing.request import EvaluationRequest, JudgeRequest
from prefine.evaluation.comparing.rewards import optimised_reward, reward_name, reward_win_rate, score_answers
from prefine.evaluation.comparing.sides import NamedSide, as_section
from prefine.formatting import plural
from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint import Endpoint
from prefine.judges.endpoint_judge import EndpointJudge, JudgeSettings
from prefine.judges.judging import judge_answers


@dataclass
class Gathered:
    """What a comparison is made of.

    Attributes:
        rows: prompts with both answers. places: the number of each row's prompt.
        left_out: prompts without both answers, by reason.
        metrics: that are not of answers: of pairs, of demonstrations.
        same_tokens: whether both models have one vocabulary, so that lengths in tokens compare.
        decided_by: the metric or the judge that decides; "" if nothing can.
        not_computed: what could not be computed, and why.
    """

    rows: list[AnswerRow] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    metrics: list[Metric] = field(default_factory=list)
    win_rates: list[WinRate] = field(default_factory=list)
    regression: list[RegressionGroup] = field(default_factory=list)
    benchmarks: list[Metric] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    same_tokens: bool = True
    decided_by: str = ""


ROLES = ("candidate", "baseline")

_MOST_MISSING = 0.05
"""The share of prompts without an answer that is not warned of."""


def gather(request: EvaluationRequest, sides: Mapping[str, NamedSide], questions: Questions, parts: Parts) -> Gathered:
    """Compute what is not in the comparison's folder yet, and read the rest.

    Raises:
        DataError: no prompt was answered by both models.
    """
    found = Gathered()
    answers, regression = {}, {}
    measured: dict[str, dict[str, Rows]] = {"pairs": {}, "demonstrations": {}, "kl": {}}
    for role in ROLES:  # all of a model's work while it is in memory
        answers[role] = parts.answers(role, "answers", questions.prompts, request.sampling, request.samples)
        if all(each.failed for each in answers[role]):
            raise _nothing_answered(f"{role}: {answers[role][0].failed}")
        if request.regression:
            regression[role] = regression_answers(role, parts)
        if sides[role].endpoint is None:
            if questions.pairs:
                measured["pairs"][role] = measure_pairs(role, questions.pairs, parts)
            if questions.demonstrations:
                measured["demonstrations"][role] = measure_demonstrations(role, questions.demonstrations, parts)
    section = as_section(request.device, request.dtype, request.chat_template)
    found.same_tokens = sides["candidate"].shares_tokens(sides["baseline"], section)
    if not found.same_tokens:
        found.not_computed[LENGTH.title] = "the models do not have the same tokens; see the length in characters"
        found.not_computed[ENTROPY.title] = "the models do not have the same tokens"
    measured["kl"] = _kl(found, request, sides, answers, parts)
    found.benchmarks = benchmarks(request, sides, parts, found.not_computed)
    parts.close_models()
    asked = [prompt for prompt in questions.prompts for _ in range(request.samples)]
    name, why = reward_name(request, sides["candidate"])
    scores = [] if name is None else score_answers(name, request, asked, answers, parts)
    _add_rows(found, asked, answers, request.samples, measured["kl"], scores)
    _note_missing(found, questions)
    _note_not_finite(found, answers, measured["kl"], scores)
    _add_heldout(found, sides, questions, measured)
    if request.regression:
        found.regression = regression_groups(regression)
        if why := unanswered_items(regression):
            found.not_computed["the whole regression set"] = f"without an answer: {why}"
    if name is None:
        found.not_computed["reward"] = why
    else:
        _add_reward(found, name, sides["candidate"])
    if request.judge is not None:
        _add_judge(found, request.judge, parts)
    found.decided_by = _deciding(found, request)
    _add_kept(found, parts)
    return found


def _kl(
    found: Gathered,
    request: EvaluationRequest,
    sides: Mapping[str, NamedSide],
    answers: Mapping[str, list[SideAnswer]],
    parts: Parts,
) -> dict[str, Rows]:
    """The KL of each answer to the reference by role, from log-probabilities of the answer's own tokens."""
    reference = "reference" if "reference" in sides else "baseline"
    if sides[reference].endpoint is not None:
        found.not_computed[KL.title] = f"the {reference} is an endpoint, which gives no log-probabilities of our tokens"
        return {}
    by_role: dict[str, Rows] = {}
    section = as_section(request.device, request.dtype, request.chat_template)
    for role in ROLES:
        if sides[role].settings == sides[reference].settings:  # the same model
            by_role[role] = [{"k1": 0.0, "k3": 0.0} if each.ids else {"k1": None, "k3": None} for each in answers[role]]
        elif sides[role].endpoint is not None:
            found.not_computed[f"{KL.title} ({role})"] = f"the {role} is an endpoint, which gives no log-probabilities"
        elif not sides[role].shares_tokens(sides[reference], section):
            found.not_computed[f"{KL.title} ({role})"] = f"the {role} and the {reference} have different tokenizers"
        else:
            texts = digest_of([(each.ids, each.failed) for each in answers[role]])
            by_role[role] = parts.of_model(
                reference, f"reads-{role}", {"answers": texts, "of": sides[role].settings}, answers[role], kl_rows
            )
    sampling = request.sampling
    if by_role and (sampling.temperature != 1 or sampling.filtered):
        found.warnings.append(
            "The KL is estimated from the answers' own tokens, which are drawn from the model itself only at "
            "temperature 1 without top-k and top-p; with other settings it is biased."
        )
    return by_role


def _add_rows(
    found: Gathered,
    asked: list[EvaluationPrompt],
    answers: Mapping[str, list[SideAnswer]],
    samples: int,
    kl: Mapping[str, Rows],
    scores: Rows,
) -> None:
    """The prompts that both models answered, with everything that is known of each answer."""
    missing: dict[int, str] = {}  # by prompt: the first reason
    for place, (prompt, now, was) in enumerate(zip(asked, answers["candidate"], answers["baseline"], strict=True)):
        if now.failed or was.failed:
            role, reason = ("candidate", now.failed) if now.failed else ("baseline", was.failed)
            missing.setdefault(place // samples, f"{role}: {reason}")
            continue
        sides = {
            role: _answer_of(
                answer,
                prompt.reference,
                kl[role][place] if role in kl else {},
                scores[place][role] if scores else None,
            )
            for role, answer in (("candidate", now), ("baseline", was))
        }
        sample = place % samples
        found.rows.append(
            AnswerRow(
                id=prompt.id if sample == 0 else f"{prompt.id}#{sample + 1}",
                category=prompt.category,
                prompt=prompt.turns,
                reference=prompt.reference,
                candidate=sides["candidate"],
                baseline=sides["baseline"],
            )
        )
        found.places.append(place // samples)
    found.left_out += Counter(reason for prompt, reason in missing.items() if prompt not in {*found.places})
    _warn_of_missing(found, missing, len(answers["candidate"]) // samples)
    if not found.rows:
        reason = next(iter(missing.values()), "there are none")
        raise _nothing_answered(reason)
    for role in ROLES:
        own: list[AnswerOf] = [getattr(row, role) for row in found.rows]
        alike = self_bleu([each.text for each in own], found.places) if not why_missing("bleu") else []
        for each, value in zip(own, alike, strict=False):
            if value is not None:
                each.scores["self_bleu"] = value


def _nothing_answered(reason: str) -> DataError:
    return DataError(
        f"no prompt was answered by both models ({reason})",
        "Correct that and repeat the command: what was computed is kept.",
    )


def _warn_of_missing(found: Gathered, missing: Mapping[int, str], prompts: int) -> None:
    """Warn of figures that rest on the prompts that were easy to answer."""
    if len(missing) > _MOST_MISSING * prompts:
        found.warnings.append(
            f"{len(missing)} of {plural(prompts, 'prompt')} lack an answer of one of the models. Answers do not "
            "fail at random, so the figures of the others may mislead."
        )


def _answer_of(answer: SideAnswer, reference: str, kl: Mapping[str, Any], reward: float | None) -> AnswerOf:
    scores = {f"distinct_{n}": share for n in (1, 2) if (share := distinct_share(answer.text, n)) is not None}
    scores |= overlap(answer.text, reference) if reference else {}
    scores |= {"length_characters": float(len(answer.text))}
    if (k3 := finite_or_none(kl.get("k3"))) is not None:
        scores["kl_k3"] = k3
    return AnswerOf(
        text=answer.text,
        tokens=answer.tokens,
        ended=answer.ended,
        degenerate=degenerate_word(answer.text, answer.ids or None),
        reward=finite_or_none(reward),
        kl_per_token=finite_or_none(kl.get("k1")),
        entropy=finite_or_none(answer.entropy),
        scores=scores,
    )


def _add_heldout(
    found: Gathered,
    sides: Mapping[str, NamedSide],
    questions: Questions,
    measured: Mapping[str, dict[str, Rows]],
) -> None:
    """Metrics of pairs and demonstrations, and why there are none."""
    ends = [role for role in ROLES if sides[role].endpoint is not None]
    why = f"the {' and the '.join(ends)} gives no log-probabilities of given texts" if ends else ""
    for kind, records, what, value in (
        (PAIR_ACCURACY, questions.pairs, "pairs", "margin"),
        (DEMONSTRATION_LOSS, questions.demonstrations, "demonstrations", "loss"),
    ):
        if not records or why:
            found.not_computed[kind.title] = why or f"there are no held-out {what} (--{what})"
        elif count := not_finite(measured[what], value):
            found.not_computed[f"{kind.title} of some"] = f"{count} of {len(records)} {what} have no finite value"
    if questions.pairs and not why:
        found.metrics += pair_metrics(measured["pairs"], questions.pairs, same_tokens=found.same_tokens)
    uncomparable = "the models do not have the same tokens, so figures per token do not compare"
    if questions.pairs and not why and not found.same_tokens:
        found.not_computed[PAIR_MARGIN.title] = uncomparable
    if questions.demonstrations and not why:
        if found.same_tokens:
            found.metrics += demonstration_metrics(measured["demonstrations"])
        else:
            found.not_computed[f"{DEMONSTRATION_LOSS.title}, perplexity"] = uncomparable


def _add_reward(found: Gathered, name: str, candidate: NamedSide) -> None:
    """The reward model's win rate and verdicts."""
    rate, winners = reward_win_rate(name, found.rows, found.places)
    found.win_rates.append(rate)
    found.rows = [
        row if place not in winners else row.model_copy(update={"verdicts": {**row.verdicts, name: winners[place]}})
        for row, place in zip(found.rows, found.places, strict=True)
    ]
    if optimised_reward(name, candidate):
        found.warnings.append(
            f"The candidate was trained to score highly by {name}: name another judge with --reward or --judge."
        )


def _add_judge(found: Gathered, request: JudgeRequest, parts: Parts) -> None:
    """The verdicts and the win rate of a language model behind an endpoint."""
    with Endpoint(request.url) as endpoint, ReplyCache(parts.folder.judge_replies) as cache:
        judge = EndpointJudge(endpoint, JudgeSettings(model=request.model), cache)
        total = len({*found.places})
        judged = judge_answers(
            found.rows,
            judge,
            at_once=request.at_once,
            progress=lambda done: parts.progress(f"judge: {request.model}", done, total),
        )
    found.rows = judged.rows
    found.win_rates.insert(0, judged.win_rate)
    judged_count, of = coverage(judged.win_rate)
    if judged_count < of:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in judged.win_rate.failed.items())
        found.not_computed[f"judge {request.model}"] = f"no verdict on {of - judged_count} of {of} prompts: {reasons}"


def _add_kept(found: Gathered, parts: Parts) -> None:
    """What `prefine judge` added to the comparison. It decides if nothing else does."""
    judges = [rate.judge for rate in found.win_rates]
    found.rows, rates, warnings = kept_judgements(parts.folder.judgements, found.rows, judges)
    found.win_rates += rates
    found.warnings += warnings
    found.decided_by = found.decided_by or next((rate.judge for rate in rates if rate.finding != "not computed"), "")


def _deciding(found: Gathered, request: EvaluationRequest) -> str:
    """What decides: the judge that the user named, else the reward model that the user named, whatever came of it;
    else the first win rate that was computed, the preference accuracy, or the loss on demonstrations; "" if there is
    none of these. A figure that the user did not choose never replaces one that failed.
    """
    if request.judge is not None:
        return request.judge.model
    if request.reward is not None:
        return request.reward
    rates = [rate.judge for rate in found.win_rates if rate.finding != "not computed"]
    metrics = [metric.name for metric in found.metrics if metric.finding != "not computed"]
    return next(
        iter([*rates, *(name for name in (PAIR_ACCURACY.name, DEMONSTRATION_LOSS.name) if name in metrics)]), ""
    )


def _note_missing(found: Gathered, questions: Questions) -> None:
    """Say what has no values, and why."""
    if not any(prompt.reference for prompt in questions.prompts):
        found.not_computed["ROUGE, BLEU, chrF"] = "no prompt has a reference answer"
    elif why := why_missing("rouge"):
        found.not_computed["ROUGE"] = why
    if why := why_missing("bleu"):
        found.not_computed["self-BLEU, BLEU, chrF"] = why
    elif len({*found.places}) < 2:
        found.not_computed["self-BLEU"] = "there is only one prompt"


def _note_not_finite(
    found: Gathered, answers: Mapping[str, list[SideAnswer]], kl: Mapping[str, Rows], scores: Rows
) -> None:
    """Say how many figures of answers are missing because they are NaN or infinite."""
    columns: dict[str, list[float | None]] = {
        "reward": [row[role] for row in scores for role in row],
        KL.title: [row[name] for rows in kl.values() for row in rows for name in ("k1", "k3")],
        ENTROPY.title: [each.entropy for given in answers.values() for each in given],
    }
    for title, values in columns.items():
        if count := sum(value is not None and finite_or_none(value) is None for value in values):
            found.not_computed[f"{title} of some answers"] = f"{plural(count, 'value')} not finite: the model diverged"
