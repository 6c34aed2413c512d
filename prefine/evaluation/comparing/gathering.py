"""Gathers everything that a comparison is made of: the answers of both models, and what measures say of them."""

from __future__ import annotations

from collections.abc import Mapping

from prefine.comparisons.answer_metrics import DEMONSTRATION_LOSS, ENTROPY, KL, LENGTH, PAIR_ACCURACY, PAIR_MARGIN
from prefine.comparisons.measures import why_missing
from prefine.errors import PrefineError
from prefine.evaluation.comparing.answer_rows import add_rows, note_not_finite, nothing_answered
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.benchmarks import benchmarks
from prefine.evaluation.comparing.gathered import ROLES, Gathered, Rows
from prefine.evaluation.comparing.heldout import (
    demonstration_metrics,
    measure_demonstrations,
    measure_pairs,
    missing_rows,
    pair_metrics,
    regression_answers,
    regression_groups,
    regression_rows,
    unanswered_items,
)
from prefine.evaluation.comparing.judgements import kept_judgements
from prefine.evaluation.comparing.likelihoods import kl_rows
from prefine.evaluation.comparing.parts import Parts
from prefine.evaluation.comparing.questions import Questions, digest_of
from prefine.evaluation.comparing.request import EvaluationRequest, JudgeRequest
from prefine.evaluation.comparing.rewards import optimised_reward, reward_name, reward_win_rate, score_answers
from prefine.evaluation.comparing.sides import NamedSide, as_section
from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint import Endpoint, Patience
from prefine.judges.endpoint_judge import EndpointJudge
from prefine.judges.judging import judge_answers


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
            raise nothing_answered(f"{role}: {answers[role][0].failed}")
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
    add_rows(found, asked, answers, request.samples, measured["kl"], scores)
    _note_missing(found, questions)
    note_not_finite(found, answers, measured["kl"], scores)
    _add_heldout(found, sides, questions, measured)
    if request.regression:
        found.regression_rows = regression_rows(regression)
        found.regression = regression_groups(found.regression_rows)
        if why := unanswered_items(regression):
            found.not_computed["the whole regression set"] = f"without an answer: {why}"
    if name is None:
        found.not_computed["reward"] = why
    else:
        _add_reward(found, name, sides["candidate"])
    if request.judge is not None:
        _add_judge(found, request.judge, request.patience or Patience(), parts)
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
        elif gone := missing_rows(measured[what], value):
            said = [f"{count} of {len(records)} {what} {reason}" for reason, count in gone.items()]
            found.not_computed[f"{kind.title} of some"] = "; ".join(said)
        if alike := sum(bool(row.get("cut")) for row in measured[what].get("candidate", [])):
            found.warnings.append(f"{alike} of {len(records)} {what} were cut to fit the candidate's context.")
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


def _add_judge(found: Gathered, request: JudgeRequest, patience: Patience, parts: Parts) -> None:
    """The verdicts and the win rate of a language model behind an endpoint."""
    with (
        Endpoint(request.url, timeout_s=patience.timeout_s, attempts=patience.attempts) as endpoint,
        ReplyCache(parts.folder.judge_replies) as cache,
    ):
        judge = EndpointJudge(endpoint, request.settings, cache, request.template)
        total = len({*found.places})
        judged = judge_answers(
            found.rows,
            judge,
            at_once=patience.at_once,
            progress=lambda done: parts.progress(f"judge: {request.name}", done, total),
        )
    found.rows = judged.rows
    found.win_rates.insert(0, judged.win_rate)
    if judged.problem is not None and judged.problem.may_pass:
        what = f"the judge {request.name} could not be asked about {judged.not_asked} of {total} prompts"
        parts.note_unfinished(what, judged.problem)
    elif judged.refused and judged.win_rate.consistency is None:
        # A judge that gives verdicts would refuse the same prompts again; one that gives none may be set up wrongly.
        failed = judged.win_rate.failed
        what = f"the judge {request.name} gave no verdict on {sum(failed.values())} of {total} prompts"
        remedy = "Change what it refuses, or name another judge; the same command then continues."
        parts.note_unfinished(what, PrefineError(max(failed, key=lambda reason: failed[reason]), remedy))


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
        return request.judge.name
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
    elif not _any_has(found, "self_bleu"):
        found.not_computed["self-BLEU"] = "no model has two answers with words"
    if not _any_has(found, "distinct_1"):
        found.not_computed["different words and word pairs"] = "no answer has words"


def _any_has(found: Gathered, score: str) -> bool:
    return any(score in side.scores for row in found.rows for side in (row.candidate, row.baseline))
