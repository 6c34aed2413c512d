"""The plan of a stage: will it fit, how long will it take, and what it will leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefine.formatting import MISSING
from prefine.formatting import duration as in_words
from prefine.planning.duration import Duration, duration
from prefine.planning.machine import Machine, machine_for
from prefine.planning.memory import Moment, Term, moments, peak, weight_bytes
from prefine.planning.model_facts import ModelFacts, ScoringFacts
from prefine.planning.row_counts import RowCounts
from prefine.planning.stage_facts import StageFacts, method_of, stage_facts
from prefine.planning.workload import Workload, longest_rows
from prefine.recipe.stage import StageRecipe

_FP32 = 4


@dataclass(frozen=True)
class StagePlan:
    """What is predicted of a stage.

    Attributes:
        method: sft, reward, dpo, ppo, …
        machine: where it computes.
        dtype: in which number type.
        moments: of its run, each with its terms; the first is a training step.
        workload: the rows that were assumed.
        steps: of the run; None if not known.
        time: None where rates are not known.
        disk_bytes: of its checkpoints and its result.
        result: the model that it will leave, for plans of later stages.
    """

    method: str
    machine: Machine
    dtype: str
    moments: tuple[Moment, ...]
    workload: Workload
    steps: int | None
    time: Duration | None
    disk_bytes: int
    result: ModelFacts

    @property
    def device(self) -> str:
        """The type of the device."""
        return self.machine.device

    @property
    def memory_limit(self) -> int | None:
        """Bytes of the device's memory that a run can take; None if the device is not this machine's."""
        return self.machine.usable_bytes

    @property
    def peak(self) -> Moment:
        """The moment of the most memory."""
        return peak(self.moments)

    @property
    def peak_bytes(self) -> int:
        """The most memory at any moment: resident on a CPU, of the device on a GPU."""
        return self.peak.bytes

    @property
    def memory(self) -> tuple[Term, ...]:
        """The terms of that moment."""
        return self.peak.terms

    @property
    def seconds(self) -> float | None:
        """The time of the whole run."""
        return None if self.time is None else self.time.total

    @property
    def seconds_per_step(self) -> float | None:
        """The time of one step, for PPO of one update."""
        return None if self.time is None else self.time.step

    def fits(self, budget: int) -> bool:
        """Whether it needs at most so many bytes."""
        return self.peak_bytes <= budget

    def as_json(self) -> dict[str, Any]:
        """For --json; bytes and seconds."""
        return {
            "method": self.method,
            "device": self.device,
            "dtype": self.dtype,
            "peak_bytes": self.peak_bytes,
            "peak_moment": self.peak.name,
            "moments": [
                {
                    "name": moment.name,
                    "bytes": moment.bytes,
                    "terms": [{"name": term.name, "bytes": term.bytes, "why": term.why} for term in moment.terms],
                }
                for moment in self.moments
            ],
            "memory_limit_bytes": self.memory_limit,
            "memory_total_bytes": self.machine.memory_bytes,
            "fits": None if self.memory_limit is None else self.fits(self.memory_limit),
            "rows": self.workload.rows,
            "mean_row_tokens": self.workload.mean_tokens,
            "lengths": self.workload.source,
            "steps": self.steps,
            "seconds_per_step": self.seconds_per_step,
            "seconds": self.seconds,
            "disk_bytes": self.disk_bytes,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        peak = f"{gigabytes(self.peak_bytes)} at its peak ({self.peak.name})"
        found = [f"{self.method} on {self.device} in {self.dtype}: {peak}"]
        width = max(len(term.name) for term in self.memory)
        found += [f"  {gigabytes(term.bytes):>9}  {term.name:<{width}}  {term.why}" for term in self.memory]
        found += [f"  other moments: {name}" for name in [self._others()] if name]
        if self.memory_limit is not None:
            verdict = "fits" if self.fits(self.memory_limit) else "does not fit"
            found.append(f"  {verdict} the {room(self.machine)} of this machine's {self.device}")
        found.append(f"rows: {self.workload.source}; {self.workload.mean_tokens:,.0f} tokens each on average")
        found.append(self._time_line())
        found.append(f"disk: {gigabytes(self.disk_bytes)} of checkpoints and result")
        return found

    def _others(self) -> str:
        rest = [moment for moment in self.moments if moment is not self.peak]
        return ", ".join(f"{moment.name} {gigabytes(moment.bytes)}" for moment in rest)

    def _time_line(self) -> str:
        what = "update" if self.method == "ppo" else "step"
        if self.time is None:
            return "time: unknown, as this machine does not have that device"
        each = f"{in_words(self.time.step)} a {what}"
        if self.time.total is None or self.steps is None:
            return f"time: {each}; the number of steps is not known before the data are there"
        return f"time: about {in_words(self.time.total)}: {self.steps:,} steps of {each}, evaluation and samples"


def plan_stage(
    recipe: StageRecipe,
    *,
    method: str | None = None,
    parents: Mapping[str, ModelFacts] | None = None,
    machine: Machine | None = None,
    workload: Workload | None = None,
    counts: RowCounts | None = None,
) -> StagePlan:
    """Predict a stage's memory and time without loading weights.

    Args:
        recipe: the stage's.
        method: sft, reward, dpo, ppo, …; None for that of the recipe's type.
        parents: the results of other stages, which the recipe names as stage:NAME.
        machine: None for the recipe's model.device.
        workload: None counts the rows of the data, or assumes the longest rows where there are none yet.
        counts: what other stages have counted, to which this one's rows are added.

    Raises:
        ModelError: a model cannot be found, or its architecture is not known.
        RecipeError: see method_of.
    """
    method = method_of(recipe) if method is None else method
    machine = machine_for(recipe.model.device) if machine is None else machine
    facts = stage_facts(recipe, method, parents or {}, machine)
    return planned(facts, (counts or RowCounts()).of(facts) if workload is None else workload)


def planned(facts: StageFacts, workload: Workload) -> StagePlan:
    """The plan of a stage whose models and rows are known.

    Args:
        workload: its rows as they are in the data, before they are cut.
    """
    cut = workload.cut(facts.recipe.data.max_length_tokens, facts.answer_tokens, facts.samples)
    if not cut.trees:
        cut = longest_rows(facts.method, facts.recipe.data.max_length_tokens)
    facts = replace(facts, rows=cut.rows)
    return StagePlan(
        method=facts.method,
        machine=facts.machine,
        dtype=facts.dtype,
        moments=moments(facts, cut),
        workload=cut,
        steps=facts.steps,
        time=duration(facts, cut),
        disk_bytes=_disk(facts),
        result=_result(facts),
    )


def _disk(facts: StageFacts) -> int:
    """Checkpoints with weights and moments, and the result."""
    state = facts.trainable * 3 * _FP32
    state += facts.trainable * _FP32 if facts.recipe.training.keep_best else 0
    result = weight_bytes(facts) if facts.all_weights else facts.own_adapter * _FP32
    return state * (facts.recipe.training.keep_checkpoints + 1) + result


def _result(facts: StageFacts) -> ModelFacts:
    """The model that a stage leaves: whole weights, or an adapter on what it began with. Its tokenizer is the same."""
    model = facts.model
    scores = ScoringFacts(facts.quantization, facts.dtype) if facts.score_heads else None
    if facts.all_weights:
        base = f"the result of {facts.recipe.run}"
        return replace(model, base=base, adapter=None, file_bytes=weight_bytes(facts), scores=scores)
    return replace(model, adapter=facts.adapter, scores=scores)


def room(machine: Machine) -> str:
    """The memory that a run can take, and of how much, in words."""
    total, usable = machine.memory_bytes, machine.usable_bytes
    if total is None or usable is None:
        return MISSING
    free = "" if total == usable else f"{gigabytes(usable)} that are free of the "
    return f"{free}{gigabytes(total)}"


def gigabytes(size: int) -> str:
    """Bytes as GB (10^9)."""
    return f"{size / 1e9:.2f} GB" if size < 99_500_000_000 else f"{size / 1e9:,.0f} GB"
