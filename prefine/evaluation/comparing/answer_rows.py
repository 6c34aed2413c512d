"""The prompts that both models answered, with everything that is known of each answer; and which are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefine.comparisons.answer_metrics import ENTROPY, KL
from prefine.comparisons.estimates import finite_or_none
from prefine.comparisons.measures import degenerate_word, distinct_share, overlap, self_bleu, why_missing
from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.errors import DataError
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.gathered import ROLES, Gathered, Rows
from prefine.evaluation.comparing.questions import EvaluationPrompt
from prefine.formatting import plural

_MOST_MISSING = 0.05
"""The share of prompts without an answer that is not warned of."""


def add_rows(
    found: Gathered,
    asked: Sequence[EvaluationPrompt],
    answers: Mapping[str, Sequence[SideAnswer]],
    samples: int,
    kl: Mapping[str, Rows],
    scores: Rows,
) -> None:
    """Add the prompts that both models answered, as they stand: one that was cut to fit one model's context only would
    be another question.

    Raises:
        DataError: there is none.
    """
    missing: dict[int, str] = {}  # by prompt: the first reason
    cut: set[int] = set()
    for place, (prompt, now, was) in enumerate(zip(asked, answers["candidate"], answers["baseline"], strict=True)):
        if reason := _why_missing(now, was):
            missing.setdefault(place // samples, reason)
            continue
        if now.cut:
            cut.add(place // samples)
        sides = {
            role: _answer_of(
                answer,
                prompt.reference,
                kl[role][place] if role in kl else {},
                scores[place][role] if scores else None,
                by_words=not found.same_tokens,
            )
            for role, answer in (("candidate", now), ("baseline", was))
        }
        sample = place % samples
        found.rows.append(
            AnswerRow(
                id=prompt.id if sample == 0 else f"{prompt.id}#{sample + 1}",
                category=prompt.category,
                prompt=prompt.turns,
                tools=list(prompt.tools),
                reference=prompt.reference,
                candidate=sides["candidate"],
                baseline=sides["baseline"],
            )
        )
        found.places.append(place // samples)
    found.left_out += Counter(reason for prompt, reason in missing.items() if prompt not in {*found.places})
    _warn_of_missing(found, missing, len(asked) // samples)
    if cut:
        found.warnings.append(
            f"{plural(len(cut), 'prompt')} did not fit the models' context: both models were asked without the oldest "
            "text, which judges and the page have."
        )
    if not found.rows:
        raise nothing_answered(next(iter(missing.values()), "there are none"))
    for role in ROLES:
        own: list[AnswerOf] = [getattr(row, role) for row in found.rows]
        alike = self_bleu([each.text for each in own], found.places) if not why_missing("bleu") else []
        for each, value in zip(own, alike, strict=False):
            if value is not None:
                each.scores["self_bleu"] = value


def _why_missing(now: SideAnswer, was: SideAnswer) -> str:
    """Why a prompt's answers cannot be compared; "" if they can."""
    for role, answer in (("candidate", now), ("baseline", was)):
        if answer.failed:
            return f"{role}: {answer.failed}"
    if now.cut != was.cut:
        return "the prompt does not fit the context of one of the models, which was asked only a part of it"
    return ""


def nothing_answered(reason: str) -> DataError:
    """The error where there is nothing to compare."""
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


def _answer_of(
    answer: SideAnswer, reference: str, kl: Mapping[str, Any], reward: float | None, *, by_words: bool
) -> AnswerOf:
    """An answer with its figures.

    Args:
        by_words: whether repetition is that of words, as the two models' tokens differ or are not known.
    """
    scores = {f"distinct_{n}": share for n in (1, 2) if (share := distinct_share(answer.text, n)) is not None}
    scores |= overlap(answer.text, reference) if reference else {}
    scores |= {"length_characters": float(len(answer.text))}
    if (k3 := finite_or_none(kl.get("k3"))) is not None:
        scores["kl_k3"] = k3
    return AnswerOf(
        text=answer.text,
        tokens=answer.tokens,
        ended=answer.ended,
        degenerate=degenerate_word(answer.text, None if by_words else answer.ids or None),
        reward=finite_or_none(reward),
        kl_per_token=finite_or_none(kl.get("k1")),
        entropy=finite_or_none(answer.entropy),
        scores=scores,
    )


def note_not_finite(
    found: Gathered, answers: Mapping[str, Sequence[SideAnswer]], kl: Mapping[str, Rows], scores: Rows
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
