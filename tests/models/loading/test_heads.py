"""Fresh score heads have the published spread, and padding never looks like the end of a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.template_source import PLAIN_TEMPLATE
from prefine.models.loading.heads import (
    IN_ADAPTER,
    SCORE_WEIGHT,
    adapter_head_shape,
    ensure_distinct_pad_token,
    init_score_head,
)
from prefine.models.loading.load import load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Message
from tests.models import tiny

TALK = (Message(role="user", content="Hi! you, there? 0 1 2"),)
ANSWER = "Yes! I am."


@pytest.mark.parametrize(("hidden", "heads"), [(3, 20_000), (255, 400), (4095, 40)])
def test_a_fresh_head_has_the_standard_deviation_1_over_the_root_of_d_plus_1(hidden: int, heads: int) -> None:
    """1/2, 1/16 and 1/64; with few inputs 1/√d would be another figure."""
    torch.manual_seed(0)
    head = nn.Linear(hidden, heads, bias=False)
    init_score_head(head)
    draws = hidden * heads
    wanted = {3: 1 / 2, 255: 1 / 16, 4095: 1 / 64}[hidden]
    assert head.weight.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * draws))
    assert abs(head.weight.mean().item()) < 5 * wanted / math.sqrt(draws)
    assert head.weight.requires_grad


def test_first_scores_of_features_of_unit_size_are_about_1() -> None:
    torch.manual_seed(0)
    head = nn.Linear(1000, 2000, bias=False)
    init_score_head(head)
    with torch.no_grad():
        assert head(torch.randn(10, 1000)).std().item() == pytest.approx(1.0, rel=0.05)


def test_a_head_follows_torchs_seed() -> None:
    """Every process of a run begins with the same head."""
    first, second = nn.Linear(8, 2, bias=False), nn.Linear(8, 2, bias=False)
    for head in (first, second):
        torch.manual_seed(3)
        init_score_head(head)
    assert torch.equal(first.weight, second.weight)
    init_score_head(second)
    assert not torch.equal(first.weight, second.weight)


def test_a_language_model_is_given_such_heads(tmp_path: Path) -> None:
    """16 heads on hidden size 32: spread 1/√33, not the 0.02 of the model's other fresh weights."""
    folder = tiny.save_folder(tmp_path / "llama")
    for lora in (LoraSection(r=2), None):
        torch.manual_seed(0)
        loaded = load_model(ModelSection(name=str(folder), device="cpu", dtype="float32"), lora, heads=16)
        (weight,) = [weight for name, weight in loaded.trainable().items() if "score" in name]
        assert weight.shape == (16, 32)
        assert weight.dtype == torch.float32
        assert weight.std().item() == pytest.approx(33**-0.5, rel=0.15)


@pytest.mark.parametrize(("heads", "hidden"), [(1, 8), (3, 32)])
def test_the_shape_of_an_adapters_head_is_read_from_its_file(heads: int, hidden: int, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file({"base_model.model.score.weight": torch.zeros(heads, hidden), "other": torch.zeros(2)}, file)
    assert IN_ADAPTER == f"base_model.model.{SCORE_WEIGHT}" == "base_model.model.score.weight"
    assert adapter_head_shape(file) == (heads, hidden)
    save_file({"base_model.model.score.lora_A.weight": torch.zeros(heads, hidden)}, file)
    assert adapter_head_shape(file) is None


# --- Padding ---------------------------------------------------------------------------------------------------------


def tokenizer(special: Sequence[str], template: str, **names: str) -> Any:
    """One token a byte, 0 to 255, and these special ones behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, chat_template=template, **names)


CHAT = ("<|im_start|>", "<|im_end|>")
ONLY_END = ("<|endoftext|>",)
GPT2_NAMES = {f"{name}_token": "<|endoftext|>" for name in ("eos", "bos", "unk")}
# special tokens, chat template, the tokenizer's names for them
PADDED_WITH_AN_END = {
    "pad is the end of turn": (CHAT, tiny.CHATML, {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}),
    "no pad": (CHAT, tiny.CHATML, {"eos_token": "<|im_end|>"}),
    "pad is the end of sequence, turns end otherwise": (
        (*CHAT, "<|endoftext|>"),
        tiny.CHATML,
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    ),
    "an unknown token is there": (
        (*CHAT, "<unk>"),
        tiny.CHATML,
        {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<unk>"},
    ),
    "the unknown token is the end": (
        (*CHAT, "<|endoftext|>"),
        tiny.CHATML,
        {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    ),
}


def model_stub(**values: Any) -> Any:
    return SimpleNamespace(config=LlamaConfig(vocab_size=300, **values))


@pytest.mark.parametrize("case", PADDED_WITH_AN_END)
def test_padding_is_given_a_token_that_ends_no_turn(case: str, tmp_path: Path) -> None:
    """One of the vocabulary, in tokenizer and config alike; no text's tokens change, after a reload neither."""
    special, source, names = PADDED_WITH_AN_END[case]
    words = tokenizer(special, source, **names)
    template, model, size = ChatTemplate(words), model_stub(pad_token_id=words.pad_token_id), len(words)
    before = template.answers_tree(TALK, (ANSWER,))
    ensure_distinct_pad_token(model, template)
    pad = words.pad_token_id
    assert pad is not None
    assert pad < size == len(words)
    assert pad not in template.stop_ids
    assert pad == model.config.pad_token_id
    assert words.eos_token == names["eos_token"]
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.pad_token_id, again.eos_token_id) == (pad, words.eos_token_id)
    assert template.answers_tree(TALK, (ANSWER,)) == before == ChatTemplate(again).answers_tree(TALK, (ANSWER,))


def test_the_unknown_token_is_the_first_choice() -> None:
    """It is never at an answer's end, and no template writes it."""
    special, source, names = PADDED_WITH_AN_END["an unknown token is there"]
    template = ChatTemplate(words := tokenizer(special, source, **names))
    ensure_distinct_pad_token(model_stub(), template)
    assert words.pad_token == "<unk>"


def test_a_proper_padding_token_is_left_alone() -> None:
    words = tokenizer((*CHAT, "<pad>"), tiny.CHATML, eos_token="<|im_end|>", pad_token="<pad>")
    template, model = ChatTemplate(words), model_stub(pad_token_id=1)
    fingerprint = template.fingerprint
    ensure_distinct_pad_token(model, template)
    assert (words.pad_token, words.pad_token_id, template.fingerprint) == ("<pad>", 258, fingerprint)
    assert model.config.pad_token_id == 258


@pytest.mark.parametrize("names", [GPT2_NAMES, GPT2_NAMES | {"pad_token": "<|endoftext|>"}], ids=["no pad", "pad"])
def test_where_the_only_special_token_ends_turns_nothing_is_padding(names: dict[str, str], tmp_path: Path) -> None:
    """GPT-2's tokenizer has one special token. An ordinary one that were made padding would vanish from texts, and the
    end of turn would move the place where a score is read: rather none, in tokenizer and config alike."""
    template = ChatTemplate(words := tokenizer(ONLY_END, PLAIN_TEMPLATE, **names))
    before = template.answers_tree(TALK, (ANSWER,))
    model = model_stub(pad_token_id=words.pad_token_id)
    ensure_distinct_pad_token(model, template)
    assert (words.pad_token, words.pad_token_id, model.config.pad_token_id) == (None, None, None)
    assert words.eos_token == "<|endoftext|>"
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.pad_token_id, again.eos_token_id) == (None, words.eos_token_id)
    assert template.answers_tree(TALK, (ANSWER,)) == before == ChatTemplate(again).answers_tree(TALK, (ANSWER,))
