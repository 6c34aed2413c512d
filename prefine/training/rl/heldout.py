"""Held-out answers: several to each held-out prompt, generated and scored at every evaluation.

An answer's random numbers depend only on the recipe's seed, its prompt and its number. So answers before and after
training differ only because of the policy, and the random numbers of training are not affected.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.trees import TokenTree
from prefine.degeneration import look_at
from prefine.intervals import evenly_chosen, mean_change, median_change
from prefine.objectives import kl
from prefine.objectives.masked import padded
from prefine.recipe.rl import PpoRecipe, RewardSource
from prefine.report.facts import by_prompt
from prefine.runs.atomic import JSON
from prefine.runs.directory import rows_of_kind
from prefine.training.rl.heldout_pairs import pair_accuracy, read_pairs
from prefine.training.rl.load_rewards import JUDGE, load_source
from prefine.training.rl.measure import measure
from prefine.training.rl.metrics import text_metrics
from prefine.training.rl.policy import Policy
from prefine.training.rl.reward_sources import ModelSource, RunningScale, Scaling
from prefine.training.rl.rewards import Rewards, shape, source_metrics
from prefine.training.rl.rollouts import (
    Generations,
    generate_answers,
    prompt_answers,
    seed_of,
)
from prefine.training.run.before import Before
from prefine.training.run.session import Session
from prefine.training.tracking.tracker import Details, numbers

# Columns of a held-out answer that are recorded before and after.
_KEPT = ("text", "score", "tokens", "ended", "degenerate", "judge")
# A fall of the pair accuracy by 0.1 counts as much as a fall of the judge's score by one standard deviation.
_PAIRS_FACTOR = 10.0


class HeldoutAnswers:
    """Evaluates the policy on answers to held-out prompts.

    Args:
        session: the opened run.
        policy: the policy in training.
        rewards: the rewards that are optimised.

    Attributes:
        details: what trackers show of the last evaluation.
    """

    def __init__(self, session: Session[PpoRecipe], policy: Policy, rewards: Rewards) -> None:
        self._session = session
        self._recipe = session.recipe
        self._policy = policy
        self._rewards = rewards
        heldout = session.prepared.heldout
        chosen = evenly_chosen(len(heldout), self._recipe.rollout.heldout_prompts) if len(heldout) else []
        self._trees: list[TokenTree] = [heldout[row] for row in chosen]
        self.before = Before(session.run.heldout_before)
        self._rows: list[dict[str, Any]] = []
        self._shares: dict[str, float] = {}
        self.details = Details()
        name = self._recipe.reward.judge
        self._judge = (
            None
            if name is None
            else load_source(JUDGE, RewardSource(name=name), self._recipe, session.loaded, "judge", session.display)
        )
        self._pairs = read_pairs(self._recipe, session.loaded.template)

    def fingerprints(self) -> dict[str, str]:
        """The hash of the judge's weights: see Rewards.fingerprints."""
        return {JUDGE: self._judge.fingerprint} if isinstance(self._judge, ModelSource) else {}

    def evaluate(self) -> dict[str, float]:
        """Means over all held-out answers; `loss` is the negative mean reward. The answers are kept for `finish`."""
        recipe = self._recipe
        if not self._trees:
            return {"loss": 0.0, **self._pair_metrics()}
        answers, scores = self._session.processes.all_or_raise(self._generate_and_score)
        self._rows = self._response_rows(answers, scores)
        self.before.keep(self._rows, write=self._session.processes.is_main)
        proxy = torch.tensor([row["score"] for row in self._rows])
        lengths, ended = torch.tensor(answers.lengths), torch.tensor(answers.ended)
        measured = self._measure(answers)
        k1 = kl.k1(measured["logprobs"], measured["reference"])
        k3 = kl.k3(measured["logprobs"], measured["reference"])
        shaped = shape(proxy, lengths, ended, recipe.reward, recipe.rollout.max_new_tokens)
        reward = float(shaped.mean()) - recipe.kl.coefficient * float(k1.sum()) / len(lengths)
        found = {
            "loss": -reward,
            "score": float(proxy.mean()),
            "score_median": statistics.median(proxy.tolist()),
            "kl_k1": float(k1.mean()),
            "kl_k3": float(k3.mean()),
            "entropy": float(measured["entropy"].mean()),
            **source_metrics(scores, self._shares),
            **text_metrics(answers.texts, answers.trees, answers.ended),
            **({} if self._judge is None else {"judge": statistics.fmean(row["judge"] for row in self._rows)}),
            **self._pair_metrics(),
        }
        self.details = self._shown(padded(k1, lengths)[0].sum(1))
        return {**found, **self._gap(found)}

    def _shown(self, of_answers: Tensor) -> Details:
        """Score, judge, length and KL of each answer.

        Args:
            of_answers: KL of each answer, nats.
        """
        rows = [
            {"score": row["score"], "response_tokens": row["tokens"], "judge": row["judge"], "kl_sequence": nats}
            for row, nats in zip(self._rows, of_answers.tolist(), strict=True)
        ]
        return Details(numbers(rows))

    def _generate_and_score(self) -> tuple[Generations, dict[str, list[float]]]:
        """Answers, and their scores by source; the judge's are under JUDGE."""
        recipe = self._recipe
        answers = generate_answers(
            self._policy.model,
            self._session.loaded.template,
            recipe,
            self._trees,
            lambda place, sample: seed_of(recipe.training.seed, "held-out", self._trees[place].row, sample),
            recipe.rollout.heldout_samples,
        )
        store = self._session.prepared.heldout
        questions = prompt_answers(answers, store, [tree.row for tree in self._trees])
        judged = {} if self._judge is None else {JUDGE: self._judge.score(questions)}
        return answers, {**self._rewards.score(questions), **judged}

    def _gap(self, now: Mapping[str, float]) -> dict[str, float]:
        """How far the judge's score or the pair accuracy has fallen since the start while the reward has risen."""
        rows = rows_of_kind(self._session.run.metrics, "heldout")
        if not rows or not {"judge", "pair_accuracy"} & now.keys():
            return {}
        falls = [
            (rows[0][name] - now[name]) * factor
            for name, factor in (("judge", 1.0), ("pair_accuracy", _PAIRS_FACTOR))
            if name in now
        ]
        return {"proxy_gap": max(falls) if now["score"] > rows[0]["score"] else 0.0}

    def finish(self) -> dict[str, JSON]:
        """Metrics and answers before and after, and the changes of the mean and the median score with intervals."""
        found: dict[str, JSON] = {**self._session.before_and_after()}
        if not self._rows:
            return found
        before = self.before.value
        responses = [
            {
                **{name: was[name] for name in ("row", "sample")},
                **{f"{when}_{name}": row[name] for when, row in (("before", was), ("after", now)) for name in _KEPT},
            }
            for was, now in zip(before, self._rows, strict=True)
        ]
        scores = by_prompt(responses, "before_score", "after_score")
        changes = {"mean_change": mean_change(*scores), "median_change": median_change(*scores)}
        return {
            **found,
            "count": len(self._trees),
            "samples": self._recipe.rollout.heldout_samples,
            **{name: None if change is None else asdict(change) for name, change in changes.items()},
            "responses": responses,
        }

    def _response_rows(self, answers: Generations, scores: dict[str, list[float]]) -> list[dict[str, Any]]:
        """The row that is recorded for each answer."""
        scalings = self._scalings(scores)
        weighted = {
            source.section.name: scalings[source.section.name].weighted(
                scores[source.section.name], source.section.weight
            )
            for source in self._rewards.sources
        }
        self._shares = {name: float(values.mean()) for name, values in weighted.items()}
        rows = []
        tokens = [answer for tree in answers.trees for answer in tree.answers]
        for place, text in enumerate(answers.texts):
            prompt, sample = divmod(place, self._recipe.rollout.heldout_samples)
            rows.append(
                {
                    "row": self._trees[prompt].row,
                    "sample": sample,
                    "text": text,
                    "score": float(sum(values[place] for values in weighted.values())),
                    "tokens": answers.lengths[place],
                    "ended": answers.ended[place],
                    "degenerate": look_at(text, tokens[place]).word,
                    "parts": {name: values[place] for name, values in scores.items()},
                    "judge": float(scalings[JUDGE].weighted(scores[JUDGE], 1.0)[place]) if JUDGE in scores else None,
                }
            )
        return rows

    def _scalings(self, scores: dict[str, list[float]]) -> dict[str, Scaling]:
        """How each source's scores are centred and scaled. A running scale is fixed by the first evaluation."""
        first = self.before.value

        def of_first(name: str) -> Scaling:
            seen = RunningScale()
            seen.update(scores[name] if first is None else [row["parts"][name] for row in first])
            return seen.scaling

        sources = {source.section.name: source for source in self._rewards.sources}
        if self._judge is not None:
            sources[JUDGE] = self._judge
        return {name: of_first(name) if each.scale == "running" else each.scaling for name, each in sources.items()}

    def _measure(self, answers: Generations) -> dict[str, Tensor]:
        limit = self._recipe.training.max_tokens_per_microbatch
        found = measure(self._policy.model, self._policy.reference_logprobs, [answers.trees], limit)
        return {
            name: torch.cat([found[tree.row][name] for tree in answers.trees])
            for name in ("logprobs", "reference", "entropy")
        }

    def _pair_metrics(self) -> dict[str, float]:
        if not self._pairs:
            return {}
        limit = self._recipe.training.max_tokens_per_microbatch
        return {"pair_accuracy": pair_accuracy(self._policy, self._pairs, limit)}
