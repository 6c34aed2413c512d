"""A reward model's scores of both models' answers, and its win rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from prefine.comparisons.result import AnswerRow, Winner, WinRate
from prefine.comparisons.win_rate import length_difference, win_rate
from prefine.errors import ModelError, about
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.parts import Parts
from prefine.evaluation.comparing.questions import EvaluationPrompt, digest_of
from prefine.evaluation.comparing.request import EvaluationRequest
from prefine.evaluation.comparing.sides import OWN_FIELDS, NamedSide
from prefine.models.loading.identity import scores_digest
from prefine.models.loading.location import locate_model
from prefine.models.scoring.packed_scorer import is_reward_model, load_reward
from prefine.models.scoring.scorer import Question, RewardModel
from prefine.recipe.sections import named_model

_BLOCK = 64


def reward_name(request: EvaluationRequest, candidate: NamedSide) -> tuple[str | None, str]:
    """The reward model that judges, and why there is none.

    That of the request, else the held-out judge of the candidate's run, else the reward model that it optimised.
    """
    if request.reward is not None:
        return request.reward, ""
    section = candidate.recipe.get("reward")
    if not isinstance(section, Mapping) or "name" not in section:
        return None, "no reward model was named (--reward)"
    name = str(section.get("judge") or section["name"])
    try:
        if not is_reward_model(locate_model(name)):
            return None, f"the reward of the candidate's run, {name}, gives no scores; name one with --reward"
    except ModelError as error:
        return None, f"the reward of the candidate's run cannot be used ({error.problem}); name one with --reward"
    return name, ""


def require_reward(name: str | None) -> None:
    """Refuse what is not a reward model before hours of other work.

    Raises:
        ModelError: there is no such model, or it gives no scores.
    """
    if name is None:
        return
    with about("reward", OWN_FIELDS):
        if not is_reward_model(locate_model(named_model(name).name)):
            raise ModelError(f"{name!r} generates text and gives no scores", "Name a reward model.", field="model.name")


def optimised_reward(name: str, candidate: NamedSide) -> bool:
    """Whether a candidate was trained to score highly by this reward model, by whatever name."""
    section = candidate.recipe.get("reward")
    if not isinstance(section, Mapping) or "name" not in section:
        return False
    try:
        return section["name"] == name or _scores_of(str(section["name"])) == _scores_of(name)
    except ModelError:  # the run's reward model is gone
        return False


def _scores_of(name: str) -> str:
    return scores_digest(locate_model(name))


def score_answers(
    name: str,
    request: EvaluationRequest,
    prompts: Sequence[EvaluationPrompt],
    answers: Mapping[str, Sequence[SideAnswer]],
    parts: Parts,
) -> list[dict[str, Any]]:
    """For each prompt the scores by role; None where there is no answer, or where it leaves its prompt no room.

    Args:
        prompts: of each answer.

    Raises:
        ModelError: it is not a reward model, or cannot be loaded.
    """
    with about("reward", OWN_FIELDS):
        section = named_model(name, device=request.device)
        digest = scores_digest(locate_model(section.name))
    loaded: list[RewardModel] = []

    def compute(places: range) -> Iterator[dict[str, Any]]:
        if not loaded:
            with about("reward", OWN_FIELDS):
                loaded.append(load_reward(section))
        yield from _scored(loaded[0], [(prompts[place], {r: answers[r][place] for r in answers}) for place in places])

    texts = digest_of([[(each.text, each.failed) for each in answers[role]] for role in answers])
    return parts.rows("reward-scores", {"reward": digest, "answers": texts}, len(prompts), _BLOCK, compute)


def _scored(
    reward: RewardModel, asked: Sequence[tuple[EvaluationPrompt, Mapping[str, SideAnswer]]]
) -> Iterator[dict[str, Any]]:
    whole = [all(not each.failed for each in answers.values()) for _, answers in asked]
    questions = (
        Question(prompt.prompt, [each.text for each in answers.values()], prompt.tools)
        for (prompt, answers), is_whole in zip(asked, whole, strict=True)
        if is_whole
    )
    scores = reward.score(questions)
    for (_, answers), is_whole in zip(asked, whole, strict=True):
        found = next(scores) if is_whole else None
        yield {role: None if found is None else found[place].score for place, role in enumerate(answers)}


def reward_win_rate(name: str, rows: Sequence[AnswerRow], places: Sequence[int]) -> tuple[WinRate, dict[int, Winner]]:
    """The win rate by the scores of the answers, and the winner of each prompt; several answers are averaged.

    Args:
        places: the number of each row's prompt.
    """
    groups: dict[int, list[AnswerRow]] = {}
    for row, place in zip(rows, places, strict=True):
        groups.setdefault(place, []).append(row)
    winners: dict[int, Winner | None] = {place: _winner(group) for place, group in groups.items()}
    differences = [fmean(map(length_difference, group)) for group in groups.values()]
    known: dict[int, Winner] = {place: winner for place, winner in winners.items() if winner is not None}
    return win_rate(name, list(winners.values()), differences), known


def _winner(rows: Sequence[AnswerRow]) -> Winner | None:
    # Equal texts are equal: at other places of a batch their scores may differ by rounding.
    differences = [
        0.0 if row.candidate.text == row.baseline.text else row.candidate.reward - row.baseline.reward
        for row in rows
        if row.candidate.reward is not None and row.baseline.reward is not None
    ]
    if not differences:
        return None
    mean = fmean(differences)
    return "tie" if mean == 0 else "candidate" if mean > 0 else "baseline"
