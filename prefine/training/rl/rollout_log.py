"""rollouts.jsonl: some answers of some updates, for the report."""

from __future__ import annotations

from typing import Any

from prefine.intervals import evenly_chosen
from prefine.recipe.rl import PpoRecipe
from prefine.runs.atomic import atomic_write, json_bytes
from prefine.runs.directory import read_metrics, step_of
from prefine.training.rl.rollouts import Rollouts, conversation_of
from prefine.training.run.session import Session

_KEPT_ANSWERS = 8


class RolloutLog:
    """Records some answers of every n-th update.

    Args:
        session: the opened run. n is training.sample_every_steps of its recipe; None records nothing.
    """

    def __init__(self, session: Session[PpoRecipe]) -> None:
        self._session = session
        self._every_steps = session.recipe.training.sample_every_steps

    def record(self, rollouts: Rollouts, step: int) -> list[dict[str, Any]]:
        """Record some answers of the update if it is an n-th one. Rows of this step and later ones are replaced.

        Args:
            step: number of the update, from 1.

        Returns: what it recorded.
        """
        if self._every_steps is None or step % self._every_steps or not self._session.processes.is_main:
            return []
        path = self._session.run.rollouts
        kept = [row for row in read_metrics(path) if step_of(row, 0) < step]
        added = []
        each = len(rollouts.lengths) // len(rollouts.trees)
        for place in evenly_chosen(len(rollouts.texts), _KEPT_ANSWERS):
            prompt = conversation_of(self._session.prepared.train, rollouts.rows[place // each])
            added.append(
                {
                    "step": step,
                    "prompt": [message.model_dump() for message in prompt],
                    "response": rollouts.texts[place],
                    "score": float(rollouts.scored.proxy[place]),
                    "scores": {name: values[place] for name, values in rollouts.scored.scores.items()},
                    "reward": float(rollouts.scored.shaped[place]),
                    "tokens": int(rollouts.lengths[place]),
                    "ended": bool(rollouts.ended[place]),
                }
            )
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(map(json_bytes, kept + added)))
        return added
