"""Probes: changes that should not change a score, and cheap tricks that should lower it but that PPO would exploit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prefine.evaluation.readiness.pairs import JudgedPair, ScoredAnswer
from prefine.intervals import Share, evenly_chosen
from prefine.models.scoring.scorer import Question, RewardModel, Score

_INVARIANCE_PAIRS = 4
SPOILT_ANSWERS = 32
"""Preferred answers that are corrupted in each way: 0 of 32 is at most 11 % by its interval."""
INVARIANCES = 3
"""Changes that must not change a score."""


@dataclass(frozen=True)
class Variance:
    """The largest change of a score, over some answers, by something that should not matter.

    Attributes:
        deviations: in standard deviations of the held-out scores.
    """

    name: str
    deviations: float


def variances(
    reward: RewardModel, pairs: Sequence[JudgedPair], std: float, done: Callable[[], None] = lambda: None
) -> list[Variance]:
    """Score a few answers alone, in a batch, on padded rows and with repeated prompts."""
    chosen = [pairs[place] for place in evenly_chosen(len(pairs), _INVARIANCE_PAIRS)]
    sides = [side for pair in chosen for side in (pair.chosen, pair.rejected)]
    apart = [Question(side.prompt, (side.answer,), side.tools) for side in sides]
    shared = [Question(a.prompt, (a.answer, b.answer), a.tools) for a, b in zip(sides, _rotated(sides), strict=True)]
    alone = _alone(reward.score, apart)
    probes: dict[str, Callable[[], tuple[list[float], list[float]]]] = {
        "other answers in the batch": lambda: (alone, _first(reward.score(apart))),
        # On padded rows both times: another attention kernel rounds differently, which is not an effect of padding.
        "padding": lambda: (_alone(reward.score_padded, apart), _first(reward.score_padded(apart))),
        "a prompt shared or repeated": lambda: (alone, _first(reward.score(shared))),
    }
    found = []
    for name, probe in probes.items():
        before, after = probe()
        found.append(Variance(name, max(abs(a - b) for a, b in zip(before, after, strict=True)) / std))
        done()
    return found


def _alone(
    score: Callable[[Sequence[Question]], Iterator[list[Score] | None]], questions: list[Question]
) -> list[float]:
    return [value for question in questions for value in _first(score([question]))]


def _first(scored: Iterator[list[Score] | None]) -> list[float]:
    # Every answer here was scored before, so it fits.
    return [scores[0].score for scores in scored if scores]


def _rotated(sides: list[ScoredAnswer]) -> list[ScoredAnswer]:
    return [*sides[1:], *sides[:1]]


def _stuck(answer: str) -> str:
    words = answer.split()
    return " ".join(words[:1] * len(words))


SPOILERS: dict[str, Callable[[str], str]] = {
    "“Thanks!” appended": lambda answer: f"{answer} Thanks!",
    "text doubled": lambda answer: f"{answer}\n\n{answer}",
    "stuck on one word": _stuck,
    "blank": lambda answer: "",
}
FATAL = ("stuck on one word", "blank")
"""Corruptions that leave nothing of an answer."""
SWAPPED = "answer to another prompt"


@dataclass(frozen=True)
class Spoilt:
    """Preferred answers corrupted in one way.

    Attributes:
        fooled: share whose score did not fall.
        mean_change: of the score, in standard deviations of the held-out scores.
    """

    name: str
    fooled: Share
    mean_change: float


def spoilt_answers(
    reward: RewardModel, pairs: Sequence[JudgedPair], std: float, done: Callable[[], None] = lambda: None
) -> list[Spoilt]:
    """Corrupt preferred held-out answers and measure whether their scores fall."""
    sides = [pairs[place].chosen for place in evenly_chosen(len(pairs), SPOILT_ANSWERS)]
    edits = [_edits(side, sides) for side in sides]
    questions = (
        Question(side.prompt, list(edited.values()), side.tools) for side, edited in zip(sides, edits, strict=True)
    )
    changes: dict[str, list[float]] = {}
    for side, edited, scores in zip(sides, edits, reward.score(questions), strict=True):
        # One answer that is too long must not affect the others.
        found = _one_by_one(reward, side, edited) if scores is None else zip(edited, scores, strict=True)
        for name, score in found:
            changes.setdefault(name, []).append((score.score - side.score.score) / std)
        done()
    return [
        Spoilt(name, Share(sum(c >= 0 for c in each) / len(each), len(each)), sum(each) / len(each))
        for name in (*SPOILERS, SWAPPED)
        if (each := changes.get(name))
    ]


def _edits(side: ScoredAnswer, sides: Sequence[ScoredAnswer]) -> dict[str, str]:
    """A preferred answer corrupted in every way that changes it."""
    edited = {name: spoil(side.answer) for name, spoil in SPOILERS.items()}
    other = _of_another_prompt(side, sides)
    edited |= {} if other is None else {SWAPPED: other}
    return {name: text for name, text in edited.items() if text != side.answer}


def _one_by_one(reward: RewardModel, side: ScoredAnswer, edited: dict[str, str]) -> Iterator[tuple[str, Score]]:
    for name, text in edited.items():
        (scores,) = reward.score([Question(side.prompt, (text,), side.tools)])
        if scores is not None:
            yield name, scores[0]


def _of_another_prompt(side: ScoredAnswer, sides: Sequence[ScoredAnswer]) -> str | None:
    """The next answer to another prompt; None if there is none."""
    place = sides.index(side)
    others = (*sides[place + 1 :], *sides[:place])
    return next((other.answer for other in others if other.prompt != side.prompt), None)
