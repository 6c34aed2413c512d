"""Figures of texts that the models do not generate: held-out pairs, demonstrations, and the regression set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefine.comparisons.answer_metrics import (
    DEMONSTRATION_LOSS,
    PAIR_ACCURACY,
    PAIR_MARGIN,
    mean_by_prompt,
    perplexity,
)
from prefine.comparisons.result import PASSED, AnswerOf, AnswerRow, Metric, RegressionGroup
from prefine.comparisons.statistics import ALL_CATEGORIES, regression_group
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.gathered import ROLES, Rows
from prefine.evaluation.comparing.likelihoods import demonstration_rows, pair_rows
from prefine.evaluation.comparing.parts import Parts
from prefine.evaluation.comparing.questions import EvaluationPrompt, digest_of
from prefine.formatting import plural
from prefine.generation.answers import context_of
from prefine.generation.sampling import Sampling
from prefine.models.loading.load import LoadedModel
from prefine.records import Demonstration, Message, Preference
from prefine.regression.items import TITLES, Item, items

# Items of the regression set ask for short answers; the likeliest tokens, so that chance plays no part.
REGRESSION_SAMPLING = Sampling(128, temperature=0.0)


def measure_pairs(role: str, pairs: Sequence[Preference], parts: Parts) -> Rows:
    """How much likelier each pair's chosen answer is under a model."""

    def compute(loaded: LoadedModel, chosen: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
        return pair_rows(loaded, chosen, context_of(loaded.packed))

    return parts.of_model(role, "pairs", {"pairs": _digest(pairs)}, pairs, compute)


def measure_demonstrations(role: str, demonstrations: Sequence[Demonstration], parts: Parts) -> Rows:
    """The loss of each demonstration under a model."""

    def compute(loaded: LoadedModel, chosen: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
        return demonstration_rows(loaded, chosen, context_of(loaded.packed))

    settings = {"demonstrations": _digest(demonstrations)}
    return parts.of_model(role, "demonstrations", settings, demonstrations, compute)


def _digest(records: Sequence[Preference] | Sequence[Demonstration]) -> str:
    return digest_of([each.model_dump_json() for each in records])


def pair_metrics(rows: Mapping[str, Rows], pairs: Sequence[Preference], *, same_tokens: bool) -> list[Metric]:
    """Accuracy and margin of both models on the same pairs; pairs of one prompt are averaged, as they are not
    independent.

    An answer counts as preferred if its mean log-probability per token is the higher one.

    Args:
        same_tokens: whether both models have the same tokens; if not, a margin per token does not compare.
    """
    places: dict[str, int] = {}
    prompts = [
        places.setdefault(digest_of([[turn.model_dump(mode="json") for turn in each.prompt], each.tools]), len(places))
        for each in pairs
    ]
    margins = _known_of_both(rows, "margin")
    right = {
        role: [None if margin is None else float(margin > 0) for margin in values] for role, values in margins.items()
    }
    kinds = [(PAIR_ACCURACY, right), *([(PAIR_MARGIN, margins)] if same_tokens else [])]
    return [
        kind.of(mean_by_prompt(values["candidate"], prompts), mean_by_prompt(values["baseline"], prompts))
        for kind, values in kinds
    ]


def _known_of_both(rows: Mapping[str, Rows], name: str) -> dict[str, list[float | None]]:
    """A value of each row by role; None for both models where they do not compare."""
    compare = [not _why_missing(now, was, name) for now, was in zip(*(rows[role] for role in ROLES), strict=True)]
    return {
        role: [row[name] if known else None for row, known in zip(rows[role], compare, strict=True)] for role in ROLES
    }


def _why_missing(now: Mapping[str, Any], was: Mapping[str, Any], name: str) -> str:
    """Why two models' values of a row do not compare; "" if they do."""
    if now[name] is None or was[name] is None:
        return "do not fit a model's context, or its chat template refuses them"
    if not (math.isfinite(now[name]) and math.isfinite(was[name])):
        return "have no finite value"
    if now.get("cut", "") != was.get("cut", ""):
        return "fit the context of one of the models only in part"
    return ""


def missing_rows(rows: Mapping[str, Rows], name: str) -> dict[str, int]:
    """Why rows have no values that compare, with their number."""
    reasons = Counter(_why_missing(now, was, name) for now, was in zip(*(rows[role] for role in ROLES), strict=True))
    return {reason: count for reason, count in reasons.items() if reason}


def demonstration_metrics(rows: Mapping[str, Rows]) -> list[Metric]:
    """The loss on demonstrations, a mean over answers; and the perplexity, over all their tokens."""
    losses = _known_of_both(rows, "loss")
    loss = DEMONSTRATION_LOSS.of(losses["candidate"], losses["baseline"])
    if loss.change is None:
        return [loss]
    both = [place for place, value in enumerate(losses["candidate"]) if value is not None]
    tokens = [rows["candidate"][place]["tokens"] for place in both]
    now, was = (
        [rows[role][place]["loss"] * count for place, count in zip(both, tokens, strict=True)] for role in ROLES
    )
    return [loss, perplexity(now, was, tokens)]


def regression_answers(role: str, parts: Parts) -> list[SideAnswer]:
    """A model's answers to the regression set."""
    prompts = [
        EvaluationPrompt(item.id, tuple(Message.model_validate(turn) for turn in item.prompt), category=item.category)
        for item in items()
    ]
    return parts.answers(role, "regression", prompts, REGRESSION_SAMPLING)


def regression_rows(answers: Mapping[str, Sequence[SideAnswer]]) -> list[AnswerRow]:
    """The items of the regression set that both models answered; `scores` says whether an answer passed (1 or 0)."""
    return [
        AnswerRow(
            id=item.id,
            category=item.category,
            prompt=list(item.prompt),
            candidate=_checked(item, now),
            baseline=_checked(item, was),
        )
        for item, now, was in zip(items(), answers["candidate"], answers["baseline"], strict=True)
        if not now.failed and not was.failed
    ]


def _checked(item: Item, answer: SideAnswer) -> AnswerOf:
    return AnswerOf(
        text=answer.text, tokens=answer.tokens, ended=answer.ended, scores={PASSED: float(item.check(answer.text))}
    )


def regression_groups(rows: Sequence[AnswerRow]) -> list[RegressionGroup]:
    """The whole regression set, then its categories. Items that a model could not answer are counted as missing; a
    category that has no others is only in the count of the whole set.

    Args:
        rows: from `regression_rows`.
    """
    found = []
    asked = [item.category for item in items()]
    for category, title in {ALL_CATEGORIES: "the regression set", **TITLES}.items():
        own = [row for row in rows if category in (ALL_CATEGORIES, row.category)]
        count = sum(category in (ALL_CATEGORIES, each) for each in asked)
        if own:
            now, was = ([bool(getattr(row, role).scores[PASSED]) for row in own] for role in ROLES)
            ids = [row.id for row in own]
            found.append(regression_group(category, title, now, was, ids, missing=count - len(own)))
    return found


def unanswered_items(answers: Mapping[str, Sequence[SideAnswer]]) -> str:
    """How many items of the regression set a model could not answer, by reason; "" if there are none."""
    reasons = Counter(f"{role}: {each.failed}" for role, given in answers.items() for each in given if each.failed)
    return "; ".join(f"{plural(count, 'item')} ({reason})" for reason, count in reasons.items())
