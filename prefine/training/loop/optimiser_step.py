"""One optimiser step: gradients over processes and microbatches, clipped. A non-finite value changes no weight."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prefine.data.tokens.trees import PackedBatch, TokenTree, collate, microbatches
from prefine.errors import NotFiniteError
from prefine.recipe.sections import TrainingSection
from prefine.runs.atomic import JSON, write_json
from prefine.training.loop.contract import Loss, Unit
from prefine.training.loop.processes import Processes


def adamw(
    rate_of: Callable[[str], float | None],
    parameters: Mapping[str, nn.Parameter],
    section: TrainingSection,
    device: torch.device,
) -> torch.optim.Optimizer:
    """AdamW with one parameter group per learning rate, or two if only some of its parameters decay.

    The two groups of one rate have the same `clipped_with`: their gradients are clipped together.

    Args:
        rate_of: the learning rate of a parameter by name; None for the recipe's.
        parameters: trainable parameters by name.
        section: the recipe's training section.
        device: where the parameters are.
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
    """Whether weight decay applies to a parameter: only to matrices, not to biases and the weights of norms.

    Embeddings decay, as in transformers' Trainer and nanoGPT: a tied one is the head's matrix.
    """
    return parameter.dim() >= 2 and not any("norm" in part.lower() for part in name.split("."))


@dataclass
class OptimiserStep:
    """Takes optimiser steps.

    Args:
        processes: the processes that take each step together.
        model: the packed model, as accelerate prepared it.
        parameters: trainable parameters by name.
        optimizer: as accelerate prepared it.
        section: the recipe's training section.
        loss: the objective's loss.
        folder: where batches with a non-finite loss are written.
    """

    processes: Processes
    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    section: TrainingSection
    loss: Loss
    folder: Path

    def __call__(
        self, trees: Sequence[TokenTree], number: int, learning: Collection[str] | None = None
    ) -> dict[str, float]:
        """Take one step on these trees.

        Args:
            number: number of the run's step that this belongs to, from 1; for messages.
            learning: names of the parameters to update; None for all. The optimiser skips the others: their weights,
                moments and step counts stay as they are.

        Returns: the means of the loss and its logged values over all processes and microbatches, the gradient norm
            before clipping, and the number of tokens in the trees.

        Raises:
            NotFiniteError: the loss or the gradient norm is not finite; no weight was changed.
        """
        means, suspects = self._accumulate(trees)
        self._require_finite("loss", means["loss"], suspects, number)
        for name, parameter in self.parameters.items():
            if learning is not None and name not in learning:
                parameter.grad = None
        norm = self._clip()
        self._require_finite("gradient norm", norm, suspects, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**means, "grad_norm": norm, "tokens": sum(tree.tokens for tree in trees)}

    def _clip(self) -> float:
        """Clip the gradients of each learning rate's parameters separately: a critic's must not shrink its policy's.

        Returns: the norm over all of them, before clipping.
        """
        limit = math.inf if self.section.max_grad_norm is None else self.section.max_grad_norm
        clipped: dict[int, list[nn.Parameter]] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            clipped.setdefault(group.get("clipped_with", number), []).extend(group["params"])
        return math.hypot(
            *(float(self.processes.accelerator.clip_grad_norm_(group, limit)) for group in clipped.values())
        )

    def _accumulate(self, trees: Sequence[TokenTree]) -> tuple[dict[str, float], list[PackedBatch]]:
        """Compute one step's gradients and leave them in the parameters.

        Returns: means of the loss and its logged values over all microbatches and processes; this process's batches
            with a non-finite loss, or all of its batches if there are none.
        """
        processes = self.processes
        own = processes.share(trees)
        # With fewer trees than processes, the others recompute the first tree at weight 0: all must enter the backward.
        weight = 1.0 if own else 0.0
        batches = [collate(run) for run in microbatches(own or trees[:1], self.section.max_tokens_per_microbatch)]
        totals: dict[str, float] = {}
        suspects: list[PackedBatch] = []
        for index, batch in enumerate(batches):
            last = index + 1 == len(batches)
            with contextlib.nullcontext() if last else processes.accelerator.no_sync(self.model):
                sums = self.loss(self.model, batch.to(processes.device))
                units = _units(trees, sums.per)
                share = sums.loss / units
                # accelerate averages gradients over processes, but the gradient of the step's mean is their sum.
                processes.accelerator.backward(share * (weight * processes.count))
            value = float(share.detach())
            suspects += [] if math.isfinite(value) else [batch]
            for name, number in {"loss": value * units, **sums.logged}.items():
                totals[name] = totals.get(name, 0.0) + weight * number
        return {name: total / units for name, total in processes.sum(totals).items()}, suspects or batches

    def _require_finite(self, what: str, value: float, suspects: Sequence[PackedBatch], number: int) -> None:
        """Raise NotFiniteError in every process unless `value` is finite; each writes its batches to a file first."""
        if math.isfinite(value):
            return
        rank = self.processes.rank
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
            "Check those rows, lower training.learning_rate, or set model.dtype to float32; --resume continues from "
            "the last checkpoint.",
        )


def _units(trees: Sequence[TokenTree], unit: Unit) -> int:
    """The number of units in a step's trees."""
    return len(trees) if unit == "trees" else sum(tree.supervised_tokens for tree in trees)
