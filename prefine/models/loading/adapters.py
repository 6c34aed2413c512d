"""Puts low-rank adapters on a base model: a new one, or a saved one to train further or to use.

A reward model's adapter has its score head in the same file (PEFT's modules_to_save), so that neither is saved or
loaded without the other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prefine.errors import ModelError
from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.forward.fused import start_magnitudes
from prefine.models.loading.adapter_settings import module_names, read_settings
from prefine.models.loading.heads import IN_ADAPTER, SCORE, adapter_head_shape
from prefine.models.loading.location import ADAPTER_WEIGHTS, Location, one_line
from prefine.models.loading.module_names import matching_names
from prefine.models.loading.pissa import start_on_principal, with_held_half
from prefine.recipe.sections import LoraSection

log = logging.getLogger("prefine")


def put_adapter(base: Any, location: Location, lora: LoraSection | None, trainable: bool, *, scores: bool) -> Any:
    """The base with the location's adapter, or with a new one; the base itself if there is none.

    Args:
        base: transformers' model, frozen or not.
        location: where the model's parts are.
        lora: settings of a new adapter; None for none.
        trainable: whether the adapter is trained.
        scores: whether `base` is a sequence classifier, whose score head is trained and saved with the adapter.

    Raises:
        ModelError: targets match nothing; the adapter does not fit this base, or this use.
    """
    if location.adapter is not None:
        return _saved_adapter(base, location, location.adapter, lora, trainable, scores)
    if lora is None or not trainable:
        return base
    try:
        return _new_adapter(base, lora, scores)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"{lora.targets!r} does not fit this model ({one_line(error)})",
            f"Its linear modules are {', '.join(names)}; all-linear takes all but the head.",
            field="lora.targets",
        ) from error


def _new_adapter(base: Any, lora: LoraSection, scores: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    rank, alpha = lora.r, lora.alpha
    if lora.on_principal:
        rank, alpha = with_held_half(rank, alpha, rank_stabilised=lora.rslora)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(base, lora.targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        **_task(scores),
    )
    model = get_peft_model(base, config)
    if lora.dora:
        start_magnitudes(model, OWN_ADAPTER)
    if lora.on_principal:
        start_on_principal(model, OWN_ADAPTER, lora.init)
    return model


def _targets(base: nn.Module, targets: str | Sequence[str]) -> str | list[str]:
    """The modules that a new adapter is put on: names, those that an expression matches, or all-linear."""
    names = module_names(base)
    if isinstance(targets, str):
        if targets == "all-linear":
            return targets
        matching = matching_names(targets, names)
        if not matching:
            raise ValueError("no module's name matches it")
        return matching
    unmatched = [target for target in targets if not any(n == target or n.endswith(f".{target}") for n in names)]
    if unmatched:
        raise ValueError(f"no module is named {', '.join(unmatched)}")
    return list(targets)


def _task(scores: bool) -> dict[str, Any]:
    return {"task_type": "SEQ_CLS", "modules_to_save": [SCORE]} if scores else {"task_type": "CAUSAL_LM"}


def _saved_adapter(
    base: Any, location: Location, folder: Path, lora: LoraSection | None, trainable: bool, scores: bool
) -> Any:
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    if trainable and lora is None:
        raise ModelError(
            f"lora: null asks to train all weights, but {str(folder)!r} is an adapter",
            "Remove it to train that adapter further, or name a whole model.",
        )
    has_head = _require_fitting_head(base, folder, trainable, scores)
    try:
        settings = read_settings(folder, base)
        settings.base_model_name_or_path = location.base  # its file has the path from its own folder
        outside = settings.is_prompt_learning
        saved = load_file(folder / ADAPTER_WEIGHTS)
        model = base if outside else _put_on(base, folder, settings, saved, trainable, with_new_head=scores > has_head)
    except ModelError:
        raise
    except Exception as error:  # peft and safetensors raise many types on broken files
        raise ModelError(
            f"the adapter {str(folder)!r} could not be put on its base model ({one_line(error)})",
            "Use the base model it was trained on, or download the adapter again.",
            field="model.name",
        ) from error
    if outside:
        raise ModelError(
            f"the adapter {str(folder)!r} is of type {settings.peft_type.value}, which adds tokens",
            "Name a LoRA adapter, or a whole model.",
            field="model.name",
        )
    # peft only warns about keys that match nothing, but an adapter must not silently do nothing.
    held = {name for name in get_peft_model_state_dict(model) if has_head or name != IN_ADAPTER}
    apart = sorted(set(saved) ^ held)
    if apart:
        raise ModelError(
            f"{len(apart)} weights of the adapter {str(folder)!r} and its base model do not match ({apart[0]}, …)",
            "Use the base model it was trained on.",
            field="model.name",
        )
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    kept = {name: getattr(settings, name, None) for name in names}
    if lora is not None and (
        lora.on_principal or list(kept.values()) != [lora.r, lora.alpha, lora.dropout, lora.rslora, lora.dora]
    ):
        log.warning("the adapter %s keeps its own settings, whatever lora says: %s", folder, kept)
    return model


def _put_on(
    base: Any, folder: Path, settings: Any, saved: dict[str, Tensor], trainable: bool, *, with_new_head: bool
) -> Any:
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict

    if not with_new_head:
        return PeftModel.from_pretrained(base, folder, config=settings, is_trainable=trainable)
    # A language model's adapter becomes a reward model's: the same matrices, and a score head as well.
    settings.inference_mode = False
    for name, value in _task(scores=True).items():
        setattr(settings, name, value)
    head = base.score.weight.detach().clone()
    model = get_peft_model(base, settings)
    set_peft_model_state_dict(model, saved | {IN_ADAPTER: head})
    return model


def _require_fitting_head(base: Any, folder: Path, trainable: bool, scores: bool) -> bool:
    """Whether the adapter has a score head; refuses one where a language model is wanted, or one of another size."""
    try:
        shape = adapter_head_shape(folder / ADAPTER_WEIGHTS)
    except Exception:  # noqa: BLE001 (a broken file: the loader below reports it)
        return False
    if shape is None:
        if scores and not trainable:
            raise ModelError(
                f"the adapter {str(folder)!r} has no score head: it is a language model's",
                "Name a reward run, or a sequence-classification model.",
                field="model.name",
            )
        return False
    if not scores:
        raise ModelError(
            f"the adapter {str(folder)!r} is a reward model's, which gives scores and generates no text",
            "Name a language model; use a reward model with prefine score and prefine reward check.",
            field="model.name",
        )
    hidden = base.score.in_features
    if shape[1] != hidden:
        raise ModelError(
            f"the score head of {str(folder)!r} is for hidden size {shape[1]}, but its base model has {hidden}",
            "Use the base model it was trained on.",
            field="model.name",
        )
    if shape[0] != base.score.out_features:
        raise ModelError(
            f"{base.score.out_features}, but {str(folder)!r} was trained with {shape[0]}",
            f"Set reward.heads to {shape[0]}, or start from another model.",
            field="reward.heads",
        )
    return True
