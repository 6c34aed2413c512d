"""Readiness of a reward model named by a user, on its own held-out rows or on a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefine.data.prepare import open_stores
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.data.records.stream import RecordStream, read_records
from prefine.data.tokens.store import TokenStore
from prefine.errors import DataError, RecipeError, about
from prefine.evaluation.readiness.assess import Readiness, assess
from prefine.evaluation.readiness.stored import (
    Kind,
    kind_stored,
    prompts_trained_on,
    stored_records,
    trained_records,
)
from prefine.formatting import plural
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.load import load_tokenizer
from prefine.models.loading.location import locate_model
from prefine.models.scoring.packed_scorer import load_reward
from prefine.models.scoring.scorer import RewardModel
from prefine.paths import expanded
from prefine.recipe.loading import load_recipe
from prefine.recipe.registry import RECIPES
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.sections import named_model
from prefine.records import Conversation, Preference, Vote


@dataclass(frozen=True)
class Checked:
    """A readiness report with notes.

    Attributes:
        notes: lines for the user.
    """

    readiness: Readiness
    notes: list[str] = field(default_factory=list)


def check_reward(
    name: str,
    overrides: Sequence[str],
    *,
    data: Sequence[str] = (),
    split: str = "test",
    policy: str | None = None,
    device: str = "auto",
    progress: Callable[[int], None] = lambda done: None,
) -> Checked:
    """Check the reward model `name`.

    Args:
        overrides: --set of a reward recipe, for its thresholds; a run's own recipe is their base.
        data: sources of pairs or votes; empty for the held-out rows of the run.
        split: of a Hugging Face dataset.
        policy: a model whose tokens are compared with the reward model's.

    Raises:
        PrefineError: no such model or data; the model is not a run and no data is given.
    """
    run = run_folder(name)
    with about(None):
        locate_model(name)  # raises at once if there is none
    recipe = _recipe(run, overrides)
    limits = recipe.readiness
    if run is None and not data:
        raise DataError(
            f"{name} is not a reward run, so it has no held-out rows", "Name pairs or votes with --data FILE."
        )
    sources = _sources(data, split) if data else None
    with about(None):
        reward = load_reward(named_model(name, device=device))
    notes = [] if policy is None else [_about_tokens(reward, policy)]
    if sources is None:
        assert run is not None  # noqa: S101
        return Checked(_on_own_rows(reward, run, recipe, progress), notes)
    kind, names = sources
    with Quarantine() as quarantine:
        stream: RecordStream[Preference | Vote] = read_records(names, kind, quarantine=quarantine, split=split)
        train = None if run is None else run / "data" / "train.arrow"
        if train is None or not train.is_file():  # a copy of a run may lack its data
            trained: Callable[[Conversation], bool] = lambda prompt: False  # noqa: E731
        else:
            store, _ = open_stores(train.parent)
            trained = prompts_trained_on(store, kind_stored(store))
        readiness = assess(reward, stream, limits, data=", ".join(data), is_trained_prompt=trained, progress=progress)
        if quarantine.total:
            unusable = plural(quarantine.total, "row")
            notes.append(f"{unusable} could not be used; prefine data check shows which and why.")
    return Checked(readiness, notes)


def _on_own_rows(reward: RewardModel, run: Path, recipe: RewardRecipe, progress: Callable[[int], None]) -> Readiness:
    paths = [run / "data" / f"{part}.arrow" for part in ("train", "heldout")]
    if not all(path.is_file() for path in paths):
        raise DataError(f"{run} has no prepared data", "Name pairs or votes with --data FILE.")
    train, heldout = open_stores(run / "data")
    if not len(heldout):
        raise DataError(f"{run} holds no held-out rows", "Name pairs or votes with --data FILE.")
    kind = kind_stored(heldout)
    return assess_own(reward, train, heldout, recipe, kind, progress)


def assess_own(
    reward: RewardModel,
    train: TokenStore,
    heldout: TokenStore,
    recipe: RewardRecipe,
    kind: Kind,
    progress: Callable[[int], None],
) -> Readiness:
    """Check a run's reward model on at most readiness.heldout_pairs of its own held-out rows."""
    return assess(
        reward,
        stored_records(heldout, kind, recipe.readiness.heldout_pairs),
        recipe.readiness,
        data=plural(len(heldout), "held-out row"),
        trained_on=trained_records(train, kind, recipe),
        rows_in_all=(len(heldout), len(train)),
        progress=progress,
    )


def _recipe(run: Path | None, overrides: Sequence[str]) -> RewardRecipe:
    """A run's recipe, or the default one, with thresholds from --set; other settings are refused."""
    foreign = [override for override in overrides if not override.startswith("readiness.")]
    if foreign:
        raise RecipeError(
            f"--set {foreign[0]}: a check accepts thresholds only", "Write --set readiness.NAME=VALUE (docs/reward.md)."
        )
    return load_recipe(None if run is None else run / "recipe.yaml", overrides, RewardRecipe)


def run_folder(name: str) -> Path | None:
    """The folder of that name if it is a reward run, else None.

    Raises:
        DataError: it is a run of another stage, or its manifest is damaged.
    """
    path = Path(expanded(name))
    if not ((path / "manifest.json").is_file() and (path / "recipe.yaml").is_file()):
        return None
    try:
        stage = read_json_object(path / "manifest.json").get("stage")
    except JsonError as error:
        raise DataError(f"{path / 'manifest.json'} {error}", "Restore the file, or train the run again.") from None
    if RECIPES.get(str(stage)) is not RewardRecipe:
        raise DataError(f"{name} is a run of {stage}, not of a reward model", "Name a run of prefine reward.")
    return path


def _sources(data: Sequence[str], split: str) -> tuple[type[Preference] | type[Vote], list[str]]:
    names = source_names(list(data))
    found = kind_of_sources(names, split=split)
    if KINDS[found] not in (Preference, Vote):
        raise DataError(f"{', '.join(data)} holds {found}", "A reward model is checked on preferences or votes.")
    return KINDS[found], names


def _about_tokens(reward: RewardModel, policy: str) -> str:
    with about("--policy"):
        template = load_tokenizer(locate_model(policy), named_model(policy))
    theirs, ours = template.tokenizer, reward.tokenizer
    if theirs.get_vocab() == ours.get_vocab() and theirs.chat_template == ours.chat_template:
        return f"{policy} and {reward.name} have the same tokens and chat template."
    return (
        f"{policy} has another tokenizer or chat template than {reward.name}: its answers are decoded and tokenized "
        "again for scoring."
    )
