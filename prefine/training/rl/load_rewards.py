"""Finds, checks and loads the reward models and functions that a recipe names."""

from __future__ import annotations

from pathlib import Path

from prefine.errors import ModelError, RecipeError, about
from prefine.evaluation.readiness.page import JSON_NAME
from prefine.evaluation.readiness.verdict import Level
from prefine.formatting import listing
from prefine.json_reading import read_json_object
from prefine.models.loading.identity import scores_digest
from prefine.models.loading.load import LoadedModel
from prefine.models.loading.location import locate_model
from prefine.models.scoring.packed_scorer import load_reward, scale_of
from prefine.models.scoring.scorer import RewardModel, ScoreScale
from prefine.models.shared_base import join_reward, shares_base
from prefine.recipe.rl import PpoRecipe, RewardSource
from prefine.recipe.sections import ModelSection
from prefine.runs.directory import RunDirectory
from prefine.training.display import Display
from prefine.training.rl.reward_sources import FunctionSource, ModelSource, Source, function_of, is_function
from prefine.training.rl.rewards import Rewards
from prefine.training.run.user_functions import UserFunction, function_hash

JUDGE = "reward.judge"


def load_rewards(recipe: PpoRecipe, policy: LoadedModel, display: Display) -> Rewards:
    """Load every source of a recipe, sharing the policy's weights where that is possible.

    Raises:
        ModelError: a reward model cannot be loaded.
        RecipeError: a function cannot be imported; a scale is std without a recorded standard deviation.
    """
    found = [
        load_source(field, section, recipe, policy, f"reward-{place}", display)
        for place, (field, section) in enumerate(_optimised(recipe).items())
    ]
    return Rewards(recipe.reward, found, recipe.rollout.max_new_tokens)


def require_rewards(recipe: PpoRecipe, display: Display, *, force: bool) -> list[str]:
    """Check every source of a recipe before the run's folder is created or a model loaded.

    Returns: a warning for each reward model that is used although its readiness report says no-go.

    Raises:
        ModelError: a reward model does not exist, or is not ready for PPO and `force` is False.
        RecipeError: a function cannot be imported; a name is used twice.
    """
    sections = _optimised(recipe)
    names = [section.name for section in sections.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f"reward: {listing(sorted(twice))} is named twice", "Name it once, with one weight.")
    if recipe.reward.judge is not None:
        if recipe.reward.judge in names:
            raise RecipeError(f"{JUDGE}: {recipe.reward.judge} is also optimised", "Name another one, or none.")
        sections[JUDGE] = RewardSource(name=recipe.reward.judge)
    warnings: list[str] = []
    for field, section in sections.items():
        with about(field):
            if is_function(section.name):
                function_of(section.name)
                scale = None
            else:
                if section.timeout_s != RewardSource.model_fields["timeout_s"].default:
                    raise RecipeError(
                        f"{field.removesuffix('name')}timeout_s {section.timeout_s:g} has no effect, as {section.name} "
                        "is a reward model: it limits calls of functions",
                        "Leave it out.",
                    )
                warnings += require_ready(section.name, display, force=force)
                scale = scale_of(locate_model(section.name))
            _require_fitting(section, recipe, scale)
    return warnings


def reward_functions(recipe: PpoRecipe) -> list[UserFunction]:
    """The functions among a recipe's reward sources and its judge. Call `require_rewards` first."""
    names = {field: section.name for field, section in _optimised(recipe).items()}
    if recipe.reward.judge is not None:
        names[JUDGE] = recipe.reward.judge
    return [
        UserFunction(field, name, function_hash(function_of(name)), may_change=True)
        for field, name in names.items()
        if is_function(name)
    ]


def _optimised(recipe: PpoRecipe) -> dict[str, RewardSource]:
    """Sections of all optimised sources, by the recipe field that names each."""
    more = {f"reward.more[{place}].name": section for place, section in enumerate(recipe.reward.more)}
    return {"reward.name": recipe.reward, **more}


def load_source(
    field: str, section: RewardSource, recipe: PpoRecipe, policy: LoadedModel, adapter: str, display: Display
) -> Source:
    """Load one source. A reward run on the policy's base model becomes an adapter of that model.

    Args:
        field: the recipe's field that names it.
        adapter: the adapter's name.
    """
    with about(field):
        if is_function(section.name):
            return FunctionSource(section, function_of(section.name))
        model = _reward_model(section.name, recipe, policy, adapter, display)
        _require_fitting(section, recipe, model.scale)
    return ModelSource(section, model, scores_digest(locate_model(section.name)))


def _require_fitting(section: RewardSource, recipe: PpoRecipe, scale: ScoreScale | None) -> None:
    """Refuse settings that contradict what was recorded when the reward model was trained."""
    if section.scale == "std" and scale is None:
        raise RecipeError(
            f"{section.name} has no recorded standard deviation, but its scale is std",
            "Set its scale to running (the std of all scores so far) or none.",
            field="reward.name",
        )
    limit = None if scale is None else scale.max_length_tokens
    if limit is not None and recipe.rollout.max_new_tokens >= limit:
        raise RecipeError(
            f"rollout.max_new_tokens is {recipe.rollout.max_new_tokens}, but {section.name} was trained on at most "
            f"{limit} tokens, prompt and answer together",
            f"Set it to less than {limit}.",
        )


def _reward_model(name: str, recipe: PpoRecipe, policy: LoadedModel, adapter: str, display: Display) -> RewardModel:
    location = locate_model(name)
    scale = scale_of(location)
    objection = shares_base(policy, location, scale, recipe.model)
    model: RewardModel
    if objection is None:
        model = join_reward(policy, location, adapter)
        display.say(f"reward {name}: an adapter on the policy's base model, which is loaded once")
    else:
        model = load_reward(ModelSection(name=name, device=recipe.model.device))
        display.say(f"reward {name}: loaded as a separate model ({objection})")
    theirs, ours = model.tokenizer, policy.tokenizer
    if theirs.get_vocab() != ours.get_vocab() or theirs.chat_template != ours.chat_template:
        display.say(
            f"reward {name}: its tokenizer or template differs from the policy's; answers are passed to it as text"
        )
    return model


def require_ready(name: str, display: Display, *, force: bool) -> list[str]:
    """Refuse a reward run whose readiness report says no-go; show any other verdict.

    Returns: a warning for the run's manifest if it is used although the report says no-go.

    Raises:
        ModelError: no-go, and not `force`.
    """
    folder = Path(name)
    around = RunDirectory(folder.parent)
    path = (around.path if folder == around.model else folder) / JSON_NAME
    if not path.is_file():
        display.say(f"reward {name} has no readiness report; run: prefine reward check {name}")
        return []
    try:
        report = read_json_object(path)
        verdict = Level(report["verdict"])
        reasons = [f"{found['name']}: {found['found']}" for found in report["findings"] if found["level"] == verdict]
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"{path} is not a valid readiness report", f"Run: prefine reward check {name}", field="reward.name"
        ) from None
    details = "; ".join(reasons)
    if verdict is Level.NO_GO and not force:
        raise ModelError(
            f"{name} is not fit for PPO according to its readiness report ({details})",
            f"See {path.with_suffix('.html')} and train a better one, or add --force to use it anyway.",
            field="reward.name",
        )
    line = f"readiness {verdict.value}" + (f" ({details})" if verdict is not Level.GO else "")
    display.say(f"reward {name}: {line}" + (", used because of --force" if verdict is Level.NO_GO else ""))
    if verdict is not Level.NO_GO:
        return []
    return [
        f"The reward model {name} is not fit for PPO according to its readiness report ({details}). "
        "It was used because of --force."
    ]
