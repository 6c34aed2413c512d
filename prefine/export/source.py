"""What is exported: a finished run, a model's folder or an adapter, checked against what it was trained on."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prefine.errors import CheckpointError, ModelError, about
from prefine.export.merging import dense, merge, peft_warnings_off
from prefine.json_reading import JsonError, read_json_object
from prefine.models.forward.packed import standard_attention
from prefine.models.loading.heads import IN_ADAPTER
from prefine.models.loading.load import LoadedModel, load_model
from prefine.models.loading.location import ADAPTER_WEIGHTS, Location, local_folder, locate_model
from prefine.models.loading.quiet import known_noise_off
from prefine.models.loading.weights import (
    CONFIG,
    SCALE_FILE,
    fetched_whole,
    opened_weights,
    read_object,
    weight_files,
)
from prefine.paths import expanded
from prefine.recipe.sections import ModelSection, named_model
from prefine.runs.atomic import sha256_of_file
from prefine.runs.directory import RunDirectory

# safetensors' names of the types that a model can be saved in.
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Parts of tensor names by which libraries save a head that estimates rewards during PPO.
_VALUE_HEADS = ("v_head.", "value_head.")


@dataclass(frozen=True)
class BaseFacts:
    """What the headers of the base's weight files say.

    Attributes:
        parameters: how many there are.
        stored_dtype: torch's name of the type that most of them are stored in.
    """

    parameters: int
    stored_dtype: str


class ExportSource:
    """A model to export. `ExportSource.open` finds and checks it; weights are loaded when they are first asked for.

    Attributes:
        name: as the user gave it.
        location: where its parts are.
        run: the run that made it; None for a folder or a hub id.
        manifest: of that run; empty without one.
        revision: of the base, where that is a hub's: its commit.
        quantization: of the base in training: none, nf4 or int8.
        scores: whether it is a reward model, which gives scores and generates no text.
    """

    def __init__(self, name: str, location: Location, run: RunDirectory | None, manifest: Mapping[str, Any]) -> None:
        self.name = name
        self.location = location
        self.run = run
        self.manifest = manifest
        self.revision = _revision_of(manifest)
        self.quantization: str = location.quantization
        self.scores = _is_reward_model(location)
        self._merged = False

    @classmethod
    def open(cls, name: str) -> ExportSource:
        """Find a model by its name: a run's folder, a folder, a hub id or embedded:….

        Raises:
            ModelError: there is no model, its base is missing, it has a value head, or it needs code of its own.
            CheckpointError: the run did not finish, or its result is not what it ended with.
        """
        path = Path(expanded(name))
        with about(None):
            run = _run_of(path)
            manifest = {} if run is None else _finished_manifest(run)
            _refuse_checkpoint(path)
            location = locate_model(name)
            folder = fetched_whole(location.base, _revision_of(manifest))  # before anything is read of it
            if manifest.get("recipe", {}).get("model", {}).get("trust_remote_code"):
                raise ModelError(
                    f"{name} was trained with model.trust_remote_code, and exports run no code that comes with a model",
                    "Copy the run's model/ folder, and the base's code, by hand.",
                )
            source = cls(name, location, run, manifest)
            if not Path(location.base).is_dir():
                source.revision = folder.name  # the commit: a branch may be another one tomorrow
            source._refuse_value_head()
        return source

    @property
    def section(self) -> ModelSection:
        """How it is loaded: on the processor, computed as `reference_dtype` says, quantised as in training."""
        return named_model(
            self.name,
            device="cpu",
            dtype=self.reference_dtype,
            revision=self.revision,
            quantization=self.quantization,
        )

    @property
    def reference_dtype(self) -> str:
        """The type that the run is computed in for comparison.

        float32, in which the weights that are stored stay what they are. A base that was quantised in training is
        computed as it was then: which values its weights were rounded to depends on that.
        """
        if self.quantization == "none":
            return "float32"
        return self.location.compute_dtype or "float32"

    @property
    def roundings(self) -> tuple[str, ...]:
        """What the run's own figures are rounded by: keys of ROUNDING_LIMITS."""
        return (self.reference_dtype, *(("int8",) if self.quantization == "int8" else ()))

    @cached_property
    def base(self) -> BaseFacts:
        """Facts of the base's weights. Raises ModelError: they cannot be read."""
        with about(None):
            return _facts_of(fetched_whole(self.location.base, self.revision))

    @cached_property
    def untied_parameters(self) -> int:
        """Weights that a merge adds: a second embedding, where head and embedding are tied and the adapter is on one.

        0 where nothing is added. An adapter's module outside the numbered layers is a head or an embedding.
        """
        from transformers import AutoConfig

        if self.location.adapter is None or self.scores:
            return 0
        with opened_weights(self.location.adapter / ADAPTER_WEIGHTS) as opened:
            if all(any(part.isdigit() for part in key.split(".")) for key in opened.keys()):  # noqa: SIM118
                return 0
        folder = fetched_whole(self.location.base, self.revision)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        return int(config.vocab_size * config.hidden_size) if config.tie_word_embeddings else 0

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model as prefine computes it, frozen; until `save_merged` is called, with its adapter in place.

        Raises:
            ModelError: it cannot be loaded, or the base is not the one that the adapter was trained on.
        """
        with about(None), peft_warnings_off():
            loaded = load_model(self.section, None, trainable=False)
        loaded.packed.eval()
        return loaded

    @property
    def has_adapter(self) -> bool:
        """Whether it is an adapter on a base, or all weights."""
        return self.location.adapter is not None

    @torch.no_grad()
    def save_merged(self, folder: Path, dtype: str) -> None:
        """Save the whole model, its adapter merged, with tokenizer, chat template and generation settings.

        The sum of base and adapter is computed in float32, and rounded once, to `dtype`. A base that was quantised is
        first dequantised to the weights that training saw. It can be called once: `loaded` is merged in place, so that
        the model is in memory once.

        Args:
            folder: exists; files are added.
            dtype: torch's name of the type: float32, bfloat16 or float16.

        Raises:
            ModelError: weights are not finite in that type.
        """
        if self._merged:
            raise RuntimeError("the model has been merged before")
        self._merged = True
        loaded = self.loaded
        if self.quantization != "none":
            plain = self.section.model_copy(update={"quantization": "none", "dtype": "float32"})
            loaded = dense(loaded, plain)
        with peft_warnings_off():
            model = merge(loaded.packed.model, getattr(torch, dtype), self.name)
        with known_noise_off(), standard_attention(loaded.packed):
            model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    def release(self) -> None:
        """Forget the weights, so that another process has room for its own."""
        self.__dict__.pop("loaded", None)
        gc.collect()  # modules and their hooks refer to each other

    def _refuse_value_head(self) -> None:
        folders = [self.location.adapter, local_folder(self.location.base, self.revision)]
        for folder in folders:
            files = [] if folder is None else weight_files(folder)
            for file in files:
                with opened_weights(file) as opened:
                    names = [key for key in opened.keys() if any(part in key for part in _VALUE_HEADS)]  # noqa: SIM118
                if names:
                    raise ModelError(
                        f"{self.name} has a value head ({names[0]}), which estimates rewards while PPO trains, and "
                        "which no library serves",
                        "Export the policy: the run's folder, or a model saved without that head.",
                    )


def _revision_of(manifest: Mapping[str, Any]) -> str | None:
    revision: str | None = manifest.get("recipe", {}).get("model", {}).get("revision")
    return revision


def _run_of(path: Path) -> RunDirectory | None:
    """The run that a path is, or whose result it is; None for any other path."""
    for folder in (path, path.parent if path.name == "model" else path):
        run = RunDirectory(folder)
        with suppress(OSError, JsonError):
            if {"stage", "recipe", "prefine"} <= read_json_object(run.manifest).keys():
                return run
    return None


def _finished_manifest(run: RunDirectory) -> dict[str, Any]:
    manifest = read_json_object(run.manifest)
    status = manifest.get("status")
    if status != "finished":
        stage = manifest.get("stage")
        raise CheckpointError(
            f"the run {run.path} is not finished (its status is {status!r})",
            f"Finish it first: prefine {stage} {run.recipe} --resume.",
        )
    files = manifest.get("result", {}).get("model", {}) if isinstance(manifest.get("result"), dict) else {}
    for name, expected in files.items():
        file = run.model / name
        if not file.is_file() or sha256_of_file(file) != expected:
            what = "was changed since the run ended" if file.is_file() else "is missing"
            raise CheckpointError(f"{file} {what}", f"Bring it back from a copy, or train {run.path} again.")
    return manifest


def _refuse_checkpoint(path: Path) -> None:
    run = RunDirectory(path.parent.parent)
    if path.is_dir() and path.parent == run.checkpoints and run.holds_run:
        raise CheckpointError(
            f"{path} is a checkpoint: the state of training, with its optimiser and any value head, and no model",
            f"Name the run: {run.path}.",
        )


def _is_reward_model(location: Location) -> bool:
    own = location.adapter or Path(location.base)
    if (own / SCALE_FILE).is_file():
        return True
    if location.adapter is not None:
        with opened_weights(location.adapter / ADAPTER_WEIGHTS) as opened:
            return IN_ADAPTER in opened.keys()  # noqa: SIM118
    config = read_object(own / CONFIG) if (own / CONFIG).is_file() else {}
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _facts_of(folder: Path) -> BaseFacts:
    found: dict[str, int] = {}
    for file in weight_files(folder):
        with opened_weights(file) as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(key)
                count = 1
                for size in part.get_shape():
                    count *= size
                found[part.get_dtype()] = found.get(part.get_dtype(), 0) + count
    most = max(found, key=lambda name: found[name], default="F32")
    return BaseFacts(sum(found.values()), _STORED.get(most, "bfloat16"))
