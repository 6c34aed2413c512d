"""Loads the model that a recipe names, with its tokenizer and adapter; chooses device, number types and forward path.

The adapter of a run is trained further, so a DPO run on an SFT run starts where SFT ended. Its reference is the policy
as it was loaded (training/stages/reference.py computes it before the first step).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.template_source import choose_template
from prefine.errors import MissingDependencyError, ModelError
from prefine.models.forward import attention, fused
from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.forward.packed import PackedModel, ScoreHead, embedding_rows
from prefine.models.forward.path_probe import choose_path, take_padded_path
from prefine.models.loading.adapter_form import adapter_form, trained_weights
from prefine.models.loading.adapters import put_adapter
from prefine.models.loading.card import Base, Story, describe_result
from prefine.models.loading.device import bound_kernel_caches, choose_device, choose_dtype
from prefine.models.loading.embedded import PREFIX
from prefine.models.loading.heads import SCORE, SCORE_WEIGHT, ensure_distinct_pad_token, init_score_head
from prefine.models.loading.identity import Identity, identity_of
from prefine.models.loading.location import Location, base_hash, locate_model, one_line
from prefine.models.loading.quantization import quantization_config
from prefine.models.loading.quiet import known_noise_off
from prefine.models.loading.stops import save_ends, stop_at, template_of
from prefine.models.loading.weights import require_plausible_config, within_files
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.runs.atomic import JSON, atomic_write, json_bytes

log = logging.getLogger("prefine")


@dataclass
class LoadedModel:
    """A model ready for training or generation.

    Attributes:
        packed: the model behind the packed forward.
        template: its tokenizer and chat template.
        location: where its parts are.
        dtype_reason: why the compute type was chosen.
        fallback: why it takes the padded path; None where it is packed.
        identity: hashes of the files that decide its numbers.
        faster: modules with fused forwards, by kind.
        quantization: of the base's weights as they are loaded: none, nf4 or int8.
    """

    packed: PackedModel
    template: ChatTemplate
    location: Location
    dtype_reason: str
    fallback: str | None
    identity: Identity
    faster: dict[str, int] = field(default_factory=dict)
    quantization: str = "none"

    @property
    def base_sha256(self) -> str:
        """Hash of the base's weight files; "" if they are not on this machine."""
        return self.identity.weights

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.template.tokenizer

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters with gradient by name, in the model's order."""
        return {name: p for name, p in self.packed.model.named_parameters() if p.requires_grad}

    def as_base(self) -> Base:
        """What files of an adapter that was trained on it say of it."""
        dtype = str(self.packed.compute_dtype).removeprefix("torch.")
        return Base(self.location, self.base_sha256, self.identity.config, self.quantization, dtype)

    def _forward(self) -> str:
        path = "packed" if self.fallback is None else f"padded: {self.fallback}"
        return path if self.packed.lengths is None else f"{path}, {self.packed.lengths}"

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest and the report."""
        return {
            "name": self.location.name,
            "base": self.location.base_name,
            "base_sha256": self.base_sha256,
            "identity": asdict(self.identity),
            "adapter": None if self.location.adapter is None else str(self.location.adapter),
            "parameters": self.packed.causal.num_parameters(),  # it counts 4-bit weights correctly
            "adapter_form": adapter_form(self.packed.model, fused=self.faster.get("lora", 0) > 0),
            "trainable_parameters": trained_weights(self.packed.model),
            "compute_dtype": str(self.packed.compute_dtype).removeprefix("torch."),
            "dtype_reason": self.dtype_reason,
            "forward": self._forward(),
            "fused_modules": self.faster,
        }


def load_tokenizer(location: Location, section: ModelSection) -> ChatTemplate:
    """The tokenizer with the recipe's chat template.

    Raises:
        ModelError: there is no tokenizer.
        TemplateError: there is no chat template, or the named template file is missing.
    """
    from transformers import AutoTokenizer

    require_plausible_config(location.base, section.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location.tokenizer, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
        if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # some releases create this without a file
            raise ValueError("its vocabulary is empty")
    except Exception as error:  # transformers and tokenizers raise many types on broken files
        raise ModelError(
            f"no tokenizer could be loaded from {location.tokenizer!r} ({one_line(error)})",
            "Add the model's tokenizer files to its folder, or check the name and the network.",
            field="model.name",
        ) from error
    choose_template(tokenizer, section.chat_template, section.template_kwargs)
    return template_of(tokenizer, location, section.revision)


def load_model(
    section: ModelSection,
    lora: LoraSection | None,
    *,
    trainable: bool = True,
    heads: int | None = None,
    weights_in_fp32: bool = False,
) -> LoadedModel:
    """Load the model that a recipe names, ready for the packed forward.

    Args:
        section: the recipe's model section.
        lora: adapter settings for a model without an adapter; None trains all weights.
        trainable: False freezes all parameters (chat, evaluation).
        heads: None for a language model; otherwise the number of score heads of a reward model. If the model has no
            head, one is drawn from torch's global generator.
        weights_in_fp32: keep the weights in fp32, as a run that trains all of them does, whatever the compute type.

    Raises:
        ModelError, TemplateError, MissingDependencyError: see their messages.
    """
    location = locate_model(section.name)
    template = load_tokenizer(location, section)
    bound_kernel_caches()
    device = choose_device(section.device)
    dtype, reason = choose_dtype(section.dtype, device)
    all_weights = trainable and lora is None and location.adapter is None
    options: dict[str, Any] = {
        "dtype": torch.float32 if all_weights or weights_in_fp32 else dtype,
        "attn_implementation": _attention_asked(section, device, dtype),
    }
    if section.quantization != "none":
        options |= {"quantization_config": quantization_config(section, dtype), "device_map": {"": device}}
    with known_noise_off():
        base = _load_base(location, section, options, heads, fresh_head=trainable).to(device)
        _keep_layout(base)
        sha256 = base_hash(location.base, section.revision)  # after loading, which downloads a hub model's weights
        identity = identity_of(location, section.revision, sha256)
        _require_own_base(location, identity)
        model = put_adapter(base, location, lora, trainable, scores=heads is not None)
    if heads is not None and trainable:
        ensure_distinct_pad_token(model, template)
    template.require_rows(embedding_rows(base))
    stop_at(base, template)
    if not trainable:
        model.requires_grad_(False)
    if section.gradient_checkpointing and trainable:
        _checkpoint_layers(model, location)
    packed = PackedModel(model, dtype, None if heads is None else ScoreHead())
    fallback = _choose_path(packed, section)
    return LoadedModel(
        packed, template, location, reason, fallback, identity, fused.install(model), section.quantization
    )


def _require_own_base(location: Location, identity: Identity) -> None:
    """Refuse a base other than the one that the adapter was trained on."""
    # Releases of transformers write the config of a converted embedded model differently.
    told = None if location.base_name.startswith(PREFIX) else location.base_config_sha256
    for what, trained_on, here in (
        ("other weights", location.base_sha256, identity.weights),
        ("another config", told, identity.config),
    ):
        if trained_on and here != trained_on:
            raise ModelError(
                f"the adapter {location.name!r} was trained on {what} than {location.base!r} holds",
                "Use the base model it was trained on; on another one its outputs would silently be wrong.",
                field="model.name",
            )


def _load_base(
    location: Location, section: ModelSection, options: dict[str, Any], heads: int | None, fresh_head: bool
) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    attention.register()
    source = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    # Mismatched shapes are reported in the loading info, as missing weights are.
    options = {**source, **options, "use_safetensors": True, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True
    try:
        config = AutoConfig.from_pretrained(location.base, **source)
        _turn_dropout_off(config)
        if heads is None and is_classifier(config):
            raise ModelError(
                f"{location.name!r} is a reward model or another classifier, which generates no text",
                "Name a language model; use a reward model with prefine score and prefine reward check.",
                field="model.name",
            )
        if heads is not None and not is_classifier(config):
            config.num_labels = heads
        kind = AutoModelForCausalLM if heads is None else AutoModelForSequenceClassification
        with within_files(location.base, section.revision, config):
            model, info = kind.from_pretrained(location.base, config=config, **options)
    except ModelError:
        raise
    except Exception as error:  # transformers, safetensors and a model's own code raise many types
        remedy = "Check that it is a causal language model with safetensors weights, or the name and the network."
        if "Unrecognized configuration class" in str(error) and heads is not None:
            remedy = "transformers has no sequence classifier for this architecture: start from a model of another one."
        if "trust_remote_code" in str(error):
            remedy = "Set model.trust_remote_code: true if you have read that code and trust it."
        whose = "" if location.adapter is None else f", the base of the adapter {location.name!r},"
        raise ModelError(
            f"{location.base!r}{whose} could not be loaded ({one_line(error)})", remedy, field="model.name"
        ) from error
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    missing = set(info["missing_keys"])
    if heads is not None:
        fresh = not is_classifier(config) and (fresh_head or location.adapter is not None)
        _check_head(model, location, heads, missing, fresh)
        missing.discard(SCORE_WEIGHT)
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if not key.startswith("lm_head.")}
    for keys, what in ((missing, "lacks {}"), (mismatched, "has other shapes for {}")):
        if keys:
            raise ModelError(
                f"{location.base!r} {what.format(len(keys))} of the weights its config asks for ({min(keys)}, …)",
                "The weights and the config do not match: download the model again.",
                field="model.name",
            )
    if unused := info["unexpected_keys"]:
        log.warning("%s holds %d weights that its config does not use (%s, …)", location.base, len(unused), min(unused))
    return model


def _check_head(model: Any, location: Location, heads: int, missing: set[str], fresh: bool) -> None:
    """Draw a missing head if it may be `fresh`; check that prefine can read and train the head."""
    head = getattr(model, SCORE, None)
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{location.base!r} is an encoder, or a classifier with another kind of head",
            "Train a reward model from a decoder (a language model). prefine score accepts this model as it is.",
            field="model.name",
        )
    if head.out_features != heads:
        raise ModelError(
            f"{heads}, but {location.base!r} already has a score head with {head.out_features} outputs",
            f"Set reward.heads to {head.out_features}, or name a language model.",
            field="reward.heads",
        )
    if SCORE_WEIGHT in missing:
        if not fresh:
            raise ModelError(
                f"{location.base!r} has no score head: it is not a reward model, or its files are incomplete",
                "Name a reward run, or a sequence-classification model.",
                field="model.name",
            )
        init_score_head(head)
    head.float()  # whatever the trunk's type: see in_fp32


def is_classifier(config: Any) -> bool:
    """Whether a model's config is that of a sequence classifier."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _turn_dropout_off(config: Any) -> None:
    """Turn the model's own dropout off: with it, ratios and references would be noisy. lora.dropout stays, as the
    recipe asks for it."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def _attention_asked(section: ModelSection, device: torch.device, dtype: torch.dtype) -> str | None:
    """The name for transformers; None for its default (packed attention is chosen later, if the probe passes)."""
    if section.attn_implementation == "flash_attention_2":
        if device.type != "cuda":
            raise ModelError(
                f"flash_attention_2 needs a CUDA device, not {device.type}",
                "Set it to auto: packed attention runs on every device.",
                field="model.attn_implementation",
            )
        if not attention.flash_attention_installed():
            raise MissingDependencyError(
                "flash_attention_2 needs the package flash-attn, which is not installed",
                "Run: pip install flash-attn --no-build-isolation; or set it to auto.",
                field="model.attn_implementation",
            )
        if dtype == torch.float32:
            raise ModelError(
                "flash_attention_2 does not compute in float32",
                "Set it to auto, or model.dtype to bfloat16.",
                field="model.attn_implementation",
            )
    return None if section.attn_implementation == "auto" else section.attn_implementation


def _checkpoint_layers(model: Any, location: Location) -> None:
    # gradient_checkpointing_enable of older transformers releases is activation_checkpointing_enable in newer ones.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"the architecture of {location.base!r} does not support it",
            "Set it to false, and lower training.max_tokens_per_microbatch if memory is short.",
            field="model.gradient_checkpointing",
        ) from error


def _keep_layout(base: Any) -> None:
    """Keep bitsandbytes from using its inference layout on CPUs with AVX512-BF16.

    It would convert 4-bit weights at the first evaluation and never back. Products would then be rounded to bf16, so
    that evaluation and training differ, and no gradient would pass through them.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _choose_path(packed: PackedModel, section: ModelSection) -> str | None:
    """Choose the packed or the padded path; warn if it is padded without a request for that."""
    if section.attn_implementation in ("sdpa", "eager"):
        take_padded_path(packed)
        return f"model.attn_implementation is {section.attn_implementation}"
    reason = choose_path(packed)
    if reason is not None:
        log.warning("this model takes the padded path, which is slower: %s", reason)
    return reason


def save_model(
    loaded: LoadedModel,
    folder: Path,
    beside: Mapping[str, JSON] | None = None,
    story: Story = Story(),  # noqa: B008 - it is frozen
) -> None:
    """Save the result for transformers and peft: an adapter or a whole model, with its tokenizer.

    Args:
        beside: JSON files to save with it, by name.
        story: the text of its README.md on how it was made.

    Raises:
        CheckpointError: the disk is full or not writable; no partial files are left.
    """
    with atomic_write(folder) as temporary, known_noise_off():
        model: Any = loaded.packed.model
        # Others on the same base (a reference, a reward model) are not the result.
        own = {"selected_adapters": [OWN_ADAPTER]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(temporary, **own)
        loaded.tokenizer.save_pretrained(temporary)
        for name, value in (beside or {}).items():
            (temporary / name).write_bytes(json_bytes(value, indent=2))
        if hasattr(model, "peft_config"):
            save_ends(loaded.packed.causal, temporary)
        heads = loaded.packed.causal.score.out_features if isinstance(loaded.packed.head, ScoreHead) else None
        describe_result(temporary, folder, loaded.as_base(), heads, story)
