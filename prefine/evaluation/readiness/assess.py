"""Computes a readiness report's figures from a reward model and human judgements."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from prefine.errors import DataError
from prefine.evaluation.readiness import measures
from prefine.evaluation.readiness.pairs import JudgedPair, as_trained_on, judge
from prefine.evaluation.readiness.probes import (
    INVARIANCES,
    SPOILT_ANSWERS,
    Spoilt,
    Variance,
    spoilt_answers,
    variances,
)
from prefine.evaluation.readiness.verdict import Finding, Level, Measured, findings, verdict
from prefine.formatting import listing, plural
from prefine.intervals import Share
from prefine.models.scoring.scorer import RewardModel
from prefine.recipe.reward import ReadinessSection
from prefine.records import Conversation, Preference, Vote

_MOST_SUSPECTS_LISTED = 100


@dataclass(frozen=True)
class Readiness:
    """Whether a reward model is fit for PPO, with all figures.

    Attributes:
        model: its name.
        data: description of the data that it was judged on.
        assessed_at: ISO time with its zone.
        scope: how much was scored, and which settings increase it.
        verdict: the worst finding's level.
        too_long: records left out because an answer is too long for the model.
        suspects: labels that look flipped, the most suspicious first.
    """

    model: str
    data: str
    assessed_at: str
    scope: str
    verdict: Level
    findings: list[Finding]
    accuracy: Share
    train_accuracy: Share | None
    by_group: list[measures.PairGroup]
    by_data_margin: list[measures.PairGroup]
    by_score_margin: list[measures.PairGroup]
    calibration: measures.Calibration | None
    length: measures.LengthBias
    variances: list[Variance]
    spoilt: list[Spoilt]
    pairs: list[JudgedPair]
    suspects: list[JudgedPair]
    looked_at: int
    std: float
    too_long: int

    @property
    def reasons(self) -> list[Finding]:
        """Findings against the model, the worst first."""
        order = list(Level)
        found = [finding for finding in self.findings if finding.level is not Level.GO]
        return sorted(found, key=lambda finding: -order.index(finding.level))

    def as_json(self) -> dict[str, Any]:
        """The content of readiness.json: every share with its interval, and each pair's scores."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("pairs", "suspects")]
        return {
            **{name: _plain(getattr(self, name)) for name in names},
            "suspected": len(self.suspects),
            "suspects": [_suspect(pair) for pair in self.suspects[:_MOST_SUSPECTS_LISTED]],
            "pairs": [_scores(pair) for pair in self.pairs],
        }


def assess(
    reward: RewardModel,
    heldout: Iterable[Preference | Vote],
    limits: ReadinessSection,
    *,
    data: str,
    trained_on: Iterable[tuple[Preference | Vote, int | None]] = (),
    rows_in_all: tuple[int, int] | None = None,
    is_trained_prompt: Callable[[Conversation], bool] = lambda prompt: False,
    progress: Callable[[int], None] = lambda done: None,
    now: datetime | None = None,
) -> Readiness:
    """Judge a reward model on records it has not seen, and look for flipped labels also among those it was trained on.

    Args:
        heldout: preferences, or votes.
        limits: a recipe's thresholds.
        data: description of `heldout`.
        trained_on: some training records, each with the head that skipped it, if any.
        rows_in_all: numbers of held-out and training rows of the run, if not all are given here.
        is_trained_prompt: whether a prompt was trained on.
        progress: called with the amount done, out of `work`.
        now: the time; default: the clock's.

    Raises:
        DataError: there is no usable pair.
    """
    done = _Counter(progress)
    judged, heldout_rows = _scored(reward, heldout, done)
    pairs = [pair for pair in judged if pair is not None]
    accuracy = measures.accuracy(pairs)
    if accuracy is None:
        raise DataError(
            f"{data}: it holds no pair with a preferred answer that the model can score",
            "Give preferences (ties do not count), or votes of both kinds.",
        )
    learned = list(trained_on)
    known, _ = _scored(reward, [record for record, _ in learned], done)
    trained = _out_of_part(known, learned)
    std = statistics.pstdev([side.score.score for pair in pairs for side in (pair.chosen, pair.rejected)]) or 1.0
    everything = [*pairs, *trained]
    suspects = measures.suspects(everything, limits.suspect_probability)
    measured = Measured(
        accuracy=accuracy,
        train_accuracy=measures.accuracy([pair for pair in known if pair is not None]),
        calibration=measures.calibration(pairs),
        length=measures.length_bias(pairs),
        variances=variances(reward, pairs, std, done),
        spoilt=spoilt_answers(reward, pairs, std, done),
        suspects=len(suspects),
        looked_at=len(everything),
        shared_prompts=sum(
            is_trained_prompt(pair.chosen.prompt) or is_trained_prompt(pair.rejected.prompt) for pair in pairs
        ),
        std=std,
    )
    found = findings(measured, limits)
    return Readiness(
        model=reward.name,
        data=data,
        assessed_at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        scope=_scope((heldout_rows, len(learned)), rows_in_all or (heldout_rows, len(learned)), measured.spoilt),
        verdict=verdict(found),
        findings=found,
        accuracy=accuracy,
        train_accuracy=measured.train_accuracy,
        by_group=measures.by_group(pairs),
        by_data_margin=measures.by_data_margin(pairs),
        by_score_margin=measures.by_score_margin(pairs),
        calibration=measured.calibration,
        length=measured.length,
        variances=list(measured.variances),
        spoilt=list(measured.spoilt),
        pairs=pairs,
        suspects=suspects,
        looked_at=len(everything),
        std=std,
        too_long=len(judged) - len(pairs),
    )


def work(heldout_rows: int, trained_rows: int) -> int:
    """The amount of work of `assess`: each scored row, corrupted answer and invariance probe counts as one."""
    return heldout_rows + trained_rows + min(heldout_rows, SPOILT_ANSWERS) + INVARIANCES


class _Counter:
    """Adds up the work done."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, more: int = 1) -> None:
        self._done += more
        self._progress(self._done)


def _scored(
    reward: RewardModel, records: Iterable[Preference | Vote], done: Callable[[int], None]
) -> tuple[list[JudgedPair | None], int]:
    """Pairs with their scores, and the number of records they come from, with ties and votes without a partner."""
    rows, rows_of_pair = 0, 1

    def counted() -> Iterator[Preference | Vote]:
        nonlocal rows, rows_of_pair
        for record in records:
            rows, rows_of_pair = rows + 1, 2 if isinstance(record, Vote) else 1
            yield record

    found = []
    for pair in judge(reward, counted()):
        found.append(pair)
        done(rows_of_pair)
    return found, rows


def _scope(scored: tuple[int, int], in_all: tuple[int, int], spoilt: Sequence[Spoilt]) -> str:
    """A sentence on how much was scored; `scored` and `in_all` are held-out and training rows."""
    settings = ("readiness.heldout_pairs", "readiness.trained_pairs")
    names = ("held-out row", "training row"), ("held-out rows", "training rows")
    parts = []
    for rows, total, setting, one, several in zip(scored, in_all, settings, *names, strict=True):
        if rows == total:
            parts += [plural(rows, one, several)] if rows else []
        else:
            parts.append(f"{rows:,} of {plural(total, one, several)} ({setting})")
    tried = max((each.fooled.count or 0 for each in spoilt), default=0)
    if tried:
        parts.append(f"{plural(tried, 'preferred answer')} corrupted in {plural(len(spoilt), 'way')}")
    return f"Scored for this report: {listing(parts)}."


def _out_of_part(
    known: Sequence[JudgedPair | None], learned: Sequence[tuple[Preference | Vote, int | None]]
) -> list[JudgedPair]:
    """Training pairs as the head that skipped them judges. Pairs of votes mix two rows, so all heads judge them."""
    decided = [(record, head) for record, head in learned if not (isinstance(record, Preference) and record.tie)]
    of_votes = any(isinstance(record, Vote) for record, _ in learned)
    heads = [None] * len(known) if of_votes else [head for _, head in decided]
    return [as_trained_on(pair, head) for pair, head in zip(known, heads, strict=True) if pair is not None]


def _scores(pair: JudgedPair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "group": pair.group,
        "chosen_score": pair.chosen.score.score,
        "rejected_score": pair.rejected.score.score,
        "disagreement": pair.disagreement,
        "chosen_tokens": pair.chosen.score.tokens,
        "rejected_tokens": pair.rejected.score.tokens,
        "data_margin": pair.data_margin,
    }


def _suspect(pair: JudgedPair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "trained_on": pair.trained_on,
        "margin": pair.margin,
        "probability": measures.probability(pair.margin),
        "prompt": [message.model_dump() for message in pair.chosen.prompt],
        "chosen": pair.chosen.answer,
        "rejected": pair.rejected.answer,
    }


def _plain(value: Any) -> Any:
    """Dataclasses as JSON, with intervals of shares."""
    if isinstance(value, Share):
        interval = value.interval
        return {
            "value": value.value,
            "count": value.count,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value
