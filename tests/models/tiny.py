"""Random two-layer models of many architectures, trees of random tokens, and what transformers itself says of both."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from prefine.data.tokens.trees import PackedBatch, TokenTree, collate
from prefine.models.forward import attention
from prefine.models.forward.packed import PackedModel, standard_attention, unpack
from prefine.models.forward.path_probe import choose_path
from tests.tiny import CHATML, byte_letters, byte_tokenizer

VOCABULARY = 96
WINDOW = 5  # shorter than every sequence that `BATCH` holds

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
# What the architectures differ in: biases, norms, position codes, windows, caps, scales, ties, experts.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, "num_local_experts": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "gpt2": _GPT2_NAMES,
    "gpt_bigcode": _GPT2_NAMES,
    "gpt_neox": {},
    "ctrl": _GPT2_NAMES | {"dff": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere2": {"logit_scale": 0.25, "sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW},
}
# Architectures that cannot be packed, and what the probe says of them.
UNPACKABLE: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "do not use transformers' AttentionInterface"),
    "falcon": ({"alibi": True}, "do not use transformers' AttentionInterface"),
    "gpt_neo": (
        {
            "num_layers": 2,
            "num_heads": 4,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], 1]],
        },
        "do not use transformers' AttentionInterface",
    ),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "AttentionInterface"),
    "stablelm": ({}, "do not pass segments"),
    "gpt_oss": (
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        "does not support s_aux",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "tokens of another sequence"),
    "mamba": ({"state_size": 4}, "do not call the registered attention"),
    # Longer than the probe's sequences: only what the layers are told can give it away.
    "phimoe": ({"sliding_window": 40, "num_local_experts": 4}, "do not pass their window of 40"),
}


def random_weights(model: nn.Module, seed: int = 1) -> None:
    """Fill all weights so that each matters: fresh models attend evenly, and their norms and biases do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(noise.mul_(0.1))
            else:
                weight.copy_(noise.mul_(0.9 * weight.shape[-1] ** -0.5))


def make(architecture: str, **overrides: Any) -> Any:
    """A random fp32 model as transformers makes it."""
    attention.register()
    own = ARCHITECTURES[architecture] if architecture in ARCHITECTURES else UNPACKABLE[architecture][0]
    config = AutoConfig.for_model(architecture, **_COMMON | own | overrides)
    for name, value in config.to_dict().items():  # as prefine loads models
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config).float()
    random_weights(model)
    return model.eval()


def packed(architecture: str, **overrides: Any) -> PackedModel:
    """A random fp32 model behind the packed forward."""
    model = PackedModel(make(architecture, **overrides), torch.float32)
    assert choose_path(model) is None
    return model


def with_lora(model: nn.Module, seed: int = 2, **settings: Any) -> Any:
    """The model with a random adapter on all linear layers, trained a little already: B is not 0."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    )
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return adapted


def tree(prompt: int, *answers: int, vocabulary: int = VOCABULARY) -> TokenTree:
    """Random tokens in these lengths, the same for the same lengths."""
    generator = torch.Generator().manual_seed(31 * prompt + sum(answers))
    tokens = [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in (prompt, *answers)]
    return TokenTree(tokens[0], tuple(tokens[1:]), (None,) * len(answers))


# Pairs and a demonstration; all sequences are longer than WINDOW.
BATCH = collate([tree(9, 8, 7), tree(3, 12), tree(11, 2, 9)])
# As many targets of trees that begin alike: ten tokens, longer than a window, stand once in the row.
_BEGINNING = list(tree(10, 1).prompt)
BATCH_THAT_BEGINS_ALIKE = collate(
    [replace(each, prompt=[*_BEGINNING, *each.prompt]) for each in (tree(9, 8, 7), tree(3, 12), tree(1, 2, 9))]
)
# Weights for a loss in which every target counts differently, so that equal gradients mean equal everywhere.
LOSS_WEIGHTS = torch.linspace(-1.0, 2.0, len(BATCH.targets))


def alone(model: PackedModel, batch: PackedBatch = BATCH) -> Tensor:
    """What transformers' plain implementation says of each sequence by itself, as log-probabilities (R,)."""
    ids, mask, row, column = unpack(batch)
    with standard_attention(model, "eager"), model.autocast():
        logits = [model.causal(input_ids=one[None, : int(m.sum())]).logits[0] for one, m in zip(ids, mask, strict=True)]
    logprobs = [torch.log_softmax(each.float(), -1) for each in logits]
    places = zip(row.tolist(), column.tolist(), batch.targets.tolist(), strict=True)
    return torch.stack([logprobs[r][c, target] for r, c, target in places])


def gradients(model: nn.Module, logprobs: Tensor) -> dict[str, Tensor]:
    """Gradients of all trainable weights for a loss in which each target counts differently."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = (logprobs * LOSS_WEIGHTS).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal relative to each gradient's largest entry (and not all zero)."""
    assert ours.keys() == theirs.keys()
    assert ours
    largest = max(grad.abs().max().item() for grad in theirs.values())
    for name, grad in theirs.items():
        # Some are 0 but for rounding: a key's bias moves all scores of a query alike.
        bound = tolerance * max(grad.abs().max().item(), 1e-2 * largest)
        assert (ours[name] - grad).abs().max().item() <= bound, name


def save_tokenizer(folder: Path, template: str | None = CHATML) -> int:
    """One token a byte and two control tokens, saved to `folder`; returns the vocabulary's size."""
    tokenizer = byte_tokenizer(template=template)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


DEEP_VOCABULARY = 49_152
DEEP_LAYERS = 24


def save_deep_model(folder: Path, vocabulary: int = DEEP_VOCABULARY, layers: int = DEEP_LAYERS) -> Path:
    """A narrow Llama with a real vocabulary and depth: its rounding is that of a real model, its speed is not.

    Rounding errors grow with the number of layers and with the number of terms in the softmax, not with the width.
    The embedding is tied and scaled so that logits spread as a trained model's do (standard deviation about 4).
    The tokenizer has a token for each byte and for pairs of bytes, so that text uses ids of the whole vocabulary.
    """
    words = pair_tokenizer(vocabulary)
    end = words.eos_token_id
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "max_position_embeddings": 1024}
    model = make(
        "llama",
        vocab_size=vocabulary,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        tie_word_embeddings=True,
        **shape,
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4.0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def pair_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Every byte and as many pairs of bytes as the vocabulary has room for, with ChatML's two control tokens."""
    letters = byte_letters()
    merges = list(islice(product(letters, letters), vocabulary - len(letters) - 2))
    words = {text: i for i, text in enumerate([*letters, *("".join(pair) for pair in merges)])}
    return byte_tokenizer(words, merges)


def save_folder(folder: Path, architecture: str = "llama", template: str | None = CHATML, **overrides: Any) -> Path:
    """A whole model folder, as from the hub: random weights and a byte-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    size = save_tokenizer(folder, template)
    make(architecture, vocab_size=size, eos_token_id=size - 1, pad_token_id=size - 1, **overrides).save_pretrained(
        folder
    )
    return folder
