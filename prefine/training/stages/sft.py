"""Supervised fine-tuning on demonstrations, or on the chosen answers of preferences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from prefine.data.tokens.trees import PackedBatch, collate, microbatches
from prefine.objectives.masked import per_sequence
from prefine.objectives.sft import token_nll
from prefine.recipe.sft import SftRecipe
from prefine.records import Demonstration
from prefine.runs.atomic import JSON
from prefine.training.display import Display
from prefine.training.loop.contract import Sums
from prefine.training.run.before import Before
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Stage
from prefine.training.tracking.tracker import Details, numbers


def run_sft(recipe: SftRecipe, resume: bool, display: Display | Console) -> Path:
    """Fine-tune as the recipe says; returns the run's folder. Raises PrefineError."""
    return run_stage(SftStage(recipe), resume, display)


class SftStage(Stage[SftRecipe, Demonstration]):
    """Learns from demonstrations."""

    name = "sft"
    record_type = Demonstration

    def start(self, session: Session[SftRecipe]) -> SftObjective:
        """See Stage."""
        return SftObjective(session)


class SftObjective(Objective[SftRecipe]):
    """The negative log-likelihood of every supervised token."""

    def __init__(self, session: Session[SftRecipe]) -> None:
        super().__init__(session)
        self.before: Before = Before(session.run.heldout_before)
        self._answers: list[dict[str, JSON]] = []

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of a microbatch; its mean is over tokens."""
        return Sums(token_nll(model(batch)).sum(), "tokens")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss (nats per token) and perplexity."""
        model, recipe = self._session.loaded.packed, self._session.recipe
        total, tokens = 0.0, 0
        self._answers = []
        for run in microbatches(self._session.prepared.heldout, recipe.training.max_tokens_per_microbatch):
            batch = collate(run).to(model.device)
            logprobs = model(batch)
            total -= float(logprobs.sum(dtype=torch.float64))
            tokens += len(logprobs)
            sums = per_sequence(logprobs, batch.sequence, batch.sequences) / batch.sequence_lengths()
            self._answers += [
                {"tokens": tree.supervised_tokens, "loss": -mean} for tree, mean in zip(run, sums.tolist(), strict=True)
            ]
        self.before.keep(self._answers, write=self._session.processes.is_main)
        loss = total / tokens
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def heldout_details(self) -> Details:
        """Loss and length of each held-out answer."""
        return Details(numbers(self._answers))

    def finish(self) -> dict[str, JSON]:
        """Held-out metrics before and after, and each answer's loss, nats per token, in the held-out rows' order."""
        if not self._answers:  # resumed after the last step: no step of this process has evaluated
            with torch.no_grad():
                self.evaluate()
        heldout = self._session.prepared.heldout
        rows = [
            {
                "id": json.loads(heldout.record_json(row)).get("id"),
                "tokens": was["tokens"],
                "before_loss": was["loss"],
                "after_loss": now["loss"],
            }
            for row, (was, now) in enumerate(zip(self.before.value, self._answers, strict=True))
        ]
        return {**self._session.before_and_after(), "count": len(heldout), "rows": rows}
