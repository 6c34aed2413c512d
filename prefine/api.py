"""The Python API: the commands as functions, which `import prefine` offers.

Each raises the errors of prefine.errors, with the messages of the command line; Ctrl-C in a training run raises Stopped
after everything is saved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from prefine.data.reading.memory_rows import is_rows, memory_source
from prefine.errors import RecipeError, about
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.orpo import OrpoRecipe
from prefine.recipe.python import Keys, RecipeLike, recipe_from
from prefine.recipe.registry import RECIPES
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe
from prefine.row_list import Rows
from prefine.run import Run
from prefine.training.run.user_functions import given_function

if TYPE_CHECKING:
    from torch import Tensor

    from prefine.evaluation.comparing.evaluate import Evaluation
    from prefine.named_model import Model, PromptLike
    from prefine.objectives.dpo import PairLogprobs
    from prefine.planning.fit import Fit
    from prefine.planning.plan import StagePlan
    from prefine.training.display import Display

OnStep = Callable[[int, Mapping[str, float]], object]
"""Called with a step's number and its metrics, as in metrics.jsonl."""

Reward = Callable[[list[dict[str, Any]]], Any]
"""From rows with `prompt` (turns), `response` and the other columns of the prompt's row to a number for each."""

_SOURCES = (("data", "train"), ("data", "heldout"), ("heldout_pairs",), ("report", "prompts"))


def sft(
    recipe: RecipeLike = None,
    *,
    resume: bool = False,
    display: bool | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnStep | None = None,
    **overrides: Any,
) -> Run:
    """Fine-tune a model on demonstrations, or on the chosen answers of preferences.

    Args:
        recipe: a path, a dict, or what `load_recipe` returns; None for the defaults.
        resume: resume the run in the recipe's `run` folder.
        display: True shows the command line's output, False nothing; None shows it in notebooks and terminals only.
        on_step: called after each step whose metrics are logged (training.log_every_steps). An exception in it ends the
            run, which can be resumed from its last checkpoint.
        on_evaluation: called after each evaluation on held-out rows.
        overrides: fields of the recipe, nested or dotted: `data={"train": "my.jsonl"}`,
            `**{"data.train": "my.jsonl"}`. Sources may be rows in memory: a list of dicts, a data frame or a
            datasets.Dataset.

    Returns:
        The finished run.

    Raises:
        PrefineError: see prefine.errors.
        Stopped: the run was asked to stop; everything is saved.
    """
    made = load_recipe("sft", recipe, **overrides)
    from prefine.training.stages.sft import run_sft

    return Run(run_sft(made, resume, _display(display, on_step, on_evaluation)))


def dpo(
    recipe: RecipeLike = None,
    *,
    resume: bool = False,
    display: bool | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnStep | None = None,
    objective: Callable[[PairLogprobs], Tensor] | None = None,
    **overrides: Any,
) -> Run:
    """Train a model directly on preference pairs: DPO and its variants. Arguments as for `sft`, and:

    Args:
        objective: a function in place of dpo.loss, from prefine.objectives.dpo.PairLogprobs of B pairs to their losses,
            a tensor (B,). A resumed run needs the same function, compared by its source.
    """
    if objective is not None:
        overrides = {"dpo.loss": "function", **overrides}
    made = load_recipe("dpo", recipe, **overrides)
    from prefine.training.stages.dpo import run_dpo

    return Run(run_dpo(made, resume, _display(display, on_step, on_evaluation), objective=objective))


def kto(
    recipe: RecipeLike = None,
    *,
    resume: bool = False,
    display: bool | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnStep | None = None,
    **overrides: Any,
) -> Run:
    """Train a model on votes for single answers: KTO, and APO-zero without pairs. Arguments as for `sft`."""
    made = load_recipe("kto", recipe, **overrides)
    from prefine.training.stages.kto import run_kto

    return Run(run_kto(made, resume, _display(display, on_step, on_evaluation)))


def orpo(
    recipe: RecipeLike = None,
    *,
    resume: bool = False,
    display: bool | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnStep | None = None,
    **overrides: Any,
) -> Run:
    """Train a model on preference pairs without a reference: ORPO. Arguments as for `sft`."""
    made = load_recipe("orpo", recipe, **overrides)
    from prefine.training.stages.orpo import run_orpo

    return Run(run_orpo(made, resume, _display(display, on_step, on_evaluation)))


def reward(
    recipe: RecipeLike = None,
    *,
    resume: bool = False,
    display: bool | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnStep | None = None,
    **overrides: Any,
) -> Run:
    """Train a reward model on preferences or votes. Arguments as for `sft`."""
    made = load_recipe("reward", recipe, **overrides)
    from prefine.training.stages.reward import run_reward

    return Run(run_reward(made, resume, _display(display, on_step, on_evaluation)))


def ppo(
    recipe: RecipeLike = None,
    *,
    reward: Reward | Mapping[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    display: bool | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnStep | None = None,
    **overrides: Any,
) -> Run:
    """Optimise a model against a reward: PPO, RLOO or GRPO. Arguments as for `sft`, and:

    Args:
        reward: a function from a list of rows to as many numbers (see docs/python.md), or the fields of the recipe's
            section, in which `name` may be a function. A resumed run needs a function of the same name; if its source
            has changed, the run and its report warn.
        force: use a reward model although its readiness report says no-go.
    """
    if reward is not None:
        overrides["reward"] = {"name": reward} if callable(reward) else reward
    made = load_recipe("ppo", recipe, **overrides)
    from prefine.training.rl.stage import run_ppo

    return Run(run_ppo(made, resume, _display(display, on_step, on_evaluation), force=force))


@overload
def plan(method: str, recipe: RecipeLike = None, *, fit: None = None, **overrides: Any) -> StagePlan: ...
@overload
def plan(method: str, recipe: RecipeLike = None, *, fit: str, **overrides: Any) -> Fit: ...
def plan(method: str, recipe: RecipeLike = None, *, fit: str | None = None, **overrides: Any) -> StagePlan | Fit:
    """Predict a stage's peak memory, time and disk without loading weights, as `prefine plan`.

    Args:
        method: sft, reward, dpo or ppo.
        recipe: a path, a dict, a recipe object, or None for the defaults.
        fit: a size such as "24GB": find the cheapest change of the recipe that fits.
        overrides: see `sft`.

    Returns:
        The plan; with `fit`, what was found: its `changes` and its `plan`.

    Raises:
        PrefineError: the recipe is not valid, a model cannot be found, or its architecture is not known.
    """
    made = recipe_from(recipe, overrides, _recipe_type(method), _plain)
    from prefine.planning.fit import bytes_of, fit_stage
    from prefine.planning.plan import plan_stage

    if fit is None:
        return plan_stage(made, method=method)
    with about("fit"):
        budget = bytes_of(fit)
    return fit_stage(made, method=method, budget_bytes=budget)


def generate(model: str | os.PathLike[str], prompts: Sequence[PromptLike], **settings: Any) -> Rows:
    """Answers of a model to prompts: `load(model).generate(prompts, **settings)`, which explains the settings."""
    return load(model).generate(prompts, **settings)


def score(model: str | os.PathLike[str], rows: Any) -> Rows:
    """Scores of answers by a reward model: `load(model).score(rows)`."""
    return load(model).score(rows)


def evaluate(
    candidate: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    prompts: Any = None,
    pairs: Any = None,
    demonstrations: Any = None,
    judge: str | None = None,
    judge_model: str | None = None,
    gate: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    lm_eval: Sequence[str] = (),
    **settings: Any,
) -> Evaluation:
    """Compare two models on the same prompts, as `prefine evaluate`. The same call continues after an interruption.

    Args:
        candidate: a run, a folder, a hub id, embedded:…, or an endpoint: http://host:port/v1#MODEL.
        against: likewise; None for the model that the candidate's run began with.
        prompts: a file, several, or rows in memory; None for the rows that the candidate's run held out.
        pairs, demonstrations: likewise, for preference accuracy and perplexity.
        judge, judge_model: the endpoint of a language model that judges, and its name there.
        gate: a YAML file with rules; see `Evaluation.comparison.gate`.
        out: the folder; None for evaluations/CANDIDATE-against-BASELINE.
        max_new_tokens, temperature, top_k, top_p, seed: of the answers; both models have the same seeds.
        lm_eval: tasks of lm-eval-harness, or their YAML files.
        settings: limit, reference, reward, samples, slots, regression, force, device, dtype and chat_template: see
            prefine.evaluation.comparing.request.EvaluationRequest. judge_template, judge_max_tokens, price_in and
            price_out of the judge; timeout_s, attempts and at_once of requests to endpoints.

    Returns:
        The comparison, and the folder with its report.

    Raises:
        PrefineError: a model, a file or a setting cannot be used.
    """
    from prefine.evaluation.comparing.evaluate import evaluate as compare
    from prefine.evaluation.comparing.request import EvaluationRequest, judge_request, patience_of
    from prefine.generation.sampling import Sampling

    _require_known(settings)
    of_judge = {name: settings.pop(name, None) for name in _OF_JUDGES}
    if of_judge["judge_template"] is not None:
        of_judge["judge_template"] = Path(of_judge["judge_template"])
    try:
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed=seed)
    except ValueError as error:
        raise RecipeError(str(error), "Change it.") from None
    return compare(
        EvaluationRequest(
            os.fspath(candidate),
            None if against is None else os.fspath(against),
            prompts=_sources(prompts),
            pairs=_sources(pairs),
            demonstrations=_sources(demonstrations),
            sampling=sampling,
            lm_eval=tuple(lm_eval),
            judge=judge_request(judge, judge_model, **of_judge),
            patience=patience_of(**{name: settings.pop(name, None) for name in _OF_ENDPOINTS}),
            gate=None if gate is None else Path(gate),
            out=None if out is None else Path(out),
            **settings,
        )
    )


# Further arguments of `evaluate`.
_OF_REQUESTS = (
    "limit",
    "reference",
    "reward",
    "samples",
    "slots",
    "regression",
    "force",
    "device",
    "dtype",
    "chat_template",
)
_OF_ENDPOINTS = ("timeout_s", "attempts", "at_once")
_OF_JUDGES = ("judge_template", "judge_max_tokens", "price_in", "price_out")


def _require_known(settings: Mapping[str, Any]) -> None:
    """Refuse an argument that `evaluate` does not have."""
    known = {*_OF_REQUESTS, *_OF_ENDPOINTS, *_OF_JUDGES}
    if unknown := sorted(settings.keys() - known):
        named = sorted({*known, *signature(evaluate).parameters} - {"settings"})
        raise RecipeError(f"evaluate has no argument {unknown[0]!r}", f"There are {', '.join(named)}.")


def _sources(given: Any) -> tuple[str, ...]:
    """Names of sources: a file, several, or rows in memory; empty for None."""
    if given is None:
        return ()
    if is_rows(given):
        return (memory_source(given),)
    return (os.fspath(given),) if isinstance(given, str | os.PathLike) else tuple(map(os.fspath, given))


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    chat_template: str | None = None,
) -> Model:
    """A model by name, to generate or score with. See prefine.named_model.load."""
    from prefine.named_model import load as load_named

    return load_named(name, device=device, dtype=dtype, chat_template=chat_template)


@overload
def load_recipe(stage: Literal["sft"], recipe: RecipeLike = None, **overrides: Any) -> SftRecipe: ...
@overload
def load_recipe(stage: Literal["dpo"], recipe: RecipeLike = None, **overrides: Any) -> DpoRecipe: ...
@overload
def load_recipe(stage: Literal["kto"], recipe: RecipeLike = None, **overrides: Any) -> KtoRecipe: ...
@overload
def load_recipe(stage: Literal["orpo"], recipe: RecipeLike = None, **overrides: Any) -> OrpoRecipe: ...
@overload
def load_recipe(stage: Literal["reward"], recipe: RecipeLike = None, **overrides: Any) -> RewardRecipe: ...
@overload
def load_recipe(stage: Literal["ppo"], recipe: RecipeLike = None, **overrides: Any) -> PpoRecipe: ...
def load_recipe(stage: str, recipe: RecipeLike = None, **overrides: Any) -> StageRecipe:
    """A stage's recipe, validated, with every field.

    Args:
        stage: sft, reward, dpo, kto, orpo or ppo.
        recipe: a path, a dict, another recipe object, or None for the defaults.
        overrides: see `sft`.

    Raises:
        RecipeError: it is not valid; lists every field, value and rule.
    """
    return recipe_from(recipe, overrides, _recipe_type(stage), _plain)


def _recipe_type(stage: str) -> type[StageRecipe]:
    if stage not in RECIPES:
        raise RecipeError(f"stage is {stage!r}", f"Write one of {', '.join(RECIPES)}.")
    return RECIPES[stage]


def _plain(keys: Keys, value: Any) -> Any:
    """Replaces rows in memory by the name of a source, and a reward function by its name."""
    if callable(value) and keys[0] == "reward" and keys[-1] in ("name", "judge"):
        return given_function(value)
    return memory_source(value) if keys in _SOURCES and is_rows(value) else value


def _display(show: bool | Display | None, on_step: OnStep | None, on_evaluation: OnStep | None) -> Display:
    from rich.console import Console

    from prefine.training.display import Callbacks, Display
    from prefine.training.notebook import NotebookDisplay, in_notebook

    if isinstance(show, Display):  # of a pipeline
        return show
    given = {"on_step": on_step, "on_evaluation": on_evaluation}
    callbacks = Callbacks(**{name: function for name, function in given.items() if function is not None})
    if in_notebook() and show is not False:
        return NotebookDisplay(callbacks)
    console = Console()
    return Display(console, enabled=console.is_terminal if show is None else show, callbacks=callbacks)
