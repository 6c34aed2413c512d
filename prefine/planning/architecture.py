"""The shapes of a model from its config alone: built on torch's meta device, where tensors have no memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from prefine.errors import ModelError
from prefine.models.loading.location import one_line
from prefine.models.loading.module_names import matching_names

_ATTENTION_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_GATED = ("gate_proj", "up_proj", "down_proj")
_LARGEST_SIDE = 1 << 24


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer of the trunk.

    Attributes:
        name: its full name in the model.
        inputs, outputs: its width.
        role: "attention" or "mlp" for one that reads a layer's normed input; "attention output" or "mlp output" for one
            that writes to the residual stream.
    """

    name: str
    inputs: int
    outputs: int
    role: str


@dataclass(frozen=True)
class Architecture:
    """The shapes of a language model.

    Attributes:
        kind: transformers' model_type.
        layers, hidden, heads, kv_heads, head_size, intermediate, vocabulary: of the config.
        context: the most positions; None without a limit.
        softcap: whether attention scores are capped (Gemma 2).
        gated: whether the MLP has a gate, which prefine fuses.
        tied: whether embeddings and output layer share their weights.
        parameters: all weights, those shared counted once.
        linears: the linear layers of the trunk, which quantisation and all-linear adapters apply to.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    context: int | None
    softcap: bool
    gated: bool
    tied: bool
    parameters: int
    linears: tuple[LinearShape, ...]

    @property
    def linear_parameters(self) -> int:
        """Weights of the trunk's linear layers."""
        return sum(each.inputs * each.outputs for each in self.linears)

    def parameters_with(self, score_heads: int) -> int:
        """All weights of a reward model, which has score heads instead of the output layer; 0 for a language model."""
        if not score_heads:
            return self.parameters
        output = 0 if self.tied else self.vocabulary * self.hidden
        return self.parameters - output + score_heads * self.hidden

    @property
    def query_width(self) -> int:
        """Numbers of a token's queries in a layer."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Numbers of a token's keys in a layer; its values have as many."""
        return self.kv_heads * self.head_size

    def targets(self, wanted: str | Sequence[str]) -> tuple[LinearShape, ...]:
        """The layers that adapters are put on, by the recipe's lora.targets.

        Raises:
            ModelError: it matches nothing.
        """
        if wanted == "all-linear":
            return self.linears
        names = [each.name for each in self.linears]
        try:
            found = set(matching_names(wanted, names)) if isinstance(wanted, str) else set()
        except ValueError as error:
            raise ModelError(f"{wanted!r}: {error}", "Correct it, or use all-linear.", field="lora.targets") from None
        if not isinstance(wanted, str):
            found = {name for name in names if any(name == each or name.endswith(f".{each}") for each in wanted)}
        if not found:
            short = sorted({name.rpartition(".")[2] for name in names})
            raise ModelError(
                f"{wanted!r} matches no linear module", f"There are {', '.join(short)}.", field="lora.targets"
            )
        return tuple(each for each in self.linears if each.name in found)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The shapes of the model that a config describes: the content of its config.json.

    Raises:
        ModelError: transformers does not know the architecture, or cannot build it from this config.
    """
    return _built(json.dumps(config, sort_keys=True))


@lru_cache(maxsize=16)
def _built(text: str) -> Architecture:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads(text)
    kind = str(values.pop("model_type", ""))
    values.pop("quantization_config", None)
    _require_plausible(values)
    try:
        config: Any = AutoConfig.for_model(kind, **values)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises many types
        raise ModelError(
            f"a model of type {kind!r} cannot be planned from its config ({one_line(error)})",
            "Plan a model of an architecture that transformers knows.",
            field="model.name",
        ) from error
    return _measured(kind, config.get_text_config(), model)


def _require_plausible(values: Mapping[str, Any]) -> None:
    """A config may ask for a million layers, each of which is an object even on the meta device."""
    for name, value in values.items():
        counted = "layers" in name or "heads" in name or "experts" in name
        if isinstance(value, int) and value > (10_000 if counted else _LARGEST_SIDE):
            raise ModelError(f"its config has {name} {value:,}", "Check the model's config.json.", field="model.name")


def _measured(kind: str, config: Any, model: Any) -> Architecture:
    head = model.get_output_embeddings()
    linears = tuple(
        LinearShape(name, inputs, outputs, _role(name, inputs, outputs, config.hidden_size))
        for name, module in model.named_modules()
        if module is not head and (shape := _shape(module)) is not None
        for inputs, outputs in [shape]
    )
    heads = config.num_attention_heads
    tied = head is not None and (
        head.weight is model.get_input_embeddings().weight or bool(getattr(config, "tie_word_embeddings", False))
    )
    # On the meta device, tied weights may still be two tensors.
    unshared = 0 if head is None or head.weight is model.get_input_embeddings().weight else head.weight.numel()
    leaves = {each.name.rpartition(".")[2] for each in linears}
    return Architecture(
        kind=kind,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=getattr(config, "intermediate_size", None) or max(each.outputs for each in linears),
        vocabulary=config.vocab_size,
        context=getattr(config, "max_position_embeddings", None),
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
        gated=leaves.issuperset(_GATED),
        tied=tied,
        parameters=int(model.num_parameters()) - (unshared if tied else 0),
        linears=linears,
    )


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; None for other modules."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def _role(name: str, inputs: int, outputs: int, hidden: int) -> str:
    part, leaf = name.rpartition(".")[0].lower(), name.rpartition(".")[2]
    if "attn" in part or "attention" in part:
        return "attention output" if leaf in _ATTENTION_OUTPUTS else "attention"
    return "mlp output" if outputs == hidden and inputs != hidden else "mlp"
