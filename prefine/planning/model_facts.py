"""What a plan knows of a model: its shapes, its adapter and the size of its files, read without its weights.

Of a hub model only config.json is fetched here; counting rows needs its tokenizer, too (see row_counts.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefine.errors import ModelError
from prefine.models.loading.location import locate_model
from prefine.models.loading.weights import ADAPTER_CONFIG, config_of, read_object, weight_files
from prefine.models.scoring.packed_scorer import scale_of
from prefine.planning.architecture import Architecture, architecture_of

STAGE = "stage:"
_BYTES_ON_A_HUB = 2  # hubs hold most models in 16 bits


@dataclass(frozen=True)
class AdapterFacts:
    """A low-rank adapter: its rank, and the modules that it is on (see lora.targets)."""

    rank: int
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class ScoringFacts:
    """With what a reward model's scores were measured in its training, and are therefore computed.

    Attributes:
        quantization: of its weights: none, nf4 or int8; None if it is to be that of the policy that learns from it.
        dtype: its compute type; None where nothing says.
    """

    quantization: str | None
    dtype: str | None


@dataclass(frozen=True)
class ModelFacts:
    """A model that a stage begins with, or that it will leave.

    Attributes:
        name: in the recipe.
        base: which weights an adapter belongs to: models of one base can share them.
        config: of the base, as in its config.json.
        adapter: its adapter; None for whole weights.
        file_bytes: size of the base's weight files.
        scores: of a reward model that prefine trained or will train; None for others.
    """

    name: str
    base: str
    config: Mapping[str, Any] = field(repr=False)
    adapter: AdapterFacts | None = None
    file_bytes: int = 0
    scores: ScoringFacts | None = None

    @property
    def architecture(self) -> Architecture:
        """Its shapes. Raises ModelError; see architecture_of."""
        return architecture_of(self.config)

    @staticmethod
    def of(name: str, revision: str | None = None) -> ModelFacts:
        """Read a model's config by name: a folder, a run, embedded:… or a hub id, of which only config.json is fetched.

        Raises:
            ModelError: there is no such model, or it has no result yet.
        """
        if name.startswith(STAGE):
            raise ModelError(
                f"{name!r} is a stage of a pipeline, and there is none here",
                "Plan the pipeline's file, or name a model.",
                field="model.name",
            )
        location = locate_model(name)
        config = config_of(location.base, revision)
        adapter = None if location.adapter is None else _adapter_in(location.adapter)
        folder = Path(location.base)
        files = sum(each.stat().st_size for each in weight_files(folder)) if folder.is_dir() else 0
        found = ModelFacts(name, location.base_name, config, adapter, files)
        return found if files else replace(found, file_bytes=found.architecture.parameters * _BYTES_ON_A_HUB)

    @staticmethod
    def of_reward(name: str) -> ModelFacts:
        """As `of`, for a reward model: with its reward.json, if it has one.

        Raises:
            ModelError: see `of`; or reward.json is not valid.
        """
        found, scale = ModelFacts.of(name), scale_of(locate_model(name))
        return found if scale is None else replace(found, scores=ScoringFacts(scale.quantization, scale.compute_dtype))


def _adapter_in(folder: Path) -> AdapterFacts:
    settings = read_object(folder / ADAPTER_CONFIG)
    rank, targets = settings.get("r"), settings.get("target_modules")
    if not isinstance(rank, int) or not isinstance(targets, str | list):
        raise ModelError(
            f"{str(folder)!r} is not a LoRA adapter: its {ADAPTER_CONFIG} has no r and target_modules",
            "Name a LoRA adapter, or a whole model.",
            field="model.name",
        )
    return AdapterFacts(rank, targets if isinstance(targets, str) else tuple(map(str, targets)))
