"""The cheapest change of a recipe with which a stage fits into a given memory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from prefine.errors import RecipeError
from prefine.models.loading.quantization import INSTALL_QUANTIZATION, bitsandbytes_installed
from prefine.planning.machine import Machine, machine_for
from prefine.planning.model_facts import ModelFacts
from prefine.planning.plan import StagePlan, planned
from prefine.planning.row_counts import RowCounts
from prefine.planning.stage_facts import StageFacts, method_of, stage_facts
from prefine.planning.workload import Workload
from prefine.recipe.loading import checked_recipe, yaml_value
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.stage import StageRecipe

_UNITS = {"": 1, "b": 1, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_LEAST_BUDGET, _LEAST_LENGTH, _LEAST_RANK, _LEAST_SLOTS = 256, 128, 4, 4


@dataclass(frozen=True)
class RecipeChange:
    """Another value of a field.

    Attributes:
        field: dotted.
        value: as in YAML.
        costs: what it costs, for people.
    """

    field: str
    value: Any
    costs: str

    @property
    def text(self) -> str:
        """As --set takes it."""
        return f"{self.field}={yaml_value(self.value)}"


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        budget: bytes.
        before: the plan of the recipe as it is.
        plan: with the changes; the smallest plan that was found where none fits.
        made: the changes, the cheapest first; empty if the recipe fits as it is.
    """

    budget: int
    before: StagePlan
    plan: StagePlan
    made: tuple[RecipeChange, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the plan fits."""
        return self.plan.fits(self.budget)

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes as --set takes them."""
        return tuple(change.text for change in self.made)

    def as_json(self, prefix: str = "") -> dict[str, Any]:
        """For --json.

        Args:
            prefix: stands before each field, as in stages.NAME.
        """
        return {
            "budget_bytes": self.budget,
            "fits": self.fits,
            "changes": [{"set": prefix + change.text, "costs": change.costs} for change in self.made],
            "peak_bytes": self.plan.peak_bytes,
            "peak_moment": self.plan.peak.name,
            "seconds": self.plan.seconds,
        }


def as_options(changes: Iterable[str]) -> str:
    """Changes as options, to be pasted into a shell."""
    return " ".join(f"--set {shlex.quote(text)}" for text in changes)


def bytes_of(text: str) -> int:
    """A size such as 24GB (10^9 bytes), 16GiB or 800MB.

    Raises:
        RecipeError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None or not float(match[1]):
        raise RecipeError(f"{text!r} is not a size", "Write a number and a unit: 24GB, 16GiB or 800MB.", field="--fit")
    if not match[2]:
        raise RecipeError(f"{text!r} has no unit", f"Write {text.strip()}GB, for example.", field="--fit")
    return int(float(match[1]) * unit)


def fit_stage(
    recipe: StageRecipe,
    *,
    budget_bytes: int,
    method: str | None = None,
    parents: Mapping[str, ModelFacts] | None = None,
    machine: Machine | None = None,
    workload: Workload | None = None,
    counts: RowCounts | None = None,
    installed_only: bool = False,
) -> Fit:
    """The cheapest change with which a stage fits: other arguments as for plan_stage.

    Changes are tried alone first, the cheapest first, each at its mildest value that suffices. If none does, they are
    added up in that order; then those that turn out not to be needed are left out.

    Args:
        installed_only: leave out what needs a package that is not installed.

    Raises:
        ModelError, RecipeError: see plan_stage.
    """
    method = method_of(recipe) if method is None else method
    machine = machine_for(recipe.model.device) if machine is None else machine
    facts = stage_facts(recipe, method, parents or {}, machine)
    rows = (counts or RowCounts()).of(facts) if workload is None else workload
    search = _Search(facts, rows)
    before = planned(facts, rows)
    if before.fits(budget_bytes):
        return Fit(budget_bytes, before, before)
    best: tuple[tuple[RecipeChange, ...], StagePlan] = ((), before)
    possible = list(changes(recipe, before, installed_only=installed_only))
    for levels in possible:
        for change in levels:
            plan = search.plan((change,))
            if plan is not None and plan.fits(budget_bytes):
                return Fit(budget_bytes, before, plan, (change,))
    made: tuple[RecipeChange, ...] = ()
    for levels in possible:
        for change in levels:
            kept = tuple(each for each in made if each.field != change.field)
            plan = search.plan((*kept, change))
            if plan is None or plan.peak_bytes >= best[1].peak_bytes:
                continue
            made = (*kept, change)
            best = (made, plan)
            if plan.fits(budget_bytes):
                return search.without_needless(Fit(budget_bytes, before, plan, made))
    return Fit(budget_bytes, before, best[1], best[0])


@dataclass(frozen=True)
class _Search:
    """Plans of one stage with changes."""

    facts: StageFacts
    workload: Workload

    def plan(self, made: Sequence[RecipeChange]) -> StagePlan | None:
        """With these changes; None if the recipe's rules refuse them."""
        recipe = changed(self.facts.recipe, made)
        if recipe is None:
            return None
        return planned(replace(self.facts, recipe=recipe), self.workload)

    def without_needless(self, found: Fit) -> Fit:
        """Leave out changes without which it fits, too: the dearest first."""
        made, plan = found.made, found.plan
        for change in reversed(found.made):
            fewer = tuple(each for each in made if each is not change)
            smaller = self.plan(fewer)
            if smaller is not None and smaller.fits(found.budget):
                made, plan = fewer, smaller
        return Fit(found.budget, found.before, plan, made)


def changed(recipe: StageRecipe, made: Sequence[RecipeChange]) -> StageRecipe | None:
    """The recipe with changes; None if its rules refuse them."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    assignments = [(tuple(change.field.split(".")), change.value, change.text) for change in made]
    try:
        return checked_recipe(values, assignments, type(recipe), "recipe")
    except (RecipeError, ValidationError):
        return None


def changes(recipe: StageRecipe, plan: StagePlan, *, installed_only: bool = False) -> Iterator[list[RecipeChange]]:
    """The changes that save memory, the cheapest first; each as levels, the mildest first.

    Their order: what changes no result beyond rounding (the token budget, slots, a second copy of weights that is only
    kept), what costs time (recomputing), what costs precision (16 bits, 4 bits), what trains less (adapters, a lower
    rank), what loses text (shorter rows).
    """
    training, model, lora = recipe.training, recipe.model, recipe.lora
    longest = max((tree.longest for tree in plan.workload.trees), default=_LEAST_BUDGET)
    least = max(_LEAST_BUDGET, min(longest, training.max_tokens_per_microbatch))
    yield [
        RecipeChange("training.max_tokens_per_microbatch", size, "nothing but smaller products")
        for size in _halves(training.max_tokens_per_microbatch, least)
    ]
    if isinstance(recipe, PpoRecipe):
        yield [
            RecipeChange("rollout.slots", size, "slower generation")
            for size in _halves(recipe.rollout.slots, _LEAST_SLOTS)
        ]
    if not model.gradient_checkpointing:
        yield [RecipeChange("model.gradient_checkpointing", True, "a third more computing in training steps")]
    if plan.dtype == "float32":
        yield [
            RecipeChange("model.dtype", "bfloat16", "three digits in matrix products; slow without instructions for it")
        ]
    if lora is None:
        yield [RecipeChange("lora", {}, "adapters are trained instead of all weights")]
    installed = bitsandbytes_installed()
    if model.quantization == "none" and (installed or not installed_only):
        needs = "" if installed else f"; needs {INSTALL_QUANTIZATION}"
        yield [RecipeChange("model.quantization", "nf4", f"frozen weights of 4 bits; slower products{needs}")]
    if lora is not None:
        yield [
            RecipeChange("lora.r", rank, "an adapter that can learn less")
            for rank in _halves(lora.r, min(_LEAST_RANK, lora.r))
        ]
    yield [
        RecipeChange("data.max_length_tokens", size, "longer rows lose their oldest turns, or are left out")
        for size in _halves(recipe.data.max_length_tokens, _LEAST_LENGTH)
    ]
    # Only with shorter rows can the budget fall further.
    yield [
        RecipeChange("training.max_tokens_per_microbatch", size, "nothing but smaller products")
        for size in _halves(least, _LEAST_BUDGET)
    ]


def _halves(value: int, least: int) -> Iterator[int]:
    """Halves of a value, down to `least`."""
    while value > least:
        value = max(least, value // 2)
        yield value
