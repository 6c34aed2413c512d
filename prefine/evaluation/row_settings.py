"""What decides the rows that `generate` and `score` write: an interrupted file goes on only with the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from prefine.atomic import JSON
from prefine.data.template import ChatTemplate
from prefine.evaluation.row_file import RowFile
from prefine.models.load import LoadedModel
from prefine.models.location import Location, base_hash, locate_model, weights_hash
from prefine.models.reward import PackedReward
from prefine.models.sampling import Sampling
from prefine.models.scoring import RewardModel


def recorded_dtype(file: RowFile | None) -> Literal["auto", "float32", "bfloat16"]:
    """The type that an interrupted command computed in: measured again, `auto` may find another one faster."""
    match None if file is None else file.setting("dtype"):
        case "float32":
            return "float32"
        case "bfloat16":
            return "bfloat16"
    return "auto"


def source_settings(sources: Sequence[str], split: str, quarantine: Path | None) -> dict[str, JSON]:
    """What is read, and where rows that cannot be used go."""
    return {"files": list(sources), "split": split, "quarantine": None if quarantine is None else str(quarantine)}


def settings_of_answers(loaded: LoadedModel, sampling: Sampling) -> dict[str, JSON]:
    """Of a model that writes: its weights, tokens and number type, and how it draws."""
    return {
        **_model(loaded.location, loaded.base_sha256, loaded.template),
        **_computed(loaded),
        **asdict(sampling),
    }


def settings_of_scores(reward: RewardModel) -> dict[str, JSON]:
    """Of a reward model: its weights, tokens, number type and scale."""
    scale: JSON = None if reward.scale is None else reward.scale.as_json()
    if isinstance(reward, PackedReward):
        loaded = reward.loaded
        return {**_model(loaded.location, loaded.base_sha256, loaded.template), **_computed(loaded), "scale": scale}
    location = locate_model(reward.name)
    return {**_model(location, base_hash(location.base), None), "scale": scale}


def _model(location: Location, base_sha256: str, template: ChatTemplate | None) -> dict[str, JSON]:
    return {
        "model": location.name,
        "base_sha256": base_sha256,
        "weights_sha256": base_sha256 if location.adapter is None else weights_hash(location),
        "template": None if template is None else template.fingerprint,
    }


def _computed(loaded: LoadedModel) -> dict[str, JSON]:
    packed = loaded.packed
    return {"device": packed.device.type, "dtype": str(packed.compute_dtype).removeprefix("torch.")}
