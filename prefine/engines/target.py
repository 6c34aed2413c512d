"""What an engine is asked to serve: a base with adapters, a folder with a whole model, or a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import ModelError
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.location import ADAPTER_CONFIG, Location, base_hash, locate_model
from prefine.models.loading.weights import fetched_whole
from prefine.paths import expanded

# What PEFT can train and vLLM's LoRA does not compute.
_NOT_PLAIN_LORA = {
    "modules_to_save": "whole layers beside the adapter",
    "trainable_token_indices": "embeddings of single tokens",
    "target_parameters": "parameters outside linear layers",
    "use_dora": "DoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "rank_pattern": "ranks that differ by layer",
    "alpha_pattern": "scales that differ by layer",
}


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter: its name for clients, its folder and its largest rank."""

    name: str
    folder: Path
    rank: int


@dataclass(frozen=True)
class Target:
    """A model as an engine loads it.

    Attributes:
        name: what clients call it; with adapters, what they call the base.
        model: a folder with a transformers model, or a GGUF file.
        adapters: LoRA adapters on it.
        dtype: the type to compute in ("float32", "bfloat16"), None where the model's files decide.
        settings: the folder whose chat template and generation_config count, None where the model's own do.
    """

    name: str
    model: str
    adapters: tuple[Adapter, ...] = ()
    dtype: str | None = None
    settings: Path | None = None


def client_name(name: str) -> str:
    """What clients call a model: the last part of its path or id; of a GGUF file, without the ending."""
    return Path(expanded(name)).name.removesuffix(".gguf") or name


def transformers_target(names: Sequence[str]) -> Target:
    """What vLLM serves: one whole model, or any number of LoRA adapters of one base.

    Raises:
        ModelError: a GGUF file, a reward model, another kind of adapter, adapters of several bases, weights that the
            run had in 4 or 8 bits, or a base that is not the one that was trained on.
    """
    for name in names:
        if _gguf_files(Path(expanded(name))):
            raise ModelError(
                f"{name} holds GGUF files, which vLLM does not serve well",
                "Serve it with --engine llama.cpp, or export: prefine export RUN --to merged.",
            )
    located = [locate_model(name) for name in names]
    adapted = [each for each in located if each.adapter is not None]
    if len(adapted) != len(located):
        if len(located) > 1:
            whole = next(each for each in located if each.adapter is None)
            raise ModelError(
                f"{whole.name} is a whole model, and vLLM serves one of these at a time",
                "Name it alone, or name adapters of one base.",
            )
        return _whole(located[0])
    if other := next((each for each in adapted if not _same_base(each, adapted[0])), None):
        raise ModelError(
            f"{other.name} was trained on {other.base_name}, and {adapted[0].name} on {adapted[0].base_name}",
            "Serve them in two processes, or export each: prefine export RUN --to merged.",
        )
    taken = [client_name(each.name) for each in adapted]
    if twice := next((name for name in taken if taken.count(name) > 1), None):
        raise ModelError(f"two of the models are called {twice!r}", "Rename the folder of one of them.")
    adapters = tuple(_adapter(each) for each in adapted)
    first = adapted[0]
    revision = _base_revision(first)
    base = str(fetched_whole(first.base, revision))
    if first.base_sha256 and base_hash(base) != first.base_sha256:
        at = "" if revision is None else f" at revision {revision!r}"
        raise ModelError(
            f"{first.name} was trained on other weights than {first.base}{at} holds now",
            "Bring back the base it was trained on.",
        )
    name = client_name(first.base_name)
    # vLLM looks for the base's name first, and would answer with the base for an adapter of that name.
    name = f"{name}-base" if name in taken else name
    return Target(name, base, adapters, first.compute_dtype, first.adapter)


def gguf_target(names: Sequence[str]) -> Target:
    """What llama.cpp serves: one GGUF file, named itself or by its folder.

    Raises:
        ModelError: several names, a folder with several GGUF files, or one without any.
    """
    if len(names) != 1:
        raise ModelError("llama.cpp serves one model at a time", "Name one, or start one server for each.")
    path = Path(expanded(names[0]))
    files = _gguf_files(path)
    if not files:
        if not path.exists():
            locate_model(names[0])  # which says what is close to the name
        raise ModelError(
            f"{names[0]} holds no GGUF file",
            f"Make one: prefine export {names[0]} --to gguf:q8_0, and serve that folder.",
        )
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise ModelError(f"{names[0]} holds {len(files)} GGUF files ({listed})", "Name the file to serve.")
    return Target(client_name(str(files[0])), str(files[0].resolve()))


def _gguf_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".gguf" else []
    return sorted(path.glob("*.gguf")) if path.is_dir() else []


def _whole(location: Location) -> Target:
    folder = fetched_whole(location.base, None)
    kinds = _read(folder / "config.json").get("architectures") or ()
    _refuse_classifier(location.name, [str(each) for each in kinds])
    return Target(client_name(location.name), str(folder))


def _refuse_classifier(name: str, kinds: Sequence[str]) -> None:
    if any(kind.endswith(("ForSequenceClassification", "SEQ_CLS")) for kind in kinds):
        raise ModelError(f"{name} is a reward model, which gives scores and no text", "Serve it without --engine.")


def _same_base(one: Location, other: Location) -> bool:
    if one.base_sha256 and other.base_sha256:
        return one.base_sha256 == other.base_sha256
    return one.base == other.base


def _base_revision(location: Location) -> str | None:
    """The commit or branch of a hub's base that an adapter belongs to: as its own files or its run note it."""
    folder = location.adapter
    if folder is None:
        return None
    manifest = _read(folder.parent / "manifest.json")
    recipe = manifest.get("recipe")
    section = recipe.get("model") if isinstance(recipe, dict) else None
    noted = _read(folder / ADAPTER_CONFIG).get("revision") or (
        section.get("revision") if isinstance(section, dict) else None
    )
    return str(noted) if noted else None


def _adapter(location: Location) -> Adapter:
    folder = location.adapter
    if folder is None:
        raise TypeError("a location without an adapter")
    config = _read(folder / ADAPTER_CONFIG)
    _refuse_classifier(location.name, [str(config.get("task_type"))])
    merged = f"Export it whole: prefine export {location.name} --to merged, and serve that folder."
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{location.name} is a {config.get('peft_type')} adapter, and vLLM serves LoRA alone", merged)
    if more := [what for key, what in _NOT_PLAIN_LORA.items() if config.get(key)]:
        raise ModelError(f"{location.name} has {more[0]}, which vLLM does not serve", merged)
    if location.quantization != "none":
        raise ModelError(
            f"{location.name} was trained on {location.quantization} weights, and vLLM would put its adapter on others",
            merged,
        )
    if config.get("bias", "none") != "none":
        raise ModelError(f"{location.name} has trained biases, which vLLM does not serve", merged)
    return Adapter(client_name(location.name), folder.resolve(), int(config.get("r") or 0))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, JsonError):  # locate_model has read it: it went since
        return {}
