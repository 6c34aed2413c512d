"""The readiness report of a reward run: at its end, and again where a finished run is given other thresholds."""

from __future__ import annotations

from prefine.data.prepare import open_stores
from prefine.data.tokens.store import TokenStore
from prefine.evaluation.readiness.assess import Readiness, work
from prefine.evaluation.readiness.check import assess_own
from prefine.evaluation.readiness.page import write_readiness
from prefine.evaluation.readiness.stored import Kind
from prefine.json_reading import read_json_object
from prefine.models.scoring.packed_scorer import load_reward
from prefine.models.scoring.scorer import RewardModel
from prefine.recipe.loading import resolved_yaml
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.sections import named_model
from prefine.runs.atomic import storage_errors, write_json, write_text
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import RECIPE_MARK, is_own_recipe
from prefine.training.display import Display

# The recipe's section of thresholds.
_SECTION = "readiness"


def report_readiness(
    reward: RewardModel,
    train: TokenStore,
    heldout: TokenStore,
    recipe: RewardRecipe,
    kind: Kind,
    run: RunDirectory,
    display: Display,
) -> Readiness:
    """Assess a run's reward model, write the report to the run's folder, and show the verdict.

    Args:
        train, heldout: the rows of the run.
        kind: of these rows.
    """
    limits = recipe.readiness
    total = work(min(len(heldout), limits.heldout_pairs), min(len(train), limits.trained_pairs))
    with display.progress(total, 0, "readiness report"):
        readiness = assess_own(reward, train, heldout, recipe, kind, display.advance)
        display.advance(total)
    page = write_readiness(readiness, run.path)
    display.say(f"readiness for PPO: {readiness.verdict.value}, see {page}")
    for reason in readiness.reasons:
        display.say(f"  {reason.level.value}: {reason.name}: {reason.found}. {reason.meaning}")
    return readiness


def as_warnings(readiness: Readiness) -> list[str]:
    """The reasons against the model, for the top of the run's report."""
    return [f"{each.name}: {each.found}. {each.meaning}" for each in readiness.reasons]


def renew_readiness(recipe: RewardRecipe, kind: Kind, run: RunDirectory, display: Display) -> None:
    """Make the readiness report of a finished run again if the recipe has other thresholds; nothing is trained.

    Before the report is written, the thresholds are taken out of the manifest; they are written into it last. A call
    after a kill begins again, whatever its thresholds.

    Raises:
        PrefineError: the model or the rows cannot be read, or a file cannot be written.
    """
    manifest = read_json_object(run.manifest)
    if manifest["recipe"].get(_SECTION) == recipe.readiness.model_dump(mode="json"):
        return
    train, heldout = open_stores(run.data)
    reward = load_reward(named_model(str(run.path), device=recipe.model.device))
    before = {name: value for name, value in manifest["recipe"].items() if name != _SECTION}
    write_json(run.manifest, {**manifest, "recipe": before})
    readiness = report_readiness(reward, train, heldout, recipe, kind, run, display)
    names = tuple(f"{each.name}: " for each in readiness.findings)
    others = [each for each in manifest.get("warnings", []) if not str(each).startswith(names)]
    if not run.recipe.exists() or is_own_recipe(run.recipe):
        write_text(run.recipe, RECIPE_MARK + resolved_yaml(recipe))
    with storage_errors(run.report):
        run.report.unlink(missing_ok=True)  # it shows the earlier verdict; a finished run without one gets it again
    write_json(
        run.manifest,
        {
            **manifest,
            "recipe": recipe.model_dump(mode="json"),
            "readiness": readiness.verdict.value,
            "warnings": [*others, *as_warnings(readiness)],
        },
    )
