"""Settings that affect the rows of `generate` and `score`; a file is only resumed with equal settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from prefine.generation.sampling import Sampling
from prefine.models.loading.identity import identity_of, tokenizer_hash
from prefine.models.loading.load import LoadedModel
from prefine.models.loading.location import locate_model
from prefine.models.scoring.packed_scorer import PackedReward
from prefine.models.scoring.scorer import RewardModel
from prefine.row_rules import RowRules
from prefine.runs.atomic import JSON
from prefine.runs.row_file import RowFile
from prefine.text_form import TextForm

_FILES = "the hash of the model's files"
_TOKENS = "the hash of the tokenizer's files"


def recorded_dtype(file: RowFile | None) -> Literal["auto", "float32", "bfloat16"]:
    """The number type of the interrupted command; `auto` would measure again and could choose another one."""
    match None if file is None else file.setting("dtype"):
        case "float32":
            return "float32"
        case "bfloat16":
            return "bfloat16"
    return "auto"


def source_settings(
    sources: Sequence[str], split: str, text: TextForm, rules: RowRules, quarantine: Path | None
) -> dict[str, JSON]:
    """Sources, how they are read, and the quarantine file."""
    return {
        "files": list(sources),
        "split": split,
        **asdict(text),
        **({"columns": dict(rules.columns)} if rules.columns else {}),
        "quarantine": None if quarantine is None else str(quarantine),
    }


def settings_of_answers(loaded: LoadedModel, sampling: Sampling) -> dict[str, JSON]:
    """Settings of a language model: files, tokens, number type and sampling."""
    return {**_of_loaded(loaded), **asdict(sampling)}


def settings_of_scores(reward: RewardModel) -> dict[str, JSON]:
    """Settings of a reward model: files, tokens and number type."""
    if isinstance(reward, PackedReward):
        return _of_loaded(reward.loaded)
    location = locate_model(reward.name)
    return {"model": location.name, _FILES: identity_of(location).digest, _TOKENS: tokenizer_hash(location)}


def _of_loaded(loaded: LoadedModel) -> dict[str, JSON]:
    return {
        "model": loaded.location.name,
        _FILES: loaded.identity.digest,
        "template": loaded.template.fingerprint,
        "device": loaded.packed.device.type,
        "dtype": str(loaded.packed.compute_dtype).removeprefix("torch."),
    }
