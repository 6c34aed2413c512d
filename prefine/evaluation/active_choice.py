"""Active choice: a project's items in the order in which their labels are expected to teach a reward model the most."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prefine.annotation.priorities import priorities
from prefine.annotation.project import Project, ProjectReader
from prefine.annotation.records import ANSWERS, Kind
from prefine.errors import DataError, ModelError
from prefine.evaluation.comparing.rewards import require_reward
from prefine.models.loading.location import locate_model
from prefine.models.scoring.packed_scorer import scale_of
from prefine.models.scoring.scorer import Question, RewardModel
from prefine.records import Message


def require_heads(name: str) -> None:
    """Refuse a reward model whose heads cannot disagree, before any work.

    Raises:
        ModelError: there is no such model, it gives no scores, or it has one head only.
    """
    require_reward(name)
    scale = scale_of(locate_model(name))  # of several heads only prefine's own models are known, which have a scale
    if scale is None or len(scale.bias) < 2:
        raise ModelError(
            f"{name} has one head, and disagreement needs at least two",
            "Name a run that was trained with reward.heads: 4, or choose another order.",
            field="reward",
        )


def require_pairs(kind: Kind) -> None:
    """Refuse a project whose items have one answer each: its labels compare nothing.

    Raises:
        DataError: the kind is thumb or rewrite.
    """
    if ANSWERS[kind][1] < 2:
        raise DataError(
            f"an item of kind {kind} has one answer, and disagreement is about which answer is better",
            "Choose another order, or a project of kind compare or rank.",
            field="reward",
        )


def order_by_disagreement(
    project: Project, reward: RewardModel, progress: Callable[[int], None] = lambda done: None
) -> int:
    """Hand out first what the heads disagree on; see prefine.annotation.priorities. Returns how many have no score.

    Items without a score, whose answers leave their prompt no room, come last.

    Args:
        progress: called with the number of items that are scored.

    Raises:
        DataError: the project's items have one answer each, or the file cannot be used.
        ModelError: a score is not finite.
        PrefineError: the reward model has one head.
    """
    require_pairs(project.settings.kind)
    scores: dict[int, list[tuple[float, ...]]] = {}
    without = []
    asked: list[int] = []
    for done, found in enumerate(reward.score(_questions(project, asked))):
        if found is None:
            without.append(asked[done])
        else:
            scores[asked[done]] = [each.heads for each in found]
        progress(done + 1)
    project.prioritise(priorities(scores, project.settings.seed) | dict.fromkeys(without, 0.0))
    return len(without)


def _questions(project: ProjectReader, asked: list[int]) -> Iterator[Question]:
    """The items as questions; their numbers are appended to `asked`."""
    for item in project.items():
        asked.append(item.id)
        prompt = tuple(Message.model_validate({"role": turn.role, "content": turn.content}) for turn in item.prompt)
        yield Question(prompt, [answer.text for answer in item.answers])
