"""Reward modelling on pairs, or on single answers with votes: scores, margins, losses, mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from prefine.data.reading.source_names import source_names
from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import PackedBatch, collate, folds, microbatches
from prefine.errors import DataError, RecipeError
from prefine.models.forward.packed import PackedModel, evaluating
from prefine.models.forward.path_probe import rounding
from prefine.models.loading.load import LoadedModel, load_model
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import PackedReward, read_scale
from prefine.models.scoring.scorer import ScoreScale
from prefine.objectives import reward
from prefine.recipe.effects import Unread, without_effect
from prefine.recipe.reward import RewardRecipe, RewardSection
from prefine.recipe.sections import DataSection, ModelSection
from prefine.records import Preference, Vote
from prefine.runs.atomic import JSON
from prefine.runs.directory import RunDirectory
from prefine.training.display import Display
from prefine.training.loop.contract import Sums
from prefine.training.run.checks import SelfCheck, check_scores, require
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Stage
from prefine.training.stages.readiness import as_warnings, renew_readiness, report_readiness
from prefine.training.tracking.tracker import Details

# Answers that are scored alone and together at the start.
_CHECKED_ROWS = 4


def run_reward(recipe: RewardRecipe, resume: bool, display: Display | Console) -> Path:
    """Train a reward model as the recipe says; returns the run's folder. Raises PrefineError."""
    return run_stage(RewardStage(recipe), resume, display)


def _record_type(data: DataSection) -> type[Preference] | type[Vote]:
    """The type of a recipe's records.

    Raises:
        DataError: the data are neither preferences nor votes, or cannot be found or read.
    """
    kind = kind_of_sources(source_names(data.train), split=data.split, text=data.text_form, rules=data.row_rules)
    found = KINDS[kind]
    if found not in (Preference, Vote):
        raise DataError(
            f"{data.train} holds {kind}",
            "A reward model learns from preferences, or from votes.",
            field="data.train",
        )
    return found


@dataclass(frozen=True)
class Labels:
    """Labels of B rows.

    Attributes:
        right: (B,) of pairs, the probability that the label is right: 1, or 1/2 for a tie; of votes, 1 for up, 0 for
            down.
        wanted: (B,) margin that the data asks for, nats; 0 if none.
    """

    right: Tensor
    wanted: Tensor

    @property
    def decided(self) -> Tensor:
        """(B,) bool: not a tie."""
        return self.right != 0.5

    @staticmethod
    def of(records: Sequence[dict[str, Any]], section: RewardSection, mean_difference: float = 1.0) -> Labels:
        """Read the labels from stored records.

        Args:
            mean_difference: mean score difference of the training pairs, in the unit of the data's scores.
        """
        if "label" in records[0]:
            up = torch.tensor([float(record["label"]) for record in records])
            return Labels(up, torch.zeros_like(up))
        right = torch.tensor([0.5 if record["tie"] else 1.0 for record in records])
        wanted = torch.tensor([_wanted(record, section, mean_difference) for record in records])
        return Labels(right, wanted)


def _wanted(pair: dict[str, Any], section: RewardSection, mean_difference: float) -> float:
    """The margin that a stored pair asks for, nats (Touvron et al. 2023, arXiv 2307.09288, eq. 2).

    A column `margin` is used as it is. Scores may have any scale (8.5 against 3 out of 10, or 0.9 against 0.2), so
    their differences are divided by the mean difference: an average pair asks for `margin_scale`.
    """
    if pair["tie"] or section.margins == "none":
        return 0.0
    margin, difference = pair["margin"], pair.get("score_difference")
    if margin is None and difference is not None and section.margins == "scores":
        margin = difference / mean_difference
    return section.margin_scale * (margin or 0.0)


def mean_score_difference(pairs: Iterable[dict[str, Any]]) -> float | None:
    """Mean over the stored pairs with scores and without a margin of their own, except ties; None if there are none."""
    differences = [
        pair["score_difference"]
        for pair in pairs
        if pair.get("score_difference") is not None and pair["margin"] is None and not pair["tie"]
    ]
    return fmean(differences) if differences else None


def row_losses(raw: Tensor, labels: Labels, section: RewardSection) -> Tensor:
    """(B, k): the loss of each row under each head, from the raw scores of its answers (B, answers a row, k)."""
    smoothing, right = section.label_smoothing, labels.right[:, None]
    if raw.shape[1] == 1:
        return reward.vote(raw[:, 0], right, smoothing)
    objective: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "bradley_terry": reward.bradley_terry,
        "hinge": reward.hinge,
    }
    chosen, rejected = raw.unbind(1)
    loss = objective[section.loss](chosen - rejected - labels.wanted[:, None], right - smoothing * (2 * right - 1))
    return loss + section.centring_weight * reward.centring(chosen, rejected)


def margins(raw: Tensor, labels: Labels) -> Tensor:
    """(B,) r(chosen) - r(rejected), or the score with the vote's sign; above 0 as labelled. Mean of the heads."""
    mean = raw.detach().mean(-1)
    if mean.shape[1] == 1:
        return mean[:, 0] * (2 * labels.right - 1)
    return mean[:, 0] - mean[:, 1]


class RewardStage(Stage[RewardRecipe, Preference | Vote]):
    """Trains a model that scores answers, on preferences or votes, whichever the recipe's data holds.

    Raises:
        DataError: the data hold other records, or cannot be found or read.
    """

    name = "reward"

    def __init__(self, recipe: RewardRecipe) -> None:
        super().__init__(recipe)
        self.record_type = _record_type(recipe.data)

    def load(self, section: ModelSection) -> LoadedModel:
        """Load the model with score heads instead of its language head."""
        return load_model(section, self.recipe.lora, heads=self.recipe.reward.heads)

    def start(self, session: Session[RewardRecipe]) -> RewardObjective:
        """Check that there are rows to train on and to evaluate on."""
        train, heldout = session.prepared.train, session.prepared.heldout
        _require_heldout(heldout)
        mean_difference = 1.0
        if self.record_type is Vote:
            _require_settings_of_votes(self.recipe)
            _require_both_votes(train)
        elif self.recipe.reward.margins == "scores":
            mean_difference = _unit_of_scores(session)
        if self.recipe.training.self_checks:
            session.record_checks(require([_check_scores(session.loaded.packed, train)]))
        return RewardObjective(session, self.record_type, mean_difference)

    def renew(self, run: RunDirectory, display: Display) -> None:
        """Make the readiness report again if its thresholds have changed."""
        renew_readiness(self.recipe, self.record_type, run, display)


class RewardObjective(Objective[RewardRecipe]):
    """The losses of pairs or votes under each score head, a mean over rows and heads.

    Args:
        session: the opened run.
        record_type: the type of its rows.
        mean_difference: see Labels.of.
    """

    def __init__(
        self, session: Session[RewardRecipe], record_type: type[Preference | Vote], mean_difference: float
    ) -> None:
        super().__init__(session)
        self._section = session.recipe.reward
        self._record_type = record_type
        self._mean_difference = mean_difference
        rows = len(session.prepared.train)
        self._part = torch.tensor(folds(rows, self._section.heads, session.recipe.training.seed))
        self._raw: Tensor | None = None
        self._decided = 0
        self._details: dict[str, list[float]] = {}

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of a microbatch of training rows, with accuracy and margin; each head leaves out its own part."""
        labels, count = self._labels(self._session.prepared.train, batch.rows), self._section.heads
        raw = _by_row(model(batch), len(batch.rows)).to(labels.right.device)
        losses = row_losses(raw, labels, self._section)
        if count > 1:
            part = self._part[list(batch.rows), None].to(losses.device)
            losses = losses * (part != torch.arange(count, device=losses.device)) * (count / (count - 1))
        margin = margins(raw, labels)
        accuracy = torch.where(labels.decided, (margin > 0).float(), 0.5)
        logged = {"accuracy": float(accuracy.sum()), "margin": float(margin.sum())}
        return Sums(losses.mean(1).sum(), "trees", logged)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out log-loss (nats; chance is ln 2), accuracy over decided rows, mean margin and scores."""
        model, heldout = self._session.loaded.packed, self._session.prepared.heldout
        limit = self._session.recipe.training.max_tokens_per_microbatch
        batches = (collate(run) for run in microbatches(heldout, limit))
        self._raw = torch.cat([model(batch.to(model.device)).cpu() for batch in batches])
        raw, labels = _by_row(self._raw, len(heldout)), self._labels(heldout, range(len(heldout)))
        margin, decided = margins(raw, labels), labels.decided
        self._decided = int(decided.sum())
        # On the plain label, whatever the objective trains on, so that runs can be compared.
        sure = torch.where(decided, 1.0, 0.5)
        metrics = {
            "loss": float(reward.bradley_terry(margin, sure).mean()),
            "accuracy": float((margin > 0)[decided].float().mean()) if decided.any() else 0.5,
            "margin": float(margin.mean()),
        }
        mean = raw.mean(-1)
        if mean.shape[1] == 2:
            metrics |= {"score_chosen": float(mean[:, 0].mean()), "score_rejected": float(mean[:, 1].mean())}
            self._details = {"score_chosen": mean[:, 0].tolist(), "score_rejected": mean[:, 1].tolist()}
        self._details["margin"] = margin.tolist()
        return metrics

    def heldout_details(self) -> Details:
        """Margin and scores of each held-out row."""
        return Details(self._details)

    def extra_files(self) -> dict[str, JSON]:
        """The scale of the scores, measured on the held-out answers."""
        return {SCALE_FILE: self._scale().as_json()}

    def finish(self) -> dict[str, JSON]:
        """Held-out metrics before and after; writes the readiness report and shows its verdict."""
        session = self._session
        reward_model = PackedReward(session.loaded, read_scale(session.run.model))
        reward_model.name = str(session.run.path)  # the run, not the model that it began with
        train, heldout = session.prepared.train, session.prepared.heldout
        readiness = report_readiness(
            reward_model, train, heldout, session.recipe, self._record_type, session.run, session.display
        )
        session.warnings += as_warnings(readiness)
        session.manifest["readiness"] = readiness.verdict.value
        # Ties have no right order: accuracy is over the other rows.
        unit = "vote" if self._record_type is Vote else "pair"
        return {**session.before_and_after(), "count": self._decided, "unit": unit}

    def _scale(self) -> ScoreScale:
        if self._raw is None:  # resumed after the last step: no step of this process has evaluated
            self.evaluate()
        assert self._raw is not None  # noqa: S101
        return ScoreScale.of(
            self._raw,
            self._session.recipe.data.max_length_tokens,
            quantization=self._session.recipe.model.quantization,
            compute_dtype=self._session.manifest["model"]["compute_dtype"],
        )

    def _labels(self, store: TokenStore, rows: Sequence[int]) -> Labels:
        return Labels.of([json.loads(store.record_json(row)) for row in rows], self._section, self._mean_difference)


def _unit_of_scores(session: Session[RewardRecipe]) -> float:
    train = session.prepared.train
    mean = mean_score_difference(json.loads(train.record_json(row)) for row in range(len(train)))
    if mean is None:
        raise DataError(
            "reward.margins is scores, but no pair of data.train has scores (chosen_score and rejected_score)",
            "Add the two columns, or set reward.margins to column or none.",
        )
    session.display.say(
        f"margins: a score difference of {mean:.3g}, the average, asks for a margin of "
        f"{session.recipe.reward.margin_scale:g} nats"
    )
    return mean or 1.0


@torch.no_grad()
def _check_scores(model: PackedModel, train: TokenStore) -> SelfCheck:
    trees = train[: min(_CHECKED_ROWS, len(train))]
    with evaluating(model):
        together = model(collate(trees).to(model.device))
        batches = [collate([tree]).to(model.device) for tree in trees]
        alone = [model(batch) for batch in batches]
        noise = max(rounding(model, batch, scores) for batch, scores in zip(batches, alone, strict=True))
    return check_scores(torch.cat(alone), together, noise)


def _require_settings_of_votes(recipe: RewardRecipe) -> None:
    of_pairs = ("reward.loss", "reward.centring_weight", "reward.margins", "reward.margin_scale")
    rule = Unread(True, of_pairs, "the data are votes, not pairs", "data.train to preferences")
    if unread := without_effect(recipe, [rule]):
        raise RecipeError("; ".join(unread), "Leave them out: each vote has a loss of its own.")


def _by_row(raw: Tensor, rows: int) -> Tensor:
    """(answers, k) as (rows, answers a row, k)."""
    return raw.view(rows, -1, raw.shape[-1])


def _require_heldout(heldout: TokenStore) -> None:
    if len(heldout) < 2:
        raise DataError(
            f"data: {len(heldout)} rows are held out, but a reward model must be evaluated on pairs it has not seen "
            "(all rows of one prompt stay together)",
            "Give rows with more prompts, raise data.heldout_fraction, or name data.heldout.",
        )


def _require_both_votes(train: TokenStore) -> None:
    seen: set[bool] = set()
    for row in range(len(train)):
        seen.add(bool(json.loads(train.record_json(row))["label"]))
        if len(seen) == 2:
            return
    raise DataError(
        f"all {len(train)} votes are {'up' if seen == {True} else 'down'}",
        "A reward model learns from differences: use votes of both kinds, or preference pairs.",
        field="data.train",
    )
