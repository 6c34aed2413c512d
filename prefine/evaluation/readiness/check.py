"""Readiness of a reward model named by a user, on its own held-out rows or on a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefine.data.dataset import RecordStream, read_records
from prefine.data.kinds import KINDS, kind_of_sources
from prefine.data.prepare import source_names
from prefine.data.quarantine import Quarantine
from prefine.data.store import TokenStore
from prefine.errors import DataError
from prefine.evaluation.readiness.assess import Readiness, assess
from prefine.evaluation.readiness.stored import prompts_trained_on, stored_records, trained_records
from prefine.models.load import load_tokenizer
from prefine.models.location import locate_model
from prefine.models.reward import load_reward
from prefine.models.scoring import RewardModel
from prefine.recipe import ModelSection, RewardRecipe
from prefine.recipe_loading import load_recipe
from prefine.records import Preference, Vote


@dataclass(frozen=True)
class Checked:
    """A readiness report and what else is to be said.

    Attributes:
        folder: the run's folder, if the model is a run of prefine.
        notes: lines for the user.
    """

    readiness: Readiness
    folder: Path | None
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
    """Judge the reward model `name`.

    Args:
        overrides: --set of a reward recipe, for its thresholds; a run's own recipe is their base.
        data: sources of pairs or votes; none for the held-out rows of the run.
        split: of a Hugging Face data set.
        policy: a model whose tokens are compared with the reward model's.

    Raises:
        PrefineError: no such model or data; a model that is no run, without data.
    """
    run = _run_folder(name)
    recipe = load_recipe(None if run is None else run / "recipe.yaml", overrides, RewardRecipe)
    if run is None and not data:
        raise DataError(f"{name} is no reward run, so it has no held-out rows", "Name pairs or votes with --data FILE.")
    kind = _kind(data, split) if data else _kind_of_run(run)
    reward = load_reward(_section(name, recipe, run, device))
    notes = [] if policy is None else [_about_tokens(reward, policy)]
    stores = (
        None if run is None else {part: TokenStore(run / "data" / f"{part}.arrow") for part in ("train", "heldout")}
    )
    if not data:
        assert stores is not None  # noqa: S101
        readiness = assess(
            reward,
            stored_records(stores["heldout"], kind),
            recipe.readiness,
            data=f"{len(stores['heldout'])} held-out rows",
            trained_on=trained_records(stores["train"], kind, recipe),
            progress=progress,
        )
        return Checked(readiness, run, notes)
    with Quarantine() as quarantine:
        stream: RecordStream[Preference | Vote] = read_records(
            source_names(list(data)), kind, quarantine=quarantine, split=split
        )
        trained = (lambda record: False) if stores is None else prompts_trained_on(stores["train"], _kind_of_run(run))
        readiness = assess(
            reward,
            stream,
            recipe.readiness,
            data=", ".join(data),
            is_trained_prompt=trained,
            progress=progress,
        )
        if quarantine.total:
            notes.append(f"{quarantine.total} rows could not be used; prefine data check shows which and why.")
    return Checked(readiness, run, notes)


def _run_folder(name: str) -> Path | None:
    path = Path(name)
    return path if (path / "manifest.json").is_file() and (path / "recipe.yaml").is_file() else None


def _section(name: str, recipe: RewardRecipe, run: Path | None, device: str) -> ModelSection:
    """How the model is loaded: a run's as it was trained, so that its scores are the same."""
    section = recipe.model.model_copy(update={"name": name, "device": device})
    if run is None:
        return section
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    return section.model_copy(update={"dtype": manifest["model"]["compute_dtype"], "revision": None})


def _kind(data: Sequence[str], split: str) -> type[Preference] | type[Vote]:
    found = kind_of_sources(source_names(list(data)), split=split)
    if KINDS[found] not in (Preference, Vote):
        raise DataError(f"{', '.join(data)} holds {found}", "A reward model is judged on preferences, or on votes.")
    return KINDS[found]


def _kind_of_run(run: Path | None) -> type[Preference] | type[Vote]:
    assert run is not None  # noqa: S101
    first = TokenStore(run / "data" / "heldout.arrow").record_json(0)
    return Vote if "label" in json.loads(first) else Preference


def _about_tokens(reward: RewardModel, policy: str) -> str:
    template = load_tokenizer(locate_model(policy), ModelSection(name=policy))
    theirs, ours = template.tokenizer, reward.tokenizer
    if theirs.get_vocab() == ours.get_vocab() and theirs.chat_template == ours.chat_template:
        return f"{policy} and {reward.name} have the same tokens and chat template."
    return (
        f"{policy} has another tokenizer or chat template than {reward.name}: its answers are decoded to text and "
        "tokenized again before they are scored."
    )
