"""A preference objective that is a user function: calls it and checks its result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prefine.errors import RecipeError
from prefine.models.loading.location import one_line
from prefine.objectives.dpo import PairLogprobs
from prefine.objectives.masked import Paired
from prefine.recipe.dpo import DpoSection
from prefine.training.run.checks import SelfCheck
from prefine.training.run.user_functions import function_name

PairLosses = Callable[[PairLogprobs], Tensor]


def require_objective(section: DpoSection, objective: PairLosses | None) -> None:
    """Refuse dpo.loss function without a function, and a function with another dpo.loss.

    Raises:
        RecipeError: the two do not match.
    """
    if objective is None and section.loss == "function":
        raise RecipeError(
            "dpo.loss is function, but no function was passed", "Call prefine.dpo(recipe, objective=function)."
        )
    if objective is not None and section.loss != "function":
        raise RecipeError(
            f"dpo.loss {section.loss} has no effect, as a function is the objective", "Leave out one of the two."
        )


def losses_of(objective: PairLosses, pairs: PairLogprobs) -> Tensor:
    """(B,) fp32 losses of B pairs.

    Raises:
        RecipeError: it raises, or does not return one loss per pair that depends on the policy.
    """
    name, count = function_name(objective), len(pairs.policy.chosen)
    try:
        found = objective(pairs)
    except Exception as error:  # whatever the user's code raises
        raise _refusal(f"{name} raised {one_line(error)}") from error
    if not isinstance(found, Tensor):
        raise _refusal(f"{name} returned {type(found).__name__}, not a tensor")
    if found.shape != (count,):
        raise _refusal(f"{name} returned a tensor of shape {tuple(found.shape)} for {count} pairs")
    if torch.is_grad_enabled() and not found.requires_grad:
        raise _refusal(f"{name} returned losses that do not depend on pairs.policy")
    return found.float()


def check_objective(objective: PairLosses, pairs: PairLogprobs) -> SelfCheck:
    """Before the first step, the function returns one finite loss per pair, with a gradient for the policy."""
    leaves = Paired(*(values.detach().clone().requires_grad_() for values in pairs.policy))
    with torch.enable_grad():
        losses = losses_of(objective, PairLogprobs(leaves, pairs.reference, pairs.tokens, pairs.beta))
        slopes = torch.stack(torch.autograd.grad(losses.sum(), leaves, materialize_grads=True))
    finite = bool(torch.isfinite(losses).all() and torch.isfinite(slopes).all())
    largest = float(slopes.abs().max())
    return SelfCheck(
        "objective",
        f"{function_name(objective)}: losses {float(losses.min()):.4g} to {float(losses.max()):.4g}, largest slope "
        f"{largest:.4g}",
        "finite losses and slopes, and one above 0",
        finite and largest > 0,
    )


def _refusal(what: str) -> RecipeError:
    return RecipeError(what, "Return a tensor with one loss per pair, computed from pairs.policy.", field="objective")
