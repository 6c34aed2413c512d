"""One optimiser step: gradients over processes and microbatches, clipped; nothing changes where one is no number."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefine.atomic import JSON, write_json
from prefine.data.batch import PackedBatch, TokenTree, collate, microbatches
from prefine.errors import NotFiniteError
from prefine.recipe import TrainingSection


@dataclass(frozen=True)
class Totals:
    """What a whole optimiser step holds, over all processes and microbatches.

    Attributes:
        trees: records (pairs, demonstrations).
        tokens: supervised tokens.
    """

    trees: int
    tokens: int

    @staticmethod
    def of(trees: Sequence[TokenTree]) -> Totals:
        """Totals of the trees of one step."""
        return Totals(len(trees), sum(tree.supervised_tokens for tree in trees))


class Step(Protocol):
    """A stage's loss: this microbatch's share of the step's mean, and sums to log (divided by the step's trees)."""

    def __call__(self, model: nn.Module, batch: PackedBatch, totals: Totals) -> tuple[Tensor, dict[str, float]]: ...


def adamw(
    rate_of: Callable[[str], float | None],
    parameters: Mapping[str, nn.Parameter],
    section: TrainingSection,
    device: torch.device,
) -> torch.optim.Optimizer:
    """AdamW with a group of parameters for each learning rate, in two parts where only some of them decay.

    Parts of one group carry the same `clipped_with`: gradients are clipped as if they were still one.

    Args:
        rate_of: the learning rate of a parameter by name; None for the recipe's.
    """
    groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decays = not section.weight_decay or _decays(name, parameter)
        groups.setdefault((rate_of(name), decays), []).append(parameter)
    rates = list(dict.fromkeys(rate for rate, _ in groups))
    split = {} if len(rates) == len(groups) else {rate: {"clipped_with": rates.index(rate)} for rate in rates}
    return torch.optim.AdamW(
        [
            {"params": group, "lr": rate or section.learning_rate, **split.get(rate, {})}
            | ({} if decays else {"weight_decay": 0.0})
            for (rate, decays), group in groups.items()
        ],
        lr=section.learning_rate,
        betas=(section.adam_betas[0], section.adam_betas[1]),
        eps=section.adam_epsilon,
        weight_decay=section.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices alone.

    Norms and biases only shift and scale; pulled to zero they take the signal with them. Embeddings decay, as with
    transformers' Trainer and nanoGPT: a tied one is the head's matrix.
    """
    return parameter.dim() >= 2 and not any("norm" in part.lower() for part in name.split("."))


@dataclass
class OptimiserStep:
    """Takes optimiser steps.

    Args:
        accelerator: devices and processes.
        model: the packed model, as accelerate prepared it.
        parameters: trainable parameters by name.
        optimizer: as accelerate prepared it.
        section: the recipe's training section.
        step: the stage's loss.
        folder: where batches go whose loss is no number.
    """

    accelerator: Accelerator
    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    section: TrainingSection
    step: Step
    folder: Path

    def __call__(
        self, trees: Sequence[TokenTree], number: int, learning: Collection[str] | None = None
    ) -> dict[str, float]:
        """One step on these trees; means over them of what the stage logs, over all processes.

        Args:
            number: of the run's step that it is part of, counted from 1.
            learning: names of the parameters that this step is for; None for all. The optimiser passes over the others:
                their weights, moments and step counts stay as they are.

        Raises:
            NotFiniteError: the loss or the gradient is no number; no weight has been changed.
        """
        totals = Totals.of(trees)
        sums, suspects = self._accumulate(trees, totals)
        self._require_finite("loss", sums["loss"], suspects, number)
        for name, parameter in self.parameters.items():
            if learning is not None and name not in learning:
                parameter.grad = None
        norm = self._clip()
        self._require_finite("gradient norm", norm, suspects, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: value / totals.trees for name, value in sums.items()}
        return {**means, "grad_norm": norm, "tokens": sum(tree.tokens for tree in trees)}

    def _clip(self) -> float:
        """Clip the gradients of each learning rate's parameters by themselves: a critic's must not shrink its policy's.

        Returns the norm over all of them, before clipping.
        """
        limit = math.inf if self.section.max_grad_norm is None else self.section.max_grad_norm
        clipped: dict[int, list[nn.Parameter]] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            clipped.setdefault(group.get("clipped_with", number), []).extend(group["params"])
        return math.hypot(*(float(self.accelerator.clip_grad_norm_(group, limit)) for group in clipped.values()))

    def _accumulate(self, trees: Sequence[TokenTree], totals: Totals) -> tuple[dict[str, float], list[PackedBatch]]:
        """Leave one step's gradients in the parameters.

        Returns: what is logged, summed over microbatches and processes, and this process's batches with a loss that
        is not finite (all of its batches where there is none).
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = trees[rank::processes]
        # With fewer trees than processes, one recomputes the first at weight 0: all must enter the backward pass.
        weight = 1.0 if mine else 0.0
        batches = [collate(run) for run in microbatches(mine or trees[:1], self.section.max_tokens_per_microbatch)]
        sums: dict[str, float] = {}
        suspects: list[PackedBatch] = []
        for index, batch in enumerate(batches):
            last = index + 1 == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, logged = self.step(self.model, batch.to(self.accelerator.device), totals)
                # Gradients are averaged over processes; the step's mean is their sum.
                self.accelerator.backward(loss * (weight * processes))
            value = float(loss.detach())
            suspects += [] if math.isfinite(value) else [batch]
            for name, number in {"loss": value * totals.trees, **logged}.items():
                sums[name] = sums.get(name, 0.0) + weight * number
        return self._over_processes(sums), suspects or batches

    def _require_finite(self, what: str, value: float, suspects: Sequence[PackedBatch], number: int) -> None:
        """Raise NotFiniteError, in all processes alike, unless `value` is finite; each dumps its own batches first."""
        if math.isfinite(value):
            return
        rank = self.accelerator.process_index
        path = self.folder / ("non-finite-batch.json" if rank == 0 else f"non-finite-batch-{rank}.json")
        dump: dict[str, JSON] = {
            "step": number,
            "what": what,
            "rows": [row for batch in suspects for row in batch.rows],
            "input_ids": [batch.input_ids[0].tolist() for batch in suspects],
        }
        write_json(path, dump)
        self.optimizer.zero_grad(set_to_none=True)
        raise NotFiniteError(
            f"the {what} became {value} at step {number}; its batch is in {path}",
            "Look at those rows, lower training.learning_rate, or set model.dtype to float32; --resume goes on from "
            "the last checkpoint.",
        )

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return sums
        values = torch.tensor(list(sums.values()), device=self.accelerator.device)
        reduced = self.accelerator.reduce(values, reduction="sum")
        return dict(zip(sums, reduced.tolist(), strict=True))
